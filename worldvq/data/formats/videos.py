"""People's own videos as a dataset: one file an episode, and a table of what was done in them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldvq.config.env import VIDEOS, EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.data.formats.action_tables import ActionTable, Track, read_arrays, read_table
from worldvq.data.formats.action_values import SpaceOptions, Steps, choose_space, encode, steps_of
from worldvq.data.formats.exported import ABOUT, TABLE, counted, read_about
from worldvq.errors import RunError, UsageError, did_you_mean, plural
from worldvq.files.differences import printable, require_same
from worldvq.files.lock import check_unlocked
from worldvq.files.reading import open_file
from worldvq.media.fit import Fit, fit_image
from worldvq.media.video_reading import READ_SUFFIXES, frame_rate, is_steady, read_video
from worldvq.media.videos import Decoded, decode_times
from worldvq.types import ActionSpace, Episode

NO_ACTION = ActionSpace("discrete", (1,), names=("none",))
"""What an action is where there are none."""
ASPECT_CHANGE = 0.1
"""From which change of a picture's shape on it is said."""
_WAY_OUT = "import into another folder"


@dataclass(frozen=True)
class Video:
    """A file of the folder, and what was found in it."""

    path: Path
    sha256: str
    num_frames: int
    size: tuple[int, int]
    fps: float
    decoded: Decoded | None
    """None where the episode was imported before."""

    def num_kept(self, every: int) -> int:
        """How many frames an import keeps."""
        return -(-self.num_frames // every)

    def about(self) -> dict[str, Any]:
        """Return what an episode says of its video, JSON values."""
        return {
            "video": self.path.name,
            "sha256": self.sha256,
            "frames": self.num_frames,
            "size": list(self.size),
            "fps": self.fps,
        }


def import_videos(
    folder: Path,
    out: Path,
    actions: Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "squash",
    every: int = 1,
    options: SpaceOptions = SpaceOptions(),  # noqa: B008 (frozen)
    heldout_every: int | None = None,
    compression: Literal["none", "zstd"] = "none",
    progress: bool = True,
) -> EpisodeStore:
    """Make a dataset of a folder of videos, or continue one; the n-th video by name is episode n.

    Every video is decoded and everything is checked before anything is written.

    Args:
        folder: Holds the videos (``READ_SUFFIXES``).
        out: Folder of the dataset.
        actions: Table (.csv, .jsonl), or a folder with NAME.npy for every video. None takes what lies in ``folder``:
            the table of an export, or NAME.npy; with neither all actions are one and the same.
        size: Height and width of a stored frame; None takes that of an export, else 64x64.
        fit: How a video of another shape is made to fit.
        every: Keep one of so many frames; the table is of the kept ones.
        options: What to know of the actions beside the table.
        heldout_every: Episode n is held out when n % heldout_every == heldout_every - 1; None takes that of an export,
            else 10.
        compression: Of the stored frames.
        progress: Show a progress bar on a terminal.

    Returns:
        The store, open for reading and writing.

    Raises:
        UsageError: Videos and table do not fit each other, or ``out`` holds something else; nothing was written.
        RunError: A video does not decode, or the disk is full. Committed episodes stay.
    """
    EpisodeStore.refuse_strangers(out)
    check_unlocked(out)
    paths = _find(folder)
    about = read_about(folder) if (folder / ABOUT).is_file() else None
    table, given = _table(folder, actions, list(paths)), about.action_space if about else None
    tracks = _match(table, list(paths)) if table else {}
    before = _before(out, folder, list(paths.values()))
    videos = _look(paths, before, progress)
    kept = size or (about.frame_size if about else (64, 64))
    _say_sizes(videos, kept, fit, every)
    steps = {name: _steps(tracks.get(name), video, every) for name, video in videos.items()}
    if table is None:
        space = NO_ACTION
        print(f"no actions (no --actions, {TABLE} or .npy): a model of these videos can only watch", flush=True)
    else:
        # What a table beside an export says of its actions is what the exported dataset said.
        own = table.source == str(folder / TABLE) and options == SpaceOptions()
        space = given if given and own else choose_space(steps.values(), table.parts, options, table.source)
        _say_actions(table, space, steps)
    encoded = {name: encode(part, space, name) for name, part in steps.items()}
    for number, name in enumerate(videos):
        if before is not None and number in before:
            _check_same(before, number, videos[name], encoded[name], steps[name])
    env = EnvConfig(id=_env_id(folder), size=kept, fit=fit, frame_skip=every)
    meta = DatasetMeta(
        env=env,
        action_space=space.to_json(),
        frame_size=kept,
        policy="recorded",
        heldout_every=heldout_every or (about.dataset["heldout_every"] if about else 10),
        compression=compression,
        versions={name: metadata.version(name) for name in ("worldvq", "moviepy", "numpy", "pillow")},
    )
    store = EpisodeStore.create(out, meta)
    try:
        for number, name in counted(list(enumerate(videos)), "importing", progress):
            if number not in store:
                store.commit(number, _episode(videos[name], encoded[name], steps[name], kept, fit, every))
    except BaseException:
        store.close()
        raise
    return store


def _find(folder: Path) -> dict[str, Path]:
    """Videos of a folder by name without suffix, sorted."""
    if not folder.is_dir():
        raise UsageError(f"no such folder of videos: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in READ_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise UsageError(
                f"{folder} holds {found[path.stem].name} and {path.name}: two episodes of one name; rename one"
            )
        found[path.stem] = path
    if not found:
        raise UsageError(f"{folder} holds no videos: none of its files ends in {', '.join(READ_SUFFIXES)}")
    return dict(sorted(found.items()))


def _table(folder: Path, actions: Path | None, names: list[str]) -> ActionTable | None:
    """Read the table that is given, or the one that lies in the folder."""
    if actions is not None:
        return read_arrays(actions, names) if actions.is_dir() else read_table(actions)
    if (folder / TABLE).is_file():
        return read_table(folder / TABLE)
    return read_arrays(folder, names) if any((folder / f"{name}.npy").is_file() for name in names) else None


def _match(table: ActionTable, names: list[str]) -> dict[str, Track]:
    """Tracks by name of the video; the table may name files with their suffix."""
    tracks: dict[str, Track] = {}
    for key, track in table.tracks.items():
        name = Path(key).stem if Path(key).suffix.lower() in READ_SUFFIXES else key
        if name not in names:
            hint = did_you_mean(name, names)
            raise UsageError(f"{table.source} names the episode '{printable(key)}', of which there is no video{hint}")
        if name in tracks:
            raise UsageError(f"{table.source} names the video '{printable(name)}' with and without suffix")
        tracks[name] = track
    if missing := [name for name in names if name not in tracks]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(
            f"{table.source} has no actions for the video '{missing[0]}'{more}: add them, or take it out of the folder"
        )
    return tracks


def _env_id(folder: Path) -> str:
    return f"{VIDEOS}{folder.resolve().name}"


def _before(out: Path, folder: Path, paths: list[Path]) -> EpisodeStore | None:
    """Open what was imported before, if it is of these videos as far as their names say."""
    if not (out / EpisodeStore.meta_file).is_file():
        return None
    store = EpisodeStore.open(out)
    if store.meta.env.id != _env_id(folder):
        raise UsageError(f"{out} holds a dataset of '{store.meta.env.id}', not of the videos in {folder}: {_WAY_OUT}")
    for entry in store.entries:
        was, now = store.mapped(entry.number).meta.get("video"), [path.name for path in paths][entry.number :]
        if now[:1] != [was]:
            here = f"is now {now[0]}" if now else f"is not in {folder} any more"
            raise UsageError(f"{out}: episode {entry.number} was imported from {was}, which {here}: {_WAY_OUT}")
    return store


def _look(paths: dict[str, Path], before: EpisodeStore | None, progress: bool) -> dict[str, Video]:
    """Hash and decode every new video: what its header says of frames and times is not believed."""
    videos = {}
    for number, (name, path) in counted(list(enumerate(paths.items())), "counting frames", progress):
        with open_file(path) as (file, _):
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if before is not None and number in before:
            was = before.mapped(number).meta
            if was.get("sha256") != sha256:
                raise UsageError(
                    f"{path} has changed since it was imported as episode {number} of {before.path}: {_WAY_OUT}"
                )
            videos[name] = Video(path, sha256, was["frames"], tuple(was["size"]), was["fps"], None)
            continue
        try:
            decoded = decode_times(path)
        except RunError as error:
            raise RunError(f"{path.parent}: {error}; mend it (ffmpeg -i {path.name} new.mp4) or take it away") from None
        videos[name] = Video(path, sha256, len(decoded.times), decoded.size, frame_rate(decoded), decoded)
    return videos


def _steps(track: Track | None, video: Video, every: int) -> Steps:
    kept, whole = video.num_kept(every), video.num_frames
    if kept < 2:
        what = f" ({whole} before one of {every} is kept)" if every > 1 else ""
        raise UsageError(f"{video.path} has {plural(kept, 'frame')}{what}: an episode needs two")
    if track is None:
        track = Track(str(video.path), list(range(kept - 1)), [[0]] * (kept - 1), [0.0] * (kept - 1))
        track.endings = [(False, False, False)] * (kept - 1)
    return steps_of(track, video.path, kept, every, whole)


def _episode(video: Video, actions: np.ndarray, steps: Steps, size: tuple[int, int], fit: Fit, every: int) -> Episode:
    assert video.decoded is not None
    frames = read_video(video.path, video.decoded, lambda frame: np.array(fit_image(frame, size, fit)), every)
    return Episode(np.stack(frames), actions, steps.rewards, meta=video.about(), sounds=None, **steps.ending)


def _check_same(before: EpisodeStore, number: int, video: Video, actions: np.ndarray, steps: Steps) -> None:
    """Refuse to continue where the table no longer says what was imported."""
    mapped, entry = before.mapped(number), before.entry(number)
    found = {key: getattr(entry, key) for key in steps.ending}
    found |= {"actions": mapped.actions.tolist(), "rewards": mapped.rewards.tolist()}
    given = {**steps.ending, "actions": actions.tolist(), "rewards": steps.rewards.tolist()}
    problem = f"{steps.source} says other things of {video.path.name} than when it was imported"
    require_same(found, given, (f"{before.path} has", "the table"), problem, _WAY_OUT)


def _range(values: list[float]) -> str:
    least, most = f"{min(values):.4g}", f"{max(values):.4g}"
    return least if least == most else f"{least} to {most}"


def _say_sizes(videos: dict[str, Video], size: tuple[int, int], fit: Fit, every: int) -> None:
    shapes = sorted({video.size for video in videos.values()})
    ends = shapes if len(shapes) < 3 else (shapes[0], shapes[-1])
    shown = " to ".join(f"{height}x{width}" for height, width in ends)
    rates = [video.fps for video in videos.values()]
    frames = sum(video.num_kept(every) for video in videos.values())
    kept = f", one frame of {every} kept" if every > 1 else ""
    stored = f"{size[0]}x{size[1]}"
    counts = plural(len(videos), "video"), plural(frames, "frame")
    print(f"{counts[0]} of {shown} at {_range(rates)} fps -> {counts[1]} of {stored}{kept}", flush=True)
    change = max(abs(math.log(width / height / (size[1] / size[0]))) for height, width in shapes)
    if change > math.log(1 + ASPECT_CHANGE):
        done = {"squash": "are squashed", "pad": "get black bars", "crop": "lose their edges"}[fit]
        print(
            f"pictures {done}: {shown} is another shape than {stored} (--fit squash, pad or crop, or --size)",
            flush=True,
        )
    if unsteady := [video.path.name for video in videos.values() if video.decoded and not is_steady(video.decoded)]:
        print(
            f"frames at changing times in {', '.join(unsteady[:3])}{', ...' if unsteady[3:] else ''}: each counts once"
        )
    if max(rates) > 1.1 * min(rates):
        print(f"rates differ, {_range(rates)} fps: a step lasts longer in some videos than in others", flush=True)


def _say_actions(table: ActionTable, space: ActionSpace, steps: dict[str, Steps]) -> None:
    parts = f", columns {', '.join(table.parts)}" if table.parts else ""
    if space.kind == "box":
        what = f"real, {_range([*space.low])} to {_range([*space.high])}"
    else:
        names = ", ".join(space.names) if space.kind == "discrete" else ""
        what = names or f"choices of {' x '.join(map(str, space.nvec))}"
    print(f"actions of {table.source}: {space.kind} ({what}{parts})", flush=True)
    if dropped := [name for name, part in steps.items() if part.dropped]:
        where = f"{len(dropped)} of {plural(len(steps), 'video')}"
        print(f"as many actions as frames in {where}: the last action, which leads nowhere, is left out", flush=True)
