"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from worldvq.errors import UsageError

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="A YAML file, or a built-in config: `worldvq config list` names them.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE",
        help="Changes to the config, for instance tokenizer.width=64; `worldvq config explain` lists every key.",
    ),
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, help="0 takes the most probable token. Default: as the world's config says.")
]
TopKOption = Annotated[
    int | None,
    typer.Option(min=1, help="Draw among so many most probable tokens. Default: as the world's config says."),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        help="Draw among the most probable tokens that have this probability together, above 0 to 1. Default: as the "
        "world's config says."
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one, else the CPU.")
]
ScaleOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Pixels of the picture a pixel of a frame. Default: as is legible, 3 for 64x64 in videos."
    ),
]

TrackOption = Annotated[
    list[str] | None, typer.Option(help="Also log to tensorboard, wandb or trackio; may be given more than once.")
]

TrustOption = Annotated[
    bool, typer.Option("--trust", help="Play the environment that DATA names even where that runs code of its own.")
]

PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Where the page is served; 0 takes a free port and says which.")
]


def runs(config: str) -> Path:
    """Folder of an experiment, unless said otherwise."""
    return Path("runs") / Path(config).stem


def given(options: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return those options that were given, by the key of the config that each is short for.

    Args:
        options: From key path to value, or None where the option was not given. ``--steps`` has a key that ends so.
        overrides: ``key.path=value`` texts.

    Raises:
        UsageError: An option and its key are both given.
    """
    changes = {key: value for key, value in options.items() if value is not None}
    for text in overrides:
        key = text.partition("=")[0]
        if key in changes:
            raise UsageError(
                f"--{key.rpartition('.')[2]} {changes[key]} is short for {key}: give it or {text}, not both"
            )
    return changes


def with_options(overrides: list[str], section: str, steps: int | None, seed: int | None) -> list[str]:
    """Return the overrides of a training run with what ``--steps`` and ``--seed`` say added."""
    changes = given({f"{section}.steps": steps, f"{section}.seed": seed}, overrides)
    return [*overrides, *(f"{key}={value}" for key, value in changes.items())]


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width of stored frames as ``--size`` says them, 64 or 48x64."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts) or len(parts) > 2:
        raise UsageError(f"--size {text}: write 64, or height x width as in 84x84")
    sides = int(parts[0]), int(parts[-1])
    if any(side % 4 for side in sides):
        raise UsageError(f"--size {text}: a tokenizer takes sides that divide by 4, for instance 64 or 84x84")
    return sides
