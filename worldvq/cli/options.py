"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def runs(config: str) -> Path:
    """Folder of an experiment, unless said otherwise."""
    return Path("runs") / Path(config).stem
