"""Actions of an environment in the form in which they are stored, there and back; nested ones factor by factor.

Whole numbers are choices: Discrete, MultiDiscrete, MultiBinary and Boxes of integers become one choice, or one choice a
factor. Real numbers become a vector. Where both are there (as in ``VizdoomDeathmatch-v1``) all become one vector, in
which a choice of n is a number from 0 to n - 1 that is rounded when it is played.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from worldvq.errors import UsageError
from worldvq.types import MAX_CHOICES, ActionSpace


class Actions:
    """Between an environment's own action space and the stored one.

    Attributes:
        space: What is stored.
        changes: Whether playing a stored action may change it, as rounding and clipping do: then what was played,
            ``to_stored(to_env(action))``, is what has to be stored.
    """

    def __init__(self, space: spaces.Space, names: tuple[str, ...], env_id: str):
        """Adapt a space.

        Args:
            space: The environment's.
            names: Of its choices if it is Discrete, else of its factors; left out where they are not as many.
            env_id: For messages.

        Raises:
            UsageError: A part of it can be neither chosen nor measured; names the part.
        """
        self._space = space
        self._leaves = list(_leaves(space, "", env_id))
        choices = [n for leaf in self._leaves for n in leaf.nvec]
        mixed = any(leaf.nvec for leaf in self._leaves) and not all(leaf.nvec for leaf in self._leaves)
        as_choices = not mixed and bool(choices)
        self.changes = not as_choices
        if as_choices and len(choices) == 1:
            kept = names if len(names) == choices[0] else ()
            self.space = ActionSpace("discrete", (choices[0],), names=kept)
            return
        low, high = (np.concatenate([getattr(leaf, side) for leaf in self._leaves]) for side in ("low", "high"))
        kept = names if len(names) == len(low) else ()
        if as_choices:
            self.space = ActionSpace("multi_discrete", tuple(choices), names=kept)
        else:
            self.space = ActionSpace("box", low=tuple(map(float, low)), high=tuple(map(float, high)), names=kept)

    def to_env(self, action: Any) -> Any:
        """Turn a stored action into what the environment's own action space takes."""
        values = np.asarray(action).reshape(-1)
        parts, begin = [], 0
        for leaf in self._leaves:
            parts.append(leaf.to_env(values[begin : begin + leaf.count]))
            begin += leaf.count
        return _nest(self._space, iter(parts))

    def to_stored(self, action: Any) -> np.ndarray:
        """Turn an action of the environment's own space into a stored one; the inverse of :meth:`to_env`."""
        parts = [leaf.to_stored(part) for leaf, part in zip(self._leaves, _flatten(self._space, action), strict=True)]
        return np.concatenate(parts).astype(self.space.dtype).reshape(self.space.shape)


class _Leaf:
    """A part that is no Dict or Tuple: ``count`` factors, as choices (``nvec``) or between bounds."""

    def __init__(self, space: Any, env_id: str, key: str):
        self.space = space
        self.start: Any = 0
        self.nvec: tuple[int, ...] = ()
        if isinstance(space, spaces.Discrete):
            self.nvec, self.start = (int(space.n),), int(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            self.nvec, self.start = tuple(map(int, space.nvec.reshape(-1))), space.start.reshape(-1)
        elif isinstance(space, spaces.MultiBinary):
            self.nvec = (2,) * int(np.prod(space.shape))
        elif isinstance(space, spaces.Box) and space.dtype.kind in "iu":
            low, high = (side.reshape(-1).astype(object) for side in (space.low, space.high))
            self.nvec, self.start = tuple(int(n) for n in high - low + 1), low.astype(space.dtype)
        elif not isinstance(space, spaces.Box):
            raise _refused(space, env_id, key, "")
        if not all(n <= MAX_CHOICES for n in self.nvec):
            raise _refused(space, env_id, key, f": {max(self.nvec):,} choices are too many")
        if self.nvec:
            self.low, self.high = np.zeros(len(self.nvec)), np.array(self.nvec) - 1.0
        else:
            box: Any = space
            self.low, self.high = (side.reshape(-1).astype(np.float64) for side in (box.low, box.high))
        self.count = len(self.low)

    def to_env(self, values: np.ndarray) -> Any:
        space = self.space
        if not self.nvec:  # float32 as stored may lie a little outside of float64 bounds
            real = np.clip(values.astype(np.float64), self.low, self.high).astype(space.dtype)
            return real.reshape(space.shape)
        chosen = np.rint(np.clip(values, self.low, self.high)).astype(np.int64)
        if isinstance(space, spaces.Discrete):
            return int(chosen[0]) + self.start  # an int, which some environments insist on
        return (chosen + self.start).reshape(space.shape).astype(space.dtype)

    def to_stored(self, action: Any) -> np.ndarray:
        values = np.asarray(action).reshape(-1)
        return values.astype(np.int64) - self.start if self.nvec else values


def _refused(space: Any, env_id: str, key: str, why: str) -> UsageError:
    where = f" (its part '{key}')" if key else ""
    return UsageError(
        f"'{env_id}' has the action space {short_space(space)}{where}, which cannot be stored{why}: choose env.kwargs "
        "with which it offers Discrete, MultiDiscrete, MultiBinary or Box actions, or Dicts and Tuples, or wrap it"
    )


def short_space(space: Any) -> str:
    """Return a space as one line of at most 160 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _items(space: Any) -> list[tuple[Any, Any]]:
    return list(space.items()) if isinstance(space, spaces.Dict) else list(enumerate(space))


def _leaves(space: Any, key: str, env_id: str) -> Iterator[_Leaf]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for name, part in _items(space):
            yield from _leaves(part, f"{key}.{name}" if key else str(name), env_id)
    else:
        yield _Leaf(space, env_id, key)


def _flatten(space: Any, action: Any) -> Iterator[Any]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for name, part in _items(space):
            yield from _flatten(part, action[name])
    else:
        yield action


def _nest(space: Any, parts: Iterator[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _nest(part, parts) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(part, parts) for part in space)
    return next(parts)


def names_of(env: Any) -> tuple[str, ...]:
    """Return the names of an environment's actions from wherever environments keep them, or ().

    ``action_names`` (ours), ``get_action_meanings()`` (Atari), an ``actions`` enumeration (MiniGrid, MiniWorld), or the
    table of an ``action_type`` (highway-env).
    """
    inner = env.unwrapped
    names: Any = getattr(inner, "action_names", None)
    if names is None and callable(getattr(inner, "get_action_meanings", None)):
        names = inner.get_action_meanings()
    if names is None:
        members = getattr(getattr(inner, "actions", None), "__members__", None)
        names = members and sorted(members, key=lambda name: int(members[name]))
    if names is None:
        table = getattr(getattr(inner, "action_type", None), "actions", None)
        names = [table[index] for index in sorted(table)] if isinstance(table, dict) else None
    return tuple(str(name) for name in names or ())
