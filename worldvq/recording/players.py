"""Players that explore at random: what is drawn, for how long it is kept, and what of it is undone."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldvq.recording.undo import Inverse
from worldvq.types import UNBOUNDED, ActionSpace

RETURNS = 0.5
"""How often ``retrace`` turns back after a stretch. A return is about as long as a stretch."""
FADING = 0.9
"""What is left of the count of an action's stretches after another stretch."""


def random_action(space: ActionSpace, rng: np.random.Generator) -> np.ndarray:
    """Draw a stored action: uniformly between bounds, and normally beyond the bound of a side that has only one.

    Bounds of a million and more count as none (:data:`worldvq.types.UNBOUNDED`).
    """
    if space.kind != "box":
        return rng.integers(0, np.array(space.nvec)).reshape(space.shape)
    low, high = np.array(space.low), np.array(space.high)
    has_low, has_high = np.abs(low) < UNBOUNDED, np.abs(high) < UNBOUNDED
    both = has_low & has_high
    uniform = rng.uniform(np.where(both, low, 0), np.where(both, high, 1))
    normal = rng.standard_normal(len(low))
    beyond = np.where(has_low, low + np.abs(normal), np.where(has_high, high - np.abs(normal), normal))
    return np.where(both, uniform, beyond).astype(np.float32)


class Held:
    """Random actions, each kept for 1 to ``hold`` steps: moves far, where fresh choices every step only jitter.

    An action that has left the frame as it was is dropped for a new one: pushing on against a wall shows nothing new.
    """

    def __init__(self, space: ActionSpace, hold: int, rng: np.random.Generator):
        self.space, self.hold, self.rng = space, hold, rng
        self.left = 0
        self.action: Any = None
        self.before: np.ndarray | None = None

    def __call__(self, frame: np.ndarray) -> Any:
        """Return the action to take."""
        still = self.before is not None and np.array_equal(frame, self.before)
        self.before = frame.copy()  # a stream may draw the next frame into the same array
        if self.left == 0 or still:
            self.action = random_action(self.space, self.rng)
            self.left = int(self.rng.integers(1, self.hold + 1))
        self.left -= 1
        return self.action


class Retrace:
    """Explores in stretches of 1 to ``hold`` steps as :class:`Held` does, and undoes about half of its steps at once.

    A player who never turns back records nothing that asks a world model to remember. This one keeps a stack of what
    undoes its steps; after a stretch it goes on or takes some off the top, last in, first out, so that it comes back
    the way it went. Squares and full circles it leaves to chance, and so to tests.

    A step that nothing undoes empties the stack. A step that left the frame as it was is not put on it, and one that
    was to undo and did nothing empties it: where that leads is not known. Among a few choices exploring prefers those
    that it began least lately.
    """

    def __init__(self, space: ActionSpace, hold: int, inverse: Inverse, rng: np.random.Generator):
        self.space, self.hold, self.inverse, self.rng = space, hold, inverse, rng
        self.stack: list[np.ndarray] = []
        self.begun = np.zeros(space.nvec[0] if space.kind == "discrete" else 0)
        self.undoing = False
        self.left = self.stretch = 0  # steps to come, and steps of the last stretch that are on the stack
        self.action: Any = None
        self.before: np.ndarray | None = None

    def __call__(self, frame: np.ndarray) -> Any:
        """Return the action to take."""
        if self.before is not None:
            self._learn(still=np.array_equal(frame, self.before))
        self.before = frame.copy()  # a stream may draw the next frame into the same array
        if self.left == 0:
            self._begin()
        self.left -= 1
        if self.undoing:
            self.action = self.stack.pop()
        return self.action

    def _learn(self, still: bool) -> None:
        """Take note of what the last action did."""
        if still:
            self.left = 0
            if self.undoing:
                self.stack.clear()
        elif not self.undoing:
            back = self.inverse(self.action)
            if back is None:
                self.stack.clear()
                self.stretch = 0
            else:
                self.stack.append(back)
                self.stretch += 1

    def _begin(self) -> None:
        """Turn back, or begin another stretch."""
        self.undoing = not self.undoing and bool(self.stack) and self.rng.random() < RETURNS
        if self.undoing:
            self.left = self._how_far()
        else:
            self.action = self._explore()
            self.left = int(self.rng.integers(1, self.hold + 1))
            self.stretch = 0

    def _how_far(self) -> int:
        """Return how many steps are undone: a part of the last stretch, all of it, or further back."""
        last, everything = max(self.stretch, 1), len(self.stack)
        shape = self.rng.integers(3)
        if shape == 0:
            return int(self.rng.integers(1, last + 1))
        return last if shape == 1 else int(self.rng.integers(last, min(everything, last + self.hold) + 1))

    def _explore(self) -> np.ndarray:
        """Draw an action; of a discrete space in proportion to 1 / (1 + how often it was begun lately)."""
        if self.space.kind != "discrete":
            return random_action(self.space, self.rng)
        weight = 1 / (1 + self.begun)
        action = self.rng.choice(len(weight), p=weight / weight.sum())
        self.begun *= FADING
        self.begun[action] += 1
        return np.array(action)
