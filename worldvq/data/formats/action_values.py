"""What a table of actions says as stored actions: which space they are of, and how many belong to a video."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldvq.data.formats.action_tables import ENDINGS, Track
from worldvq.errors import UsageError, did_you_mean
from worldvq.files.differences import printable
from worldvq.types import ActionSpace

MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class SpaceOptions:
    """What people say of their actions beside the table; None is read off the table.

    Attributes:
        num_actions: Choices of a discrete action; 1 + the largest otherwise.
        names: Of the choices, in order; sorted otherwise.
        low: Lower bounds, one for all parts of an action or one each; with bounds any number is real.
        high: Upper bounds.
    """

    num_actions: int | None = None
    names: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Steps:
    """The T transitions of one video as a table has them: T rows of values, T rewards and how it ended."""

    source: str
    rows: list[list[Any]]
    rewards: np.ndarray
    ending: dict[str, bool]
    dropped: bool
    """Whether there was one action more, which leads nowhere."""


def steps_of(track: Track, path: Path, num_frames: int, every: int = 1, whole: int = 0) -> Steps:
    """Check an episode's rows against its frames, in order of step.

    Args:
        track: The rows.
        path: The video, for errors.
        num_frames: Frames that are kept.
        every: Of how many frames one is kept.
        whole: Frames before that.

    Raises:
        UsageError: T + 1 frames have neither T nor T + 1 actions, or rows are missing, double or contradictory.
    """
    video = path.name
    order = sorted(range(len(track.steps)), key=track.steps.__getitem__)
    for expected, index in enumerate(order):
        if (step := track.steps[index]) != expected:
            problem = f"has no step {expected}" if step > expected else f"has the step {step} twice"
            raise UsageError(f"{track.source} {problem} of '{video}': steps count the kept frames 0, 1, 2, ...")
    found = len(order)
    if found not in (num_frames - 1, num_frames):
        if every > 1 and found in (whole - 1, whole):
            raise UsageError(
                f"{track.source} has {found} actions for '{video}', one for each of {whole} frames, but of every "
                f"{every} one is kept: give the {num_frames - 1} actions that lead from kept frame to kept frame"
            )
        way_out = "cut the video, or mend the table"
        if path.suffix.lower() == ".gif":
            way_out = "a GIF keeps frames that repeat only once, so make it an mp4 of all frames, or mend the table"
        raise UsageError(
            f"{track.source} has {found} actions for '{video}', which has {num_frames} frames: {num_frames - 1} are "
            f"needed, action t leads from frame t to frame t + 1; {way_out}"
        )
    dropped = found == num_frames
    kept = order[: num_frames - 1]
    rows = [track.actions[index] for index in kept]
    for step, row in enumerate(rows):
        if any(value is None for value in row):
            shift = ": action t leads from frame t to frame t + 1, move the actions up by one" if step == 0 else ""
            raise UsageError(f"{track.source} has no action for step {step} of '{video}'{shift}")
    rewards = np.array([track.rewards[index] for index in order], np.float64)
    if (wrong := ~(np.abs(rewards) <= MOST)).any():
        step = int(np.argmax(wrong))
        raise UsageError(
            f"{track.source}: the reward of step {step} of '{video}' is {rewards[step]}, no finite float32"
        )
    if dropped:  # its reward and ending belong to the last transition that is seen (docs/architecture.md)
        rewards[-2] += rewards[-1]
        rewards = rewards[:-1]
    ending = _ending([track.endings[index] for index in order], num_frames - 2, track.source, video)
    return Steps(track.source, rows, rewards.astype(np.float32), ending, dropped)


def _ending(flags: list[tuple[bool, ...]], last: int, source: str, video: str) -> dict[str, bool]:
    """How an episode ended; where nothing is said the video was over, which is a limit outside the task."""
    for step, row in enumerate(flags[:last]):
        if any(row):
            raise UsageError(f"{source}: '{video}' is {ENDINGS[row.index(True)]} at step {step} and goes on after it")
    terminated, truncated, interrupted = (any(column) for column in zip(*flags[last:], strict=True))
    truncated = truncated or not (terminated or interrupted)
    terminated = terminated and not truncated
    return {
        "terminated": terminated,
        "truncated": truncated,
        "interrupted": interrupted and not (terminated or truncated),
    }


def choose_space(episodes: Iterable[Steps], parts: tuple[str, ...], options: SpaceOptions, source: str) -> ActionSpace:
    """Return the space that all actions of a table are of.

    Whole numbers are choices, one column of them ``discrete`` and several ``multi_discrete``; names are choices too;
    anything else is a ``box`` with the bounds that occur. Columns that are called something name the parts.

    Raises:
        UsageError: They are of no space, or not of the one that ``options`` ask for.
    """
    rows = [row for steps in episodes for row in steps.rows]
    values = {type(value) for row in rows for value in row}
    try:
        if str in values or options.names:
            return _named(rows, parts, options, source)
        if options.low or options.high or (float in values and options.num_actions is None):
            return _box(np.array(rows, np.float64), parts, options, source)
        array = np.array(rows, np.float64)
        least = array.min()
        if least < 0 or (array != np.round(array)).any():
            wrong = least if least < 0 else array[array != np.round(array)][0]
            raise UsageError(f"{source}: choices count from 0, got {wrong:g}: real actions have --low and --high")
        counts = [int(most) + 1 for most in array.max(0)]
        if options.num_actions is None:
            return ActionSpace("multi_discrete" if parts else "discrete", tuple(counts), names=_part_names(parts))
        if parts or counts[0] > options.num_actions:
            got = f"{len(parts)} columns" if parts else f"the action {counts[0] - 1}"
            raise UsageError(f"{source}: --num-actions {options.num_actions} is for one column of 0 and up, got {got}")
        return ActionSpace("discrete", (options.num_actions,))
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(f"{source}: {error}") from None


def _named(rows: list[list[Any]], parts: tuple[str, ...], options: SpaceOptions, source: str) -> ActionSpace:
    if parts:
        raise UsageError(f"{source}: names are for a single column 'action', here {len(parts)} are the parts of one")
    if (
        not options.names
        and (number := next((row[0] for row in rows if not isinstance(row[0], str)), None)) is not None
    ):
        raise UsageError(
            f"{source}: actions are names or numbers, but '{number}' stands among names: give --action-names"
        )
    names = options.names or tuple(sorted({str(row[0]) for row in rows}))
    count = options.num_actions or len(names)
    if count != len(names) or len(set(names)) != len(names):
        raise UsageError(f"{source}: {count} actions need as many names, each its own; got {', '.join(names)}")
    return ActionSpace("discrete", (count,), names=names)


def _box(array: np.ndarray, parts: tuple[str, ...], options: SpaceOptions, source: str) -> ActionSpace:
    width = array.shape[1]
    if (wrong := ~(np.abs(array) <= MOST)).any():
        raise UsageError(f"{source}: an action is no finite float32: {array[wrong][0]}")
    array = array.astype(np.float32)  # in which they are stored
    if any(len(bounds) not in (0, 1, width) for bounds in (options.low, options.high)):
        raise UsageError(f"{source}: bounds are one number for all {width} parts of an action, or {width} numbers")
    low = options.low or tuple(array.min(0).tolist())
    high = options.high or tuple(array.max(0).tolist())
    low, high = (tuple(np.broadcast_to(np.array(bounds), (width,)).tolist()) for bounds in (low, high))
    if wrong := [f"{least:g} to {most:g}" for least, most in zip(low, high, strict=True) if least > most]:
        raise UsageError(f"{source}: bounds of an action the wrong way round: {wrong[0]}")
    return ActionSpace("box", low=low, high=high, names=_part_names(parts))


def _part_names(parts: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(part.removeprefix("action_") for part in parts)
    return () if all(name.isdecimal() for name in names) else names


def encode(steps: Steps, space: ActionSpace, video: str) -> np.ndarray:
    """Return the actions of an episode in the stored form, (T, *space.shape).

    Raises:
        UsageError: One is not of the space.
    """
    width = math.prod(space.shape)
    values = np.empty((len(steps.rows), width), space.dtype)
    low, high = (np.array(space.low, np.float32), np.array(space.high, np.float32)) if space.kind == "box" else (0, 0)
    choices = np.array(space.nvec) - 1
    for step, row in enumerate(steps.rows):
        where = f"{steps.source}: step {step} of '{video}'"
        if len(row) != width:
            raise UsageError(f"{where}: an action of {len(row)} parts, {space.kind} actions have {width}")
        if space.kind == "discrete" and space.names:
            row = [_choice(row[0], space, where)]
        if any(isinstance(value, str) for value in row):
            raise UsageError(f"{where}: an action is a number, got '{printable(str(row[0]))}'")
        numbers = np.array(row, np.float64)
        if space.kind == "box":
            wrong = ~(np.abs(numbers) <= MOST)
            numbers = np.where(wrong, np.inf, numbers).astype(np.float32)
            wrong |= (numbers < low) | (numbers > high)
        else:
            wrong = (numbers != np.round(numbers)) | (numbers < 0) | (numbers > choices)
        if wrong.any():
            bounds = space.nvec or (space.low, space.high)
            raise UsageError(f"{where}: the action {numbers[wrong][0]:g} lies outside {space.kind} {bounds}")
        values[step] = numbers
    return values.reshape(len(values), *space.shape)


def _choice(value: Any, space: ActionSpace, where: str) -> int:
    if value in space.names:
        return space.names.index(value)
    if isinstance(value, int) and 0 <= value < len(space.names):
        return value
    hint = did_you_mean(str(value), space.names)
    raise UsageError(f"{where}: no action '{printable(str(value))}'{hint}: there are {', '.join(space.names)}")
