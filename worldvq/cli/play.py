"""``worldvq play``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from worldvq.cli.options import DeviceOption, PortOption, TrustOption
from worldvq.errors import UsageError

app = typer.Typer()


@app.command("play")
def play_command(
    world: Annotated[Path, typer.Option(help="A trained world.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Dataset whose held-out episodes give the starting contexts. Default: `data` beside WORLD."),
    ] = None,
    real: Annotated[
        bool,
        typer.Option("--real", help="Also play the dataset's environment beside the dream, with the same actions."),
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="With --real: the dataset that the page's record button keeps episodes in.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Real frames that a dream begins with. Default: as many as it remembers.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Another address to listen on, as people type it; they need the token that is printed.")
    ] = "127.0.0.1",
    port: PortOption = 7860,
    device: DeviceOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Play in the dream, in a browser.

    Example: worldvq play --world runs/demo/world --data runs/demo/data --real
    """
    require_play()
    from worldvq.stages.play import play

    play(
        world,
        data,
        real=real,
        record=record,
        context=context,
        host=host,
        port=port,
        device=device,
        trust=trust,
    )


def require_play() -> None:
    """Say which extra is missing, if it is."""
    missing = [name for name in ("starlette", "uvicorn", "websockets") if find_spec(name) is None]
    if missing:
        raise UsageError(f'the page needs {", ".join(missing)}: pip install "worldvq[play]"')
