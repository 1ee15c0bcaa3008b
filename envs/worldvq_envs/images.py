"""Pictures as environments give them, looked at and not believed: where they are, and what their numbers mean.

A :class:`Picture` takes an observation or what ``render()`` gave to (H, W, 3) uint8. How an array is laid out follows
from its shape; whether 1.0 is white or nearly black follows from the values that are seen, and from what the space says
only where they leave it open. What is not plain is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from worldvq.errors import UsageError

SMALLEST = 16
"""Pixels a side: below this an array is taken for a board or a table, not for a picture."""
FAINT = 32
"""Of 255: what never gets brighter than this is hardly to be seen, or no picture but a table of codes."""

Scale = Literal["bytes", "unit", "signed"]
RANGES: dict[Scale, tuple[float, float]] = {"bytes": (0, 255), "unit": (0, 1), "signed": (-1, 1)}


@dataclass(frozen=True)
class Layout:
    """How an array lies.

    Attributes:
        text: For people, for instance ``RGB``.
        pick: From the array to (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    """

    text: str
    pick: Callable[[np.ndarray], np.ndarray]


def layout_of(shape: tuple[int, ...], smallest: int = SMALLEST) -> Layout | None:
    """Return how an array of this shape lies as a picture, or None if it is none.

    Stacks of frames, along the first or the last axis, give their newest, which stands last. Four planes are RGBA where
    they stand last, as in pictures, and a stack of four grey frames where they stand first, as in frame stacks.
    """
    if len(shape) == 4:
        inner = layout_of(shape[1:], smallest)
        return inner and Layout(f"the newest of {shape[0]} {inner.text}", lambda array: inner.pick(array[-1]))
    if len(shape) == 2:
        return Layout("grey", lambda array: array) if min(shape) >= smallest else None
    if len(shape) != 3:
        return None
    names = {1: "grey", 3: "RGB", 4: "RGBA"}
    if shape[-1] in names and min(shape[:2]) >= smallest:
        return Layout(names[shape[-1]], lambda array: array)
    if shape[0] in (1, 3) and min(shape[1:]) >= smallest:
        return Layout(f"{names[shape[0]]}, channels first", lambda array: np.moveaxis(array, 0, -1))
    for axis, planes, sides in ((0, shape[0], shape[1:]), (2, shape[2], shape[:2])):
        if 1 < planes < min(sides) and min(sides) >= smallest:
            last, name = (3, "RGB") if planes % 3 == 0 else (1, "grey")

            def pick(array: np.ndarray, axis: int = axis, last: int = last) -> np.ndarray:
                return np.moveaxis(array, axis, -1)[..., -last:]

            return Layout(f"the newest of {planes // last} {name}", pick)
    return None


class Picture:
    """What one source shows, as (H, W, 3) uint8.

    Attributes:
        name: For people, for instance ``observation 'screen'`` or ``render()``.
        scale: What its numbers mean; None until :meth:`decide`.
        low: The smallest value :meth:`look` saw; likewise ``high``.
        size: Height and width.
    """

    def __init__(
        self, name: str, get: Callable[[Any], Any], space: spaces.Box | None = None, smallest: int = SMALLEST
    ) -> None:
        """Describe a source; ``space`` is what the environment says of it, if it says anything."""
        self.name, self.get, self.space = name, get, space
        self.scale: Scale | None = None
        self.low, self.high, self.whole, self.changes = np.inf, -np.inf, True, False
        self.size = (0, 0)
        self._smallest = smallest
        self._shape, self._dtype = (space.shape if space else None), np.dtype(np.uint8)
        self._layout: Layout | None = None
        self._first: np.ndarray | None = None

    def look(self, observation: Any) -> None:
        """Take in one more example of its values.

        Raises:
            UsageError: It is no picture, another one than the space says, or holds what is no number.
        """
        array = self._array(observation)
        if self._layout is None:
            self._shape, self._dtype = array.shape, array.dtype
            self._layout = layout_of(array.shape, self._smallest)
            if self._layout is None:
                raise UsageError(f"{self.name} is {_text(array)}, which is no picture: {_WAYS}")
            self._first = np.array(array)
            self.size = self._layout.pick(array).shape[:2]  # type: ignore[assignment]
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{self.name} holds {array.dtype}, not numbers: {_WAYS}")
        self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
        self.whole &= array.dtype.kind != "f" or bool((array == np.rint(array)).all())
        self.changes |= not np.array_equal(array, self._first)  # type: ignore[arg-type]

    @property
    def is_plain(self) -> bool:
        """Whether what was seen leaves no doubt that it is a picture of bytes."""
        return self._dtype == np.uint8 and self.high >= FAINT and self._bound() > 1

    @property
    def is_faint(self) -> bool:
        """Whether hardly anything is to be seen: all that was seen is nearly black, or nearly the same."""
        low, high = RANGES[self.scale or "bytes"]
        return (self.high - low) * 255 / (high - low) < FAINT or (self.high - self.low) * 255 / (high - low) < FAINT / 4

    @property
    def may_be_codes(self) -> bool:
        """Whether it looks like a table of codes: small whole numbers that change, in a space that allows more."""
        return self.scale == "bytes" and self.whole and self.changes and self.low >= 0 and self.high < FAINT

    def decide(self) -> None:
        """Say what its numbers mean, from what was seen.

        Raises:
            UsageError: It is not plain; names what was seen and the way out.
        """
        if not np.isfinite((self.low, self.high)).all():
            raise UsageError(f"{self.name} holds values that are not finite: {_WAYS}")
        bound = self._bound()
        if self.low < 0:
            self.scale = "signed" if self.low >= -1 and self.high <= 1 else None
        elif self._dtype.kind == "b":
            self.scale = "unit"
        elif self.high > 1:
            self.scale = "bytes" if self.high <= 255 else None
        elif bound <= 1:
            self.scale = "signed" if self.space is not None and (self.space.low < 0).any() else "unit"
        else:  # all within 0..1, in a space of more or of none: fractions say which it is
            self.scale = "bytes" if self.whole else "unit"
        if self.scale is None:
            raise UsageError(
                f"{self.name} holds values from {self.low:g} to {self.high:g}: pictures have 0 to 255, 0 to 1 or "
                f"-1 to 1: {_WAYS}"
            )

    def _bound(self) -> float:
        return float(self.space.high.max()) if self.space is not None else np.inf

    def __call__(self, observation: Any) -> np.ndarray:
        """Return the picture (H, W, 3) uint8 of an observation.

        Raises:
            ValueError: It has another shape or type than before, or values that it cannot have; says which.
        """
        assert self._layout is not None and self.scale is not None
        array = self._array(observation)
        if array.dtype != np.uint8 or self.scale != "bytes":
            array = self._to_bytes(array)
        picture = self._layout.pick(array)
        if picture.ndim == 2:
            picture = picture[..., None]
        return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]

    def _to_bytes(self, array: np.ndarray) -> np.ndarray:
        assert self.scale is not None
        low, high = RANGES[self.scale]
        least, most = float(array.min()), float(array.max())
        slack = 1e-3 * (high - low)  # what a simulator's arithmetic may add
        if not (least >= low - slack and most <= high + slack):  # NaN too
            raise ValueError(f"{self.name} holds values from {least:g} to {most:g}, before they were {low} to {high}")
        if array.dtype.kind != "f" and self.scale == "bytes":
            return array.astype(np.uint8)
        scaled = (np.asarray(array, np.float32) - low) * (255 / (high - low))
        return np.rint(scaled).clip(0, 255).astype(np.uint8)

    def _array(self, observation: Any) -> np.ndarray:
        value = self.get(observation)
        if isinstance(value, list | tuple) and value:  # renders that are lists of frames: the newest
            value = value[-1]
        if value is None:
            raise ValueError(f"{self.name} gave nothing")
        array = np.asarray(value)
        if self._shape is not None and array.shape != self._shape:
            source = "the space says" if self._layout is None and self.space is not None else "before it was"
            problem = f"{self.name} is {_text(array)}, {source} {list(self._shape)}"
            raise ValueError(f"{problem}: mend the environment, or wrap it (env.wrappers)")
        return array

    def describe(self) -> str:
        """Say in one line what is recorded."""
        assert self._layout is not None
        height, width = self.size
        return (
            f"{self.name}, {height}x{width} {self._layout.text}, {self._dtype} from {self.low:g} to {self.high:g}"
            + {"bytes": "", "unit": " taken as 0 to 1", "signed": " taken as -1 to 1", None: ""}[self.scale]
        )


_WAYS = "set env.source=render or env.observation_key, or wrap it (env.wrappers)"


def _text(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def pictures_in(space: spaces.Space, forced: bool = False) -> dict[str, Picture]:
    """Return what may be a picture in an observation space, however deep, by dotted key: ``sensors.camera``, ``0``.

    Args:
        space: The observation space; where it is no Dict or Tuple, the key is "".
        forced: Take every array of a picture's shape, tables and boards too, whatever its bounds.
    """
    smallest = 1 if forced else SMALLEST
    found = {}
    for key, path, part in _parts(space, "", ()):
        if isinstance(part, spaces.Box) and layout_of(part.shape, smallest) and (forced or _has_bounds_of_one(part)):
            name = f"observation '{key}'" if key else "the observation"
            found[key] = Picture(name, lambda observation, path=path: _follow(observation, path), part, smallest)
    return found


def _has_bounds_of_one(space: spaces.Box) -> bool:
    """Whether the bounds are those of pictures: a matrix of a simulator has others, or none."""
    low, high, whole = float(space.low.min()), float(space.high.max()), space.dtype.kind in "iu"
    return (low, high) in ((0, 1), (-1, 1), (0, 255)) or (whole and low >= 0 and FAINT <= high <= 255)


def _parts(space: spaces.Space, key: str, path: tuple[Any, ...]) -> Iterator[tuple[str, tuple[Any, ...], spaces.Space]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for name, part in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
            yield from _parts(part, f"{key}.{name}" if key else str(name), (*path, name))
    else:
        yield key, path, space


def _follow(observation: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        observation = observation[step]
    return observation
