"""Actions as classes that can be told apart: choices are classes already, numbers are cut into three."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldvq.types import ActionSpace

MOST_CHOICES = 50
"""Choices of a factor that are classes of their own, the most frequent ones; all others are one class."""


@dataclass(frozen=True)
class Factor:
    """One choice, or one number, of an action.

    Attributes:
        name: Of the factor; "" where an action is one choice.
        index: Where it stands in an action; None where an action is one choice.
        labels: Of its classes.
        values: Ascending: choices that are classes of their own; or two numbers at which a number is cut.
        cut: For a number, how it was cut, in words; "" else.
    """

    name: str
    index: int | None
    labels: tuple[str, ...]
    values: np.ndarray
    cut: str = ""

    @property
    def num_classes(self) -> int:
        """How many there are, whether they occur or not."""
        return len(self.labels)

    def classes(self, actions: np.ndarray) -> np.ndarray:
        """Return the class (...) int64 of actions (...) or (..., factors)."""
        column = actions if self.index is None else actions[..., self.index]
        place = np.searchsorted(self.values, column)  # of a number: at how many cuts it lies above
        if self.cut:
            return place
        known = self.values[np.minimum(place, len(self.values) - 1)] == column
        return np.where(known, place, len(self.values))


def factors_of(space: ActionSpace, actions: np.ndarray) -> list[Factor]:
    """Return the factors of recorded actions (n, ...) that vary.

    A number is cut into three classes that are equally frequent among these actions, at its terciles; where that does
    not give three, as so many are equal (a pedal that is mostly at 0), by its sign.
    """
    if space.kind == "discrete":
        factors = [_choice("", None, actions, [space.label(choice) for choice in np.unique(actions)])]
    else:
        names = space.names or tuple(map(str, range(space.shape[0])))
        make = _number if space.kind == "box" else _choice
        factors = [make(name, index, actions[:, index]) for index, name in enumerate(names)]
    return [factor for factor in factors if len(np.unique(factor.classes(actions))) > 1]


def _choice(name: str, index: int | None, column: np.ndarray, labels: list[str] | None = None) -> Factor:
    values, frequency = np.unique(column, return_counts=True)
    kept = np.sort(np.argsort(-frequency, kind="stable")[:MOST_CHOICES])
    words = labels or [str(value) for value in values]
    return Factor(name, index, (*(words[place] for place in kept), "other"), values[kept])


def _number(name: str, index: int, column: np.ndarray) -> Factor:
    low, high = np.quantile(column.astype(np.float64), (1 / 3, 2 / 3))
    terciles = Factor(name, index, ("low", "middle", "high"), np.array([low, high]), f"{name} at {low:.3g}, {high:.3g}")
    if len(np.unique(np.searchsorted(terciles.values, column))) == 3:
        return terciles
    return Factor(name, index, ("-", "0", "+"), np.array([np.nextafter(0, -1), 0.0]), f"{name} by its sign")
