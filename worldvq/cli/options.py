"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldvq.errors import UsageError

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="A YAML file, or a shipped one: maze, doom, dmlab, tiny.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="For instance tokenizer.width=64")
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, help="0 takes the most probable token. Default: as the world's config says.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
ScaleOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Pixels of the picture a pixel of a frame. Default: as is legible, 3 for 64x64 in videos."
    ),
]


def runs(config: str) -> Path:
    """Folder of an experiment, unless said otherwise."""
    return Path("runs") / Path(config).stem


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width of stored frames as ``--size`` says them, 64 or 48x64."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts) or len(parts) > 2:
        raise UsageError(f"--size {text}: write 64, or height x width as in 84x84")
    sides = int(parts[0]), int(parts[-1])
    if any(side % 4 for side in sides):
        raise UsageError(f"--size {text}: a tokenizer takes sides that divide by 4, for instance 64 or 84x84")
    return sides
