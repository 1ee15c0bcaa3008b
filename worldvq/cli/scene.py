"""``worldvq scene train|reconstruct|sample|edit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldvq.cli.options import ConfigOption, DeviceOption, Overrides, TrackOption, runs, with_options
from worldvq.errors import UsageError

if TYPE_CHECKING:
    from worldvq.stages.scene_sheets import Sheet

app = typer.Typer()
scene_app = typer.Typer(help="A frame in a few codes (27 bits), and what they bring back.", no_args_is_help=True)
app.add_typer(scene_app, name="scene")

SceneOption = Annotated[Path, typer.Option(help="Run folder of a trained scene model.")]
DataOption = Annotated[Path | None, typer.Option(help="Dataset whose frames are taken; or --tokens.")]
TokensOption = Annotated[Path | None, typer.Option(help="Token store whose frames are taken; or --data.")]
OutOption = Annotated[Path, typer.Option(help="Where the PNG goes.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Of the draws; 0 takes the most probable token.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 2, help="Of the frames and of the draws.")]


@scene_app.command("train")
def train_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    tokens: Annotated[Path | None, typer.Option(help="Token store. Default: runs/CONFIG/tokens.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Trained tokenizer. Default: runs/CONFIG/tokenizer.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/CONFIG/scene.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates in all; short for scene_training.steps=N.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random; short for scene_training.seed=N.")] = None,
    device: DeviceOption = "auto",
    track: TrackOption = None,
) -> None:
    """Train codes of whole frames, and a prior that draws a frame's tokens given them; run again to resume.

    Example: worldvq scene train --tokens runs/car/tokens --tokenizer runs/car/tokenizer --out runs/car/scene
    """
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "scene"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.experiment import load_config
    from worldvq.stages.scene import train_scene

    settings = load_config(config, with_options(overrides or [], "scene_training", steps, seed))
    tokens, tokenizer = tokens or runs(config) / "tokens", tokenizer or runs(config) / "tokenizer"
    train_scene(settings, tokens, tokenizer, folder, track or [], device)
    if is_first_process():
        print(f"scene: {folder}")


@scene_app.command("reconstruct")
def reconstruct_command(
    scene: SceneOption,
    out: OutOption,
    data: DataOption = None,
    tokens: TokensOption = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="Held-out frames that are drawn.")] = 8,
    without: Annotated[
        Path | None, typer.Option(help="A scene model of 0 codes on the same tokens, to compare nats/token with.")
    ] = None,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw held-out frames over what their codes bring back; print entropies of the codes, nats/token, passes.

    Example: worldvq scene reconstruct --scene runs/car/scene --data runs/car/data --out scene.png
    """
    from worldvq.stages.scene_sheets import reconstruct

    settings = {"count": count, "temperature": temperature, "seed": seed, "without": without, "device": device}
    _print(reconstruct(scene, data, tokens, _png(out), **settings))


@scene_app.command("sample")
def sample_command(
    scene: SceneOption,
    out: OutOption,
    data: DataOption = None,
    tokens: TokensOption = None,
    codes: Annotated[
        str | None, typer.Option(help="Codes of a frame, 12,400,7. Default: those of held-out frames.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="Samples of each.")] = 5,
    rows: Annotated[int, typer.Option(min=1, max=64, help="Of so many held-out frames, without --codes.")] = 4,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw frames given codes, beside the training frames that are nearest by code.

    Example: worldvq scene sample --scene runs/car/scene --tokens runs/car/tokens --out samples.png
    """
    from worldvq.stages.scene_sheets import sample

    settings = {"codes": codes, "count": count, "rows": rows, "temperature": temperature, "seed": seed}
    _print(sample(scene, data, tokens, _png(out), **settings, device=device))


@scene_app.command("edit")
def edit_command(
    scene: SceneOption,
    out: OutOption,
    data: DataOption = None,
    tokens: TokensOption = None,
    first: Annotated[str | None, typer.Option(help="A frame, EPISODE:FRAME. Default: a held-out one.")] = None,
    second: Annotated[str | None, typer.Option(help="The other frame. Default: another held-out one.")] = None,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Swap one code at a time between two frames, beside the training frames that are nearest by code.

    Example: worldvq scene edit --scene runs/car/scene --tokens runs/car/tokens --first 10:5 --out edit.png
    """
    from worldvq.stages.scene_sheets import edit

    settings = {"temperature": temperature, "seed": seed, "device": device}
    _print(edit(scene, data, tokens, _png(out), between=(first, second), **settings))


def _png(out: Path) -> Path:
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG, its name ends in .png")
    return out


def _print(sheet: Sheet) -> None:
    print("\n".join([*sheet.lines, str(sheet.path)]))
