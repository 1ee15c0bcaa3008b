"""Actions as people and programs give them, checked against an action space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.errors import CorruptFileError, UsageError, did_you_mean, plural
from worldvq.files.arrays import read_array
from worldvq.files.differences import printable
from worldvq.files.reading import read_json
from worldvq.types import ActionSpace, as_tensor


def find_action(space: ActionSpace, name: str) -> np.ndarray:
    """Return the stored action of a name or number, for instance ``forward``, ``TURN_RIGHT``, ``3``, ``0,1,0``.

    Raises:
        UsageError: There is none; the names are listed.
    """
    shown = printable(name)
    if space.kind == "discrete":
        names = {option.lower(): index for index, option in enumerate(space.names)}
        index = names.get(name.lower(), int(name) if name.isdecimal() else -1)
        if not 0 <= index < space.nvec[0]:
            options = ", ".join(space.names) or f"0 to {space.nvec[0] - 1}"
            hint = did_you_mean(name.lower(), names)
            raise UsageError(f"no action '{shown}'{hint}: recorded, paper, a .npy or .json file, or one of {options}")
        return np.asarray(index, space.dtype)
    try:
        action = np.array([float(part) for part in name.split(",")])
    except ValueError:
        action = np.empty(0)
    if action.shape != space.shape:
        numbers = plural(space.shape[0], "number")
        raise UsageError(f"--actions {shown}: write {numbers} with commas between, recorded, or a file")
    return check_actions(action[None], space, f"--actions {shown}")[0]


def read_actions(path: Path, space: ActionSpace, num_steps: int) -> np.ndarray:
    """Read ``num_steps`` actions from a .npy array or a .json list.

    Raises:
        UsageError: No such file, too few, or out of range.
        CorruptFileError: The file cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"no such file of actions: {path}")
    try:
        actions = _read_list(path, space) if path.suffix == ".json" else read_array(path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # on a broken header numpy raises errors of many types
        problem = str(error).removeprefix(f"{path}: ")
        raise CorruptFileError(f"{path} cannot be read as actions: {problem}") from None
    if actions.shape[:1] < (num_steps,) or actions.shape[1:] != space.shape:
        raise UsageError(f"{path}: actions {list(actions.shape)}, but {[num_steps, *space.shape]} are needed")
    return check_actions(actions[:num_steps], space, str(path))


def _read_list(path: Path, space: ActionSpace) -> np.ndarray:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError("it holds no list")
    return np.asarray([find_action(space, row) if isinstance(row, str) else row for row in rows])


def check_actions(actions: np.ndarray, space: ActionSpace, source: str) -> np.ndarray:
    """Return actions (..., *space.shape) in the stored dtype, if all are within the space.

    Raises:
        UsageError: One is not; names it and what there is.
    """
    if actions.dtype.kind == "b" and set(space.nvec) == {2}:  # what MultiBinary is
        actions = actions.astype(space.dtype)
    if actions.dtype.kind not in "iuf":
        raise UsageError(f"{source}: actions are numbers, these are {actions.dtype}")
    if space.kind == "box":  # as float32, in which they are stored
        actions = actions.astype(np.float32)
        low, high = np.array(space.low, np.float32), np.array(space.high, np.float32)
    else:
        low, high = 0, np.array(space.nvec).reshape(space.shape) - 1
    wrong = ~np.isfinite(actions) | (actions < low) | (actions > high)
    if space.kind != "box":
        wrong |= actions != np.round(actions)
    if wrong.any():
        bounds = space.nvec or (space.low, space.high)
        raise UsageError(f"{source}: the action {actions[wrong][0]} lies outside {space.kind} {bounds}")
    return actions.astype(space.dtype)


def stored_actions(actions: ArrayLike | Tensor, space: ActionSpace, leading: tuple[int, ...], source: str) -> Tensor:
    """Return actions as a tensor (*leading, *space.shape) in the stored dtype.

    Args:
        actions: A tensor, an array, a list or a number; one single action stands for all.
        space: What an action is.
        leading: Axes before those of an action: rows, or rows and steps.
        source: Says in an error whose actions they are.

    Raises:
        UsageError: Another shape, or an action that is none of the space.
    """
    given = as_tensor(actions).detach().cpu()
    array = (given.float() if given.is_floating_point() else given).numpy()  # NumPy has no bfloat16
    if array.shape == space.shape:
        array = np.broadcast_to(array, (*leading, *space.shape))
    if array.shape != (*leading, *space.shape):
        raise UsageError(f"actions {list(array.shape)} of {source}, this world takes {[*leading, *space.shape]}")
    return torch.from_numpy(np.ascontiguousarray(check_actions(array, space, source)))
