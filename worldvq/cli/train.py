"""``worldvq train tokenizer``, ``worldvq tokenize`` and ``worldvq train dynamics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldvq.cli.options import ConfigOption, DeviceOption, Overrides, runs
from worldvq.errors import plural

app = typer.Typer()
train_app = typer.Typer(help="Train a tokenizer, then the dynamics on its tokens.", no_args_is_help=True)
app.add_typer(train_app, name="train")

TrackOption = Annotated[
    list[str] | None, typer.Option(help="Also log to tensorboard, wandb or trackio; may be given more than once.")
]


@train_app.command("tokenizer")
def train_tokenizer_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    data: Annotated[Path | None, typer.Option(help="Dataset. [default: runs/CONFIG/data]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/CONFIG/tokenizer]")] = None,
    track: TrackOption = None,
) -> None:
    """Train the VQ-VAE that turns frames into tokens; run again to resume. Works under `accelerate launch`."""
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "tokenizer"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.stages.experiment import load_config
    from worldvq.stages.tokenizer import train_tokenizer

    train_tokenizer(load_config(config, overrides or []), data or runs(config) / "data", folder, track or [])
    print(f"tokenizer: {folder}")


@train_app.command("dynamics")
def train_dynamics_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    tokens: Annotated[Path | None, typer.Option(help="Token store. [default: runs/CONFIG/tokens]")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Trained tokenizer. [default: runs/CONFIG/tokenizer]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/CONFIG/dynamics]")] = None,
    world: Annotated[Path | None, typer.Option(help="Where the world goes. [default: OUT/../world]")] = None,
    track: TrackOption = None,
) -> None:
    """Train the action-conditioned dynamics on tokens and join it with its tokenizer into a world."""
    from worldvq.files.lock import check_unlocked

    folder: Path = out or runs(config) / "dynamics"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.stages.dynamics import train_dynamics
    from worldvq.stages.experiment import load_config

    world = world or folder.parent / "world"
    settings = load_config(config, overrides or [])
    train_dynamics(
        settings, tokens or runs(config) / "tokens", tokenizer or runs(config) / "tokenizer", folder, world, track or []
    )
    print(f"dynamics: {folder}\nworld: {world}")


@app.command("tokenize")
def tokenize_command(
    tokenizer: Annotated[Path, typer.Option(help="Run folder of a trained tokenizer.")],
    data: Annotated[Path, typer.Option(help="Dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store.")],
    device: DeviceOption = "auto",
) -> None:
    """Turn every frame of a dataset into tokens, once, so that the dynamics trains on them alone.

    Run again to continue what was interrupted. Under `accelerate launch` processes share the work.
    """
    from worldvq.data.sharing import is_first_process
    from worldvq.stages.tokens import tokenize

    store = tokenize(tokenizer, data, out, device)
    if is_first_process():
        print(f"{out}: tokens of {plural(len(store), 'episode')}")
