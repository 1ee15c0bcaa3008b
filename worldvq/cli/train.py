"""``worldvq train tokenizer|dynamics|prior|sound|sound-prior``, ``worldvq tokenize`` and ``worldvq reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldvq.cli.options import ConfigOption, DeviceOption, Overrides, TrackOption, runs, with_options
from worldvq.errors import UsageError, plural

app = typer.Typer()
train_app = typer.Typer(
    help="Train a tokenizer, then the dynamics, or an image prior, on its tokens; or a codec of sound.",
    no_args_is_help=True,
)
app.add_typer(train_app, name="train")

FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Run folder, world or image prior whose weights the run starts with. Default: random ones."
    ),
]


@train_app.command("tokenizer")
def train_tokenizer_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    data: Annotated[
        list[Path] | None, typer.Option(help="Dataset; may be given more than once. Default: runs/CONFIG/data.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/CONFIG/tokenizer.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates in all; short for tokenizer_training.steps=N.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of all that is random; short for tokenizer_training.seed=N.")
    ] = None,
    start: FromOption = None,
    device: DeviceOption = "auto",
    track: TrackOption = None,
) -> None:
    """Train the VQ-VAE that turns frames into tokens; run again to resume. Works under `accelerate launch`.

    Example: worldvq train tokenizer --data runs/car/data --out runs/car/tokenizer --steps 3000 tokenizer.width=128
    """
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "tokenizer"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.experiment import load_config
    from worldvq.stages.tokenizer import train_tokenizer

    settings = load_config(config, with_options(overrides or [], "tokenizer_training", steps, seed))
    train_tokenizer(settings, data or [runs(config) / "data"], folder, track or [], device, start)
    if is_first_process():
        print(f"tokenizer: {folder}")


@train_app.command("dynamics")
def train_dynamics_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    tokens: Annotated[Path | None, typer.Option(help="Token store. Default: runs/CONFIG/tokens.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Trained tokenizer. Default: runs/CONFIG/tokenizer.")] = None,
    sound: Annotated[
        Path | None, typer.Option(help="Codec of sound that the tokens were made with. Default: none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/CONFIG/dynamics.")] = None,
    world: Annotated[Path | None, typer.Option(help="Where the world goes. Default: OUT/../world.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates in all; short for dynamics_training.steps=N.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random; short for dynamics_training.seed=N.")] = None,
    start: FromOption = None,
    device: DeviceOption = "auto",
    track: TrackOption = None,
) -> None:
    """Train the action-conditioned dynamics on tokens and join it with its tokenizer into a world.

    Run again to resume. Works under `accelerate launch`.

    Example: worldvq train dynamics --tokens runs/car/tokens --tokenizer runs/car/tokenizer --out runs/car/dynamics
    """
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "dynamics"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.dynamics import train_dynamics
    from worldvq.stages.experiment import load_config

    world = world or folder.parent / "world"
    settings = load_config(config, with_options(overrides or [], "dynamics_training", steps, seed))
    tokens, tokenizer = tokens or runs(config) / "tokens", tokenizer or runs(config) / "tokenizer"
    train_dynamics(settings, tokens, tokenizer, folder, world, track or [], device, start, sound)
    if is_first_process():
        print(f"dynamics: {folder}\nworld: {world}")


@train_app.command("prior")
def train_prior_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    tokens: Annotated[
        list[Path] | None, typer.Option(help="Token store; may be given more than once. Default: runs/CONFIG/tokens.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The tokenizer that made them. Default: runs/CONFIG/tokenizer.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, where the prior goes too. Default: runs/CONFIG/prior.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates in all; short for prior_training.steps=N.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random; short for prior_training.seed=N.")] = None,
    start: FromOption = None,
    device: DeviceOption = "auto",
    track: TrackOption = None,
) -> None:
    """Train the image prior, which draws single frames, on tokens: of one class, or of one a label or environment.

    Run again to resume. Works under `accelerate launch`.

    Example: worldvq train prior --config doom --tokens runs/a/tokens --tokens runs/b/tokens --tokenizer runs/tokenizer
    """
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "prior"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.experiment import load_config
    from worldvq.stages.prior import train_prior

    settings = load_config(config, with_options(overrides or [], "prior_training", steps, seed))
    tokens, tokenizer = tokens or [runs(config) / "tokens"], tokenizer or runs(config) / "tokenizer"
    train_prior(settings, tokens, tokenizer, folder, track or [], device, start)
    if is_first_process():
        print(f"prior: {folder}")


@train_app.command("sound")
def train_sound_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    data: Annotated[
        Path | None, typer.Option(help="Store of sounds, or dataset with sound. Default: runs/CONFIG/data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, where the codec goes too. Default: runs/CONFIG/sound.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates in all; short for sound_training.steps=N.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random; short for sound_training.seed=N.")] = None,
    device: DeviceOption = "auto",
    track: TrackOption = None,
) -> None:
    """Train the VQ-VAE that turns sound into tokens and back, as any of its speakers.

    Run again to resume. Works under `accelerate launch`.

    Example: worldvq train sound --data runs/mine/data --out runs/mine/sound --steps 3000 sound.strides=[2,2,2,2,2,2,2]
    """
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "sound"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.experiment import load_config
    from worldvq.stages.sound import train_sound

    settings = load_config(config, with_options(overrides or [], "sound_training", steps, seed))
    train_sound(settings, data or runs(config) / "data", folder, track or [], device)
    if is_first_process():
        print(f"codec of sound: {folder}")


@train_app.command("sound-prior")
def train_sound_prior_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    codec: Annotated[Path | None, typer.Option(help="Trained codec of sound. Default: runs/CONFIG/sound.")] = None,
    data: Annotated[Path | None, typer.Option(help="Store of sounds. Default: runs/CONFIG/data.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, where the prior goes too. Default: runs/CONFIG/sound_prior.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates in all; short for sound_prior_training.steps=N.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of all that is random; short for sound_prior_training.seed=N.")
    ] = None,
    device: DeviceOption = "auto",
    track: TrackOption = None,
) -> None:
    """Train the prior over the codes of sounds, which draws sounds of a speaker that nobody has made.

    Run again to resume. Works under `accelerate launch`.

    Example: worldvq train sound-prior --codec runs/mine/sound --data runs/mine/data --out runs/mine/sound_prior
    """
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "sound_prior"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.experiment import load_config
    from worldvq.stages.sound_prior import train_sound_prior

    settings = load_config(config, with_options(overrides or [], "sound_prior_training", steps, seed))
    codec, data = codec or runs(config) / "sound", data or runs(config) / "data"
    train_sound_prior(settings, codec, data, folder, track or [], device)
    if is_first_process():
        print(f"prior over codes of sound: {folder}")


@app.command("tokenize")
def tokenize_command(
    tokenizer: Annotated[Path, typer.Option(help="Run folder of a trained tokenizer.")],
    data: Annotated[Path, typer.Option(help="Dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store.")],
    sound: Annotated[
        Path | None, typer.Option(help="Trained codec of sound: what is heard becomes tokens, too. Default: not.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Turn every frame of a dataset into tokens, once, so that the dynamics trains on them alone.

    Run again to continue what was interrupted. Under `accelerate launch` processes share the work.

    Example: worldvq tokenize --tokenizer runs/car/tokenizer --data runs/car/data --out runs/car/tokens
    """
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.tokens import tokenize

    store = tokenize(tokenizer, data, out, device, sound)
    if is_first_process():
        print(f"{out}: tokens of {plural(len(store), 'episode')}")


@app.command("reconstruct")
def reconstruct_command(
    tokenizer: Annotated[Path, typer.Option(help="Run folder of a trained tokenizer, or a world.")],
    data: Annotated[Path, typer.Option(help="Dataset; only its held-out episodes are used.")],
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames in the picture.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of their choice.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw held-out frames above what comes back of their tokens; PSNR, SSIM and bits of all held-out frames.

    Example: worldvq reconstruct --tokenizer runs/doom/tokenizer --data runs/doom/data --out reconstructions.png
    """
    from worldvq.stages.reconstruct import reconstruct

    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG, its name ends in .png")
    found = reconstruct(tokenizer, data, out, frames, seed, device)
    print(f"{plural(found.num_frames, 'held-out frame')}: PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.3f}")
    share = found.raw_bits / max(found.bits, 1)
    print(
        f"bits a frame: {found.bits:,.0f} in {found.tokens:,} tokens, 1/{share:.0f} of its pixels; "
        f"{found.tokens * found.entropy:,.0f} by the entropy of the codes, {found.entropy:.2f} a token"
    )
    print(found.picture)
