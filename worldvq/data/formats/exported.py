"""A dataset as videos and a table that anybody can read, and that can be imported again.

FOLDER/000000.mp4, 000001.mp4, ...   an episode each
FOLDER/actions.csv                   a row a step: action, reward, how the episode ended
FOLDER/export.json                   what the table cannot say: the action space, the size of a frame
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat
from rich.console import Console
from rich.progress import Progress

from worldvq.config.fields import PositiveInt, Side
from worldvq.data.episode_files import Record, load_json
from worldvq.data.episodes import EpisodeStore
from worldvq.data.formats.action_tables import ENDINGS, cell
from worldvq.errors import RunError, UsageError
from worldvq.files.atomic import disk_errors, write_atomic
from worldvq.files.differences import require_same
from worldvq.files.lock import NAME, Lock
from worldvq.files.reading import read_bounded, seal
from worldvq.media.videos import probe_video, write_video
from worldvq.types import ActionSpace

TABLE, ABOUT = "actions.csv", "export.json"


class About(Record):
    """What was exported."""

    format_version: Literal[1] = 1
    dataset: dict[str, Any]
    """The dataset's own description, without versions of libraries."""
    fps: PositiveFloat
    scale: PositiveInt
    frame_size: tuple[Side, Side]
    episodes: PositiveInt
    digest: str
    """SHA-256 of the hashes of so many episodes, the first ones: an export is continued only from the same."""

    @property
    def action_space(self) -> ActionSpace:
        """What an action is."""
        return ActionSpace.from_json(self.dataset["action_space"])


def read_about(folder: Path) -> About:
    """Read what an export says of itself; raises CorruptFileError if it was changed."""
    return load_json(About, read_bounded(folder / ABOUT), str(folder / ABOUT))


def export_videos(
    data: Path, out: Path, fps: float = 15, scale: int | None = None, progress: bool = True
) -> list[Path]:
    """Write every episode of a dataset as an mp4, and one table of all actions, rewards and endings.

    An export that was interrupted is continued: videos that hold all their frames are left as they are.

    Args:
        data: The dataset.
        out: Folder of the videos; new, empty, or of the same export.
        fps: Frames a second.
        scale: Each pixel becomes so many in each direction; None: 4 for frames up to 96, else 2. The colours of an mp4
            have half the resolution of its pixels, so with 1 they would mix.
        progress: Show a progress bar on a terminal.

    Returns:
        The videos.

    Raises:
        UsageError: The dataset is empty, or ``out`` holds something else.
        RunError: An episode is broken, or the disk is full.
    """
    with EpisodeStore.open(data) as store:
        if not len(store):
            raise UsageError(f"{data} holds no episodes yet; record some with: {store.how_to_make}")
        size = store.meta.frame_size
        scale = scale or (4 if max(size) <= 96 else 2)
        if any(side * scale % 2 for side in size):
            raise UsageError(f"frames of {size[0]}x{size[1]} need an even --scale: an mp4 has even sides; got {scale}")
        dataset = store.meta.model_dump(mode="json", exclude={"versions"})
        about = About(
            dataset=dataset,
            fps=fps,
            scale=scale,
            frame_size=size,
            episodes=len(store),
            digest=_digest(store, len(store)),
        )
        lock = _begin(out, about, store)
        try:
            paths = []
            for entry in counted(store.entries, "writing videos", progress):
                path = out / f"{entry.number:06d}.mp4"
                if not _is_whole(path, (entry.num_frames, size[0] * scale, size[1] * scale)):
                    write_video(path, store.frames(entry.number), fps, scale, entry.num_frames)
                paths.append(path)
            write_atomic(out / TABLE, _table(store).encode())
        finally:
            lock.release()
    return paths


def _digest(store: EpisodeStore, count: int) -> str:
    return hashlib.sha256("".join(entry.sha256 for entry in store.entries[:count]).encode()).hexdigest()


def _begin(out: Path, about: About, store: EpisodeStore) -> Lock:
    """Take a folder for an export, if it holds nothing else."""
    held = [path.name for path in out.iterdir() if path.name != NAME] if out.is_dir() else []
    if (out.exists() and not out.is_dir()) or (held and ABOUT not in held):
        raise UsageError(f"{out} holds other files and no export; give a new or an empty folder")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out)
    try:
        if held:
            found = read_about(out)
            before = about.model_copy(update={"episodes": found.episodes, "digest": _digest(store, found.episodes)})
            who, problem = ("the export has", "you ask for"), f"{out} is the export of something else"
            require_same(
                found.model_dump(mode="json"), before.model_dump(mode="json"), who, problem, "give another folder"
            )
        write_atomic(out / ABOUT, seal(about.model_dump(mode="json")))
    except BaseException:
        lock.release()
        raise
    return lock


def _is_whole(path: Path, expected: tuple[int, int, int]) -> bool:
    try:
        return path.is_file() and probe_video(path) == expected
    except RunError:
        return False


def _table(store: EpisodeStore) -> str:
    space, text = store.action_space, io.StringIO()
    # Names only where reading the table gives the same ones.
    named = bool(space.names) and len(set(space.names)) == len(space.names)
    named = named and all(cell(name.strip()) == name for name in space.names)
    parts = space.names if named else range(math.prod(space.shape))
    columns = [f"action_{part}" for part in parts] if space.shape else ["action"]
    named = named and not space.shape
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["episode", "step", *columns, "reward", *ENDINGS])
    for entry in store.entries:
        mapped = store.mapped(entry.number)
        endings, last = [int(getattr(entry, name)) for name in ENDINGS], entry.num_frames - 2
        for step, (action, reward) in enumerate(zip(mapped.actions, mapped.rewards, strict=True)):
            values = [space.names[int(action)]] if named else [str(value) for value in action.reshape(-1)]
            ending = endings if step == last else [0] * len(ENDINGS)
            rows.writerow([f"{entry.number:06d}", step, *values, str(reward), *ending])
    return text.getvalue()


def counted(items: list, what: str, show: bool) -> Iterator[Any]:
    """Yield the items, with a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (show and console.is_terminal), transient=True) as bar:
        yield from bar.track(items, description=what)
