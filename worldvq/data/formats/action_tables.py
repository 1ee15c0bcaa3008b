"""Tables of actions that belong to videos: csv, jsonl, or a npy file beside each video.

``actions[t]`` leads from frame t to frame t + 1. A csv has a header: ``episode`` (or ``video``, ``file``: name of the
video), ``step`` (from 0; without it rows count as they stand), ``action`` or a column for every part of an action, and
if there are any ``reward``, ``terminated``, ``truncated`` and ``interrupted``. A jsonl has a line an episode:
``{"episode": "a", "actions": [...], "rewards": [...], "terminated": true}``.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldvq.errors import CorruptFileError, UsageError, did_you_mean
from worldvq.files.arrays import read_array
from worldvq.files.differences import printable
from worldvq.files.reading import open_file, parse_json

ENDINGS = ("terminated", "truncated", "interrupted")
_EPISODE = ("episode", "video", "file")
_KNOWN = (*_EPISODE, "step", "reward", *ENDINGS)
_NO_ACTION = ("done", "frame", "id", "index", "info", "name", "return", "seed", "t", "time", "timestamp")
_WORDS = {"true": 1, "false": 0}


@dataclass
class Track:
    """What a table says of one episode: a value a step, and each action as a list of values, None where it is empty."""

    source: str
    steps: list[int] = field(default_factory=list)
    actions: list[list[Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    endings: list[tuple[bool, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class ActionTable:
    """The tracks by episode as the table names it, and the names of an action's parts; none is a single action."""

    source: str
    tracks: dict[str, Track]
    parts: tuple[str, ...] = ()


