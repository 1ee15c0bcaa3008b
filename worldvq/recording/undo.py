"""Which action undoes which: the table that ``retrace`` plays by, in the words of a config and as actions.

Of a discrete space every choice is an action. Of several factors an action is what is pressed, factor by factor, and
what undoes it is what undoes each part of it. Of a box it is the negated action or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from worldvq.errors import UsageError, did_you_mean
from worldvq.types import ActionSpace

Undo = dict[str, str] | Literal["negated"]
"""From an action's name to that of the action that undoes it; or ``negated``, for a box."""
Inverse = Callable[[np.ndarray], np.ndarray | None]
"""From a stored action to the one that undoes it, or None where none is known."""


def parts_of(space: ActionSpace) -> dict[str, np.ndarray]:
    """Return the actions that a table can name: the choices of a discrete space, else each factor alone in each choice.

    A factor's choice 0 is taken for its rest. A box has none.
    """
    if space.kind == "discrete":
        return {space.label(choice): np.array(choice) for choice in range(space.nvec[0])}
    parts = {}
    for factor, choices in enumerate(space.nvec):
        name = space.names[factor] if space.names else str(factor)
        for choice in range(1, choices):
            action = np.zeros(len(space.nvec), np.int64)
            action[factor] = choice
            parts[name if choices == 2 else f"{name}={choice}"] = action
    return parts


def completed(undo: Undo) -> Undo:
    """Return a table in which a pair holds both ways, unless it says otherwise itself."""
    if isinstance(undo, str):
        return undo
    both: dict[str, str] = {}
    for action, back in undo.items():
        both[action] = back
        if back not in undo:
            both.setdefault(back, action)
    return both


def check_undo(space: ActionSpace, undo: Undo) -> None:
    """Refuse a table that does not fit the actions.

    Raises:
        UsageError: It names an action that there is not, or is of another kind.
    """
    if (undo == "negated") != (space.kind == "box") and undo != {}:
        fitting = "negated" if space.kind == "box" else "{action: the action that undoes it}"
        raise UsageError(f"record.undo is {undo}: for {space.kind} actions write record.undo={fitting}, or {{}}")
    if isinstance(undo, str) or not undo:
        return
    known = parts_of(space)
    for name in [name for pair in undo.items() for name in pair]:
        if name not in known:
            there = ", ".join(list(known)[:20]) + (", ..." if len(known) > 20 else "")
            raise UsageError(f"record.undo: there is no action '{name}'{did_you_mean(name, known)}: {there}")


def inverse_of(space: ActionSpace, undo: Undo) -> Inverse:
    """Return what the table says of stored actions.

    Raises:
        UsageError: As :func:`check_undo`.
    """
    check_undo(space, undo)
    if isinstance(undo, str):
        low, high = np.array(space.low), np.array(space.high)
        return lambda action: -action if ((-action >= low) & (-action <= high)).all() else None
    if not undo:
        return lambda action: None
    parts = parts_of(space)
    pairs = [(parts[name], parts[back]) for name, back in undo.items()]
    if space.kind == "discrete":
        actions = {int(action): back for action, back in pairs}
        return lambda action: actions.get(int(action))
    moves = {_pressed(action)[0]: _pressed(back)[0] for action, back in pairs}

    def inverse(action: np.ndarray) -> np.ndarray | None:
        back = [moves.get(part) for part in _pressed(action)]
        factors = {part[0] for part in back if part is not None}
        if not back or len(factors) < len(back):  # nothing pressed, a part without an inverse, or two on one factor
            return None
        result = np.zeros_like(action)
        for part in back:
            assert part is not None
            result[part[0]] = part[1]
        return result

    return inverse


def _pressed(action: np.ndarray) -> list[tuple[int, int]]:
    """Factors that are not at rest, with their choices."""
    return [(int(factor), int(action[factor])) for factor in np.flatnonzero(action)]


def describe_undo(undo: Undo) -> str:
    """Say in one line what undoes what."""
    if isinstance(undo, str):
        return "undoes: an action by its negative"
    if not undo:
        return "no action is known to undo another one: retrace only explores (record.undo can say so)"
    pairs = []
    for action, back in undo.items():
        if f"{back} <-> {action}" not in pairs:
            pairs.append(f"{action} <-> {back}" if undo.get(back) == action else f"{action} by {back}")
    return f"undoes: {', '.join(pairs)}"
