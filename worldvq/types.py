"""The records that flow between recording, training and imagination.

The alignment, stated once: ``actions[t]`` is what turns ``frames[t]`` into ``frames[t + 1]``, and
``rewards[t]`` is what that transition paid. An episode of T actions has T + 1 frames. Where sound was recorded,
``sounds[t]`` is what is heard between ``frames[t]`` and ``frames[t + 1]``: always the same number of samples.

Outside a model frames are uint8 and channel-last. Inside they are float in [-1, 1] and
channel-first; :func:`frames_to_model` and :func:`frames_from_model` are the only converters.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

MAX_CHOICES = 2**20
UNBOUNDED = 1e6
"""Bounds of actions of this size and more, such as the largest float32, count as none."""


def _shapes(record: Any) -> str:
    parts = []
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if isinstance(value, np.ndarray | Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            parts.append(f"{item.name}={dtype}{list(value.shape)}")
        else:
            parts.append(f"{item.name}={value!r}")
    return f"{type(record).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class ActionSpace:
    """What an action is, in a form that can be stored as JSON.

    Attributes:
        kind: ``discrete`` (one choice), ``multi_discrete`` (one choice a factor; a MultiBinary space is
            a MultiDiscrete of twos) or ``box`` (real vector).
        nvec: Number of choices of each factor; one entry for ``discrete``, empty for ``box``.
        low: Lower bounds of a ``box``, flattened; may be ``-inf``.
        high: Upper bounds of a ``box``, flattened; may be ``inf``.
        names: Names of the choices of a ``discrete`` space, of the factors of another one; may be empty.
    """

    kind: Literal["discrete", "multi_discrete", "box"]
    nvec: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the fields fit the kind."""
        if self.kind not in ("discrete", "multi_discrete", "box"):
            raise ValueError(f"there is no action space of the kind '{self.kind}'")
        if self.kind == "discrete" and len(self.nvec) != 1:
            raise ValueError(f"a discrete action space has one entry in nvec, got {self.nvec}")
        if self.kind == "multi_discrete" and not self.nvec:
            raise ValueError("a multi_discrete action space needs at least one factor in nvec")
        if self.kind == "box" and (not self.low or len(self.low) != len(self.high)):
            raise ValueError(f"a box action space needs equally many low and high bounds, got {self.low}, {self.high}")
        named = self.nvec[0] if self.kind == "discrete" else len(self.nvec) + len(self.low)
        if self.names and len(self.names) != named:
            raise ValueError(f"{len(self.names)} action names for the {self.kind} actions {self.nvec or self.shape}")
        if not all(0 < choices <= MAX_CHOICES for choices in self.nvec):
            raise ValueError(f"a factor of an action has 1 to {MAX_CHOICES} choices, got {self.nvec}")
        if any(np.isnan((*self.low, *self.high))):
            raise ValueError("a bound of an action is NaN")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored action: ``()``, ``(factors,)`` or ``(dims,)``."""
        return {"discrete": (), "multi_discrete": (len(self.nvec),), "box": (len(self.low),)}[self.kind]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of a stored action: float32 for ``box``, else int64."""
        return np.dtype(np.float32 if self.kind == "box" else np.int64)

    def label(self, action: Any) -> str:
        """Short text for one stored action, to draw on a frame."""
        return "".join(self.label_parts(action))

    def label_parts(self, action: Any) -> list[str]:
        """Return what :meth:`label` joins: between these a line may be broken, and not between a name and its value."""
        if self.kind == "discrete":
            index = int(action)
            return [self.names[index] if self.names else str(index)]
        values = np.asarray(action).reshape(-1)
        if self.kind == "multi_discrete" and self.names and set(self.nvec) == {2}:  # buttons
            parts, between = [name for name, value in zip(self.names, values, strict=True) if value] or ["none"], "+"
        else:
            numbers = (str(int(value)) if self.kind == "multi_discrete" else f"{float(value):+.2f}" for value in values)
            names = [f"{name} " for name in self.names] or [""] * len(values)
            parts, between = [name + number for name, number in zip(names, numbers, strict=True)], " "
        return [*(part + between for part in parts[:-1]), parts[-1]]

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types; infinite bounds become the strings "inf" and "-inf"."""
        data = {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }
        for key in ("low", "high"):
            data[key] = [value if np.isfinite(value) else str(value) for value in data[key]]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ActionSpace:
        """Inverse of :meth:`to_json`."""
        return cls(
            kind=data["kind"],
            nvec=tuple(int(value) for value in data["nvec"]),
            low=tuple(float(value) for value in data["low"]),
            high=tuple(float(value) for value in data["high"]),
            names=tuple(str(value) for value in data["names"]),
        )


@dataclass(frozen=True, repr=False)
class Episode:
    """One recorded episode of T transitions.

    Attributes:
        frames: (T + 1, H, W, 3) uint8.
        actions: (T,) int64, (T, factors) int64 or (T, dims) float32; ``actions[t]`` leads to ``frames[t + 1]``.
        rewards: (T,) float32.
        terminated: The last transition ended the task.
        truncated: The last transition hit a limit outside the task. A time-out that reports both is truncated.
        interrupted: Recording stopped here; the environment had not ended the episode.
        seed: Seed given to ``reset``.
        meta: JSON values that describe the episode.
        sounds: (T, S) int16, one channel; ``sounds[t]`` is heard between ``frames[t]`` and ``frames[t + 1]``, so it
            belongs to ``actions[t]``. None where none was recorded.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    interrupted: bool = False
    seed: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    sounds: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check shapes and dtypes; an episode that exists is a valid one."""
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T+1, H, W, 3), got {self.frames.dtype}{list(self.frames.shape)}")
        steps = len(self.frames) - 1
        if steps < 1:
            raise ValueError("an episode needs at least one transition (two frames)")
        if len(self.actions) != steps or self.rewards.shape != (steps,):
            raise ValueError(
                f"{steps + 1} frames need {steps} actions and rewards, "
                f"got {len(self.actions)} actions and rewards {list(self.rewards.shape)}"
            )
        if self.rewards.dtype != np.float32:
            raise ValueError(f"rewards must be float32, got {self.rewards.dtype}")
        if self.sounds is not None and (
            self.sounds.dtype != np.int16 or self.sounds.ndim != 2 or len(self.sounds) != steps
        ):
            raise ValueError(
                f"sounds must be int16 ({steps}, S), a row an action, got {self.sounds.dtype}{list(self.sounds.shape)}"
            )
        if self.terminated + self.truncated + self.interrupted > 1:
            raise ValueError("an episode ends in one way: terminated, truncated or interrupted")

    def __len__(self) -> int:
        """Number of transitions T."""
        return len(self.actions)

    def __repr__(self) -> str:
        """Show shapes, not contents."""
        return _shapes(self)


def heard_before(sounds: np.ndarray) -> np.ndarray:
    """Return what was heard before each of T + 1 frames, (T + 1, S), of the sounds (T, S) between them.

    The sound of action t belongs to what it leads to, frame t + 1, and so stands beside it; before the first frame of
    an episode there is silence.
    """
    return np.concatenate([np.zeros_like(sounds[:1]), sounds])


@dataclass(frozen=True, repr=False)
class Clip:
    """A batch of windows of T frames cut from episodes.

    ``actions[:, t]`` leads from ``frames[:, t]`` to ``frames[:, t + 1]``; the last action of a window leads
    out of it. Where an episode is shorter than the window, ``mask`` is False and the contents are zero.

    Attributes:
        frames: (B, T, H, W, 3) uint8.
        actions: (B, T, ...) as in :class:`Episode`.
        rewards: (B, T) float32, reward of the transition out of frame t.
        terminated: (B, T) bool, True where the transition out of frame t ended the task.
        mask: (B, T) bool, True where frame t exists.
        action_mask: (B, T) bool, True where the transition out of frame t exists.
        sounds: (B, T, S) int16, what was heard between the frame before and frame t, silence before the first one of
            an episode; None where no sound was recorded.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    mask: Tensor
    action_mask: Tensor
    sounds: Tensor | None = None

    def __repr__(self) -> str:
        """Show shapes, not contents."""
        return _shapes(self)

    def to(self, device: torch.device | str) -> Clip:
        """Move every tensor."""
        held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Clip(**{name: part.to(device, non_blocking=True) for name, part in held.items() if part is not None})