def read_table(path: Path) -> ActionTable:
    """Read a .csv or .jsonl table.

    Raises:
        UsageError: It is no such table; the message names the line and the way out.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(
            f"{path}: a table of actions is a .csv or .jsonl file, or a folder with a NAME.npy for every video"
        )
    if not path.is_file():
        raise UsageError(f"no such table of actions: {path}")
    try:
        with open_file(path) as (file, _):
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 ({error}): save the table as UTF-8") from None
    return (_read_csv if path.suffix.lower() == ".csv" else _read_jsonl)(path, text)


def read_arrays(folder: Path, names: Iterable[str]) -> ActionTable:
    """Read NAME.npy, (T,) or (T, parts), for every name.

    Raises:
        UsageError: One is missing or cannot be read.
    """
    tracks = {}
    for name in names:
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise UsageError(f"there are no actions for the video '{name}': no {path}")
        try:
            array = read_array(path)
        except Exception as error:  # on a broken header NumPy raises errors of many types
            raise UsageError(f"{path} cannot be read as actions: {str(error).removeprefix(f'{path}: ')}") from None
        if array.ndim not in (1, 2):
            raise UsageError(f"{path}: actions are (T,) or (T, parts), these are {list(array.shape)}")
        tracks[name] = _track(str(path), array.astype(int) if array.dtype == bool else array)
    return ActionTable(str(folder), tracks, _parts_of(tracks))


def _read_csv(path: Path, text: str) -> ActionTable:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    tracks: dict[str, Track] = {}
    try:
        columns = [name.strip() for name in next(rows, [])]
        episode, actions = _columns(path, columns)
        places = {name: columns.index(name) for name in columns}
        for row in rows:
            if not row:
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(columns):
                raise UsageError(f"{where}: {len(row)} cells under {len(columns)} columns")
            track = tracks.setdefault(row[places[episode]].strip(), Track(str(path)))
            _add_row(track, {name: row[place].strip() for name, place in places.items()}, actions, where)
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}") from None
    if not tracks:
        raise UsageError(f"{path} holds no rows of actions")
    return ActionTable(str(path), tracks, () if actions == ["action"] else tuple(actions))


def _columns(path: Path, columns: list[str]) -> tuple[str, list[str]]:
    """Return the column that names the episode, and those of the action."""
    shown = printable(", ".join(columns))
    if len(set(columns)) != len(columns) or "" in columns or not columns:
        raise UsageError(f"{path}: columns need names, each its own; got {shown or 'an empty file'}")
    episodes = [name for name in columns if name in _EPISODE]
    if len(episodes) != 1:
        raise UsageError(f"{path}: one column 'episode' has to name the video, got the columns {shown}")
    others = [name for name in columns if name not in _KNOWN]
    actions = [name for name in others if name == "action"] or [name for name in others if name.startswith("action_")]
    # Without a column that says so the others are the parts of an action, unless they look like something else.
    unknown = [name for name in others if name not in actions] if actions else [n for n in others if _is_no_part(n)]
    if unknown:
        raise UsageError(
            f"{path}: unknown column '{printable(unknown[0])}'{did_you_mean(unknown[0], _KNOWN)}: there may be "
            f"{', '.join(_KNOWN)} and action, or one for every part of an action as in action_steer, action_gas"
        )
    if not others:
        raise UsageError(f"{path}: no column 'action', and none for parts of an action; got {shown}")
    return episodes[0], actions or others


def _is_no_part(name: str) -> bool:
    return name.lower() in _NO_ACTION or bool(difflib.get_close_matches(name.lower(), _KNOWN, cutoff=0.75))


def _add_row(track: Track, row: dict[str, str], actions: list[str], where: str) -> None:
    step = row.get("step", str(len(track.steps)))
    if not re.fullmatch(r"\d{1,15}(\.0)?", step):
        raise UsageError(f"{where}: a step is a whole number from 0, got '{printable(step)}'")
    track.steps.append(int(float(step)))
    track.actions.append([cell(row[name]) for name in actions])
    reward = row.get("reward") or "0"
    try:
        track.rewards.append(float(reward))
    except ValueError:
        raise UsageError(f"{where}: a reward is a number, got '{printable(reward)}'") from None
    flags = [cell(row.get(name, "")) for name in ENDINGS]
    if any(flag not in (None, 0, 1) for flag in flags):
        raise UsageError(f"{where}: {', '.join(ENDINGS)} are 0 or 1, got {printable(', '.join(map(str, flags)))}")
    track.endings.append(tuple(bool(flag) for flag in flags))


def cell(text: str) -> int | float | str | None:
    """Return what a cell of a csv says: a whole number, a number, a name, or None if it is empty."""
    if not text or text.lower() == "nan":
        return None
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return _WORDS.get(text.lower(), text)


def _read_jsonl(path: Path, text: str) -> ActionTable:
    tracks: dict[str, Track] = {}
    keys = ("episode", "actions", "rewards", *ENDINGS)
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = parse_json(line.encode(), where)
        except CorruptFileError as error:
            raise UsageError(str(error)) from None
        if not isinstance(row, dict) or "episode" not in row or not isinstance(row.get("actions"), list):
            raise UsageError(f'{where}: a line is an episode: {{"episode": "NAME", "actions": [...]}}, got {line[:60]}')
        if unknown := [key for key in row if key not in keys]:
            raise UsageError(f"{where}: unknown key '{printable(unknown[0])}'{did_you_mean(unknown[0], keys)}")
        name = str(row["episode"])
        if name in tracks:
            raise UsageError(f"{where}: the episode '{printable(name)}' stands twice")
        tracks[name] = _track(where, row["actions"], row.get("rewards"), [bool(row.get(key)) for key in ENDINGS])
    if not tracks:
        raise UsageError(f"{path} holds no episodes")
    return ActionTable(str(path), tracks, _parts_of(tracks))


def _track(source: str, actions: Any, rewards: Any = None, ending: list[bool] | None = None) -> Track:
    """Make a track of lists or arrays."""
    rows = [list(row) if isinstance(row, list | np.ndarray) else [row] for row in actions]
    rows = [[value.item() if isinstance(value, np.generic) else value for value in row] for row in rows]
    rows = [[int(value) if isinstance(value, bool) else value for value in row] for row in rows]
    if any(not isinstance(value, int | float | str | None) for row in rows for value in row):
        raise UsageError(f"{source}: an action is a number, a name, or a list of numbers")
    rewards = [0.0] * len(rows) if rewards is None else rewards
    if not isinstance(rewards, list) or len(rewards) != len(rows):
        raise UsageError(f"{source}: {len(rows)} actions need as many rewards")
    if any(not isinstance(value, int | float) for value in rewards):
        raise UsageError(f"{source}: rewards are numbers")
    endings = [(False,) * len(ENDINGS)] * len(rows)
    if rows:
        endings[-1] = tuple(ending or endings[-1])
    return Track(source, list(range(len(rows))), rows, [float(value) for value in rewards], endings)


def _parts_of(tracks: dict[str, Track]) -> tuple[str, ...]:
    """Names of an action's parts where a file gives none."""
    widths = {len(row) for track in tracks.values() for row in track.actions}
    if len(widths) > 1:
        raise UsageError(f"actions of {' and '.join(map(str, sorted(widths)))} parts: all need the same")
    width = max(widths, default=1)
    return () if width == 1 else tuple(f"action_{index}" for index in range(width))
