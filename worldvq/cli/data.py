"""``worldvq data info|verify|preview|merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from worldvq.errors import RunError

app = typer.Typer()
data_app = typer.Typer(help="Look at a dataset, check it, draw it.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("info")
def info_command(data: Annotated[Path, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Print what a dataset holds."""
    from worldvq.data.inspect import info

    Console().print(info(data))


@data_app.command("verify")
def verify_command(data: Annotated[Path, typer.Argument(help="Folder of a dataset or token store.")]) -> None:
    """Hash every file against the index; names what is broken."""
    from worldvq.data.inspect import open_store

    with open_store(data) as store:
        problems = store.verify()
    for problem in problems:
        print(problem)
    if problems:
        raise RunError(f"{data}: {len(problems)} of {len(store.entries)} episodes are broken")
    print(f"{data}: {len(store.entries)} episodes, all as committed")


@data_app.command("merge")
def merge_command(
    data: Annotated[Path, typer.Argument(help="Folder with the shards of a dataset or token store.")],
) -> None:
    """List in one index what shards have recorded; no episode is read or moved. Shards may be continued afterwards."""
    from worldvq.files.lock import check_unlocked

    check_unlocked(data)
    from worldvq.data.inspect import open_store
    from worldvq.data.shards import merge_shards

    count = merge_shards(data)
    with open_store(data) as store:
        print(f"{data}: {count} shards merged, {len(store)} episodes, {store.num_frames} frames")


@data_app.command("preview")
def preview_command(
    data: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
    out: Annotated[Path | None, typer.Option(help="Where the pictures go. [default: DATA-preview]")] = None,
) -> None:
    """Draw a contact sheet (PNG) and a video of a few episodes."""
    from worldvq.data.inspect import preview

    for path in preview(data, out or data.with_name(data.name + "-preview")):
        print(path)