@dataclass(frozen=True, repr=False)
class TokenClip:
    """A :class:`Clip` whose frames are already tokens.

    Attributes:
        tokens: (B, T, h, w) int64.
        actions: See :class:`Clip`; likewise the rest.
        weight: (B,) float32, how much more often uniform sampling would draw this window than it was drawn; ones
            unless given. The mean of anything times its weight estimates its mean over all windows.
    """

    tokens: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    mask: Tensor
    action_mask: Tensor
    weight: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Let every window weigh one where nothing else is said."""
        if self.weight is None:
            object.__setattr__(self, "weight", torch.ones(len(self.rewards), device=self.rewards.device))

    def __repr__(self) -> str:
        """Show shapes, not contents."""
        return _shapes(self)

    def to(self, device: torch.device | str) -> TokenClip:
        """Move every tensor."""
        return TokenClip(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)}
        )


@dataclass(frozen=True, repr=False)
class TokenImages:
    """A batch of single frames as tokens, each of a class.

    Attributes:
        tokens: (B, h, w) int64.
        labels: (B,) int64, numbers of classes; zeros where there is one.
    """

    tokens: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        """Show shapes, not contents."""
        return _shapes(self)

    def to(self, device: torch.device | str) -> TokenImages:
        """Move every tensor."""
        return TokenImages(self.tokens.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))


@dataclass(frozen=True, repr=False)
class SoundCrops:
    """A batch of pieces of sounds, each of a speaker.

    Attributes:
        waveforms: (B, T) float32 in [-1, 1].
        speakers: (B,) int64, numbers of speakers.
        keys: (B, 2) int32, random words of each piece, for its noise.
    """

    waveforms: Tensor
    speakers: Tensor
    keys: Tensor

    def __repr__(self) -> str:
        """Show shapes, not contents."""
        return _shapes(self)

    def to(self, device: torch.device | str) -> SoundCrops:
        """Move every tensor."""
        parts = self.waveforms, self.speakers, self.keys
        return SoundCrops(*(part.to(device, non_blocking=True) for part in parts))


def samples_to_model(samples: Tensor) -> Tensor:
    """Convert int16 samples (...) to float32 in [-1, 1]."""
    return samples.float().div(2**15)


def samples_from_model(waveform: Tensor) -> Tensor:
    """Convert float samples (...) to int16, rounding to nearest; the inverse of :func:`samples_to_model`."""
    return waveform.float().mul(2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)


def as_tensor(values: ArrayLike | Tensor) -> Tensor:
    """Return a tensor of what may be a NumPy array, memory-mapped and read-only ones too, a list or a number."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def frames_to_model(frames: Tensor) -> Tensor:
    """Convert uint8 (..., H, W, 3) to float32 (..., 3, H, W) in [-1, 1]."""
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8, got {frames.dtype}")
    return frames.movedim(-1, -3).float().div(127.5).sub(1.0)


def frames_from_model(frames: Tensor) -> Tensor:
    """Convert float (..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3), rounding to nearest."""
    return frames.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
