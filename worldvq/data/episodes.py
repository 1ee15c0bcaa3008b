"""The store of recorded episodes: one safetensors file an episode, and a hashed index.

Frames are memory-mapped and copied straight into a batch; with ``compression: zstd`` they are kept in
chunks of 16 frames (see :mod:`worldvq.data.compression`) of which only those that a window touches are decoded.
Sound, where it was recorded, is memory-mapped beside them and never compressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.config.fields import NonNegativeInt, PositiveInt, Side
from worldvq.data.compression import check_chunks, check_decodes, decode_frames, encode_frames, require_zstandard
from worldvq.data.episode_files import (
    IndexEntry,
    Record,
    SafetensorsFile,
    check_expected,
    check_listed,
    map_file,
    write_tensors,
)
from worldvq.data.mapped import MappedStore
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.differences import require_same
from worldvq.types import ActionSpace, Episode

MAX_EXPANSION = 1000
"""Compressed frames of more than ``MAX_EXPANDED`` bytes may not be more than so many times their file."""
MAX_EXPANDED = 2**30


class DatasetMeta(Record):
    """What a dataset was recorded from, fixed when it is created."""

    format_version: Literal[1] = 1
    env: EnvConfig
    action_space: dict[str, Any]
    """As :meth:`worldvq.types.ActionSpace.to_json` gives it."""
    frame_size: tuple[Side, Side]
    seed: NonNegativeInt = 0
    policy: str
    undo: dict[str, str] | Literal["negated"] | None = None
    """Which action undoes which, as the policy ``retrace`` took it; None where another one played."""
    heldout_every: PositiveInt = 10
    compression: Literal["none", "zstd"] = "none"
    versions: dict[str, str] = {}
    sound: SoundFormat | None = None
    """What is heard in a step; None in a dataset without sound, whose description does not mention it."""

    @model_serializer(mode="wrap")
    def _only_what_is_heard(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = write(self)
        silent = [name for name in ("audio_key", "audio_rate") if getattr(self.env, name) is None]
        data["env"] = {key: value for key, value in data["env"].items() if key not in silent}
        return {key: value for key, value in data.items() if key != "sound" or value is not None}

    def moved(self, other: DatasetMeta) -> DatasetMeta | None:
        """Return this with the split of another, or None where it has the same."""
        if self.heldout_every == other.heldout_every:
            return None
        return self.model_copy(update={"heldout_every": other.heldout_every})

    @field_validator("action_space")
    @classmethod
    def _is_action_space(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return ActionSpace.from_json(value).to_json()
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no action space: {error!r}") from None


@dataclass(frozen=True)
class MappedEpisode:
    """An episode's arrays as they lie in the file; ``frames`` is None where they are compressed.

    ``sounds`` is None where there are none.
    """

    frames: np.ndarray | None
    actions: np.ndarray
    rewards: np.ndarray
    sounds: np.ndarray | None
    file: SafetensorsFile
    meta: dict[str, Any]


def write_episode(folder: str | Path, number: int, episode: Episode, compression: str = "none") -> IndexEntry:
    """Write one episode's file atomically, for worker processes; ``EpisodeStore.append`` lists it afterwards.

    Raises:
        UsageError: ``zstd`` was asked for and zstandard is not installed.
        RunError: The disk is full or a reward is not finite; nothing is left behind.
    """
    tensors = {"actions": episode.actions, "rewards": episode.rewards}
    if episode.sounds is not None:
        tensors["sounds"] = episode.sounds
    frames = encode_frames(episode.frames) if compression == "zstd" else {"frames": episode.frames}
    return write_tensors(Path(folder), number, tensors | frames, episode)


class EpisodeStore(MappedStore[DatasetMeta, MappedEpisode]):
    """Recorded episodes in a folder.

    Attributes:
        path: The folder.
        meta: What it was recorded from.
        action_space: What an action is.
    """

    meta_type: ClassVar = DatasetMeta
    meta_file: ClassVar = "dataset.json"
    what: ClassVar = "dataset"
    how_to_make: ClassVar = "worldvq record ENV --out DIR"
    may_change: ClassVar = ("heldout_every",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._action_space = ActionSpace.from_json(self.meta.action_space)
        if self.meta.compression == "zstd":
            require_zstandard()

    @property
    def action_space(self) -> ActionSpace:
        """What an action is."""
        return self._action_space

    @property
    def environment(self) -> str:
        """Id of the environment that was recorded."""
        return self.meta.env.id

    @property
    def heldout_every(self) -> int:
        """Episode n is held out when n % heldout_every == heldout_every - 1."""
        return self.meta.heldout_every

    def check_frame_size(self, size: tuple[int, int], whose: str = "the tokenizer") -> None:
        """Raise a UsageError unless frames have the size (H, W) that the tokenizer named takes."""
        require_same(
            {"frame_size": self.meta.frame_size},
            {"frame_size": size},
            ("the dataset has", "the tokenizer expects"),
            f"{self.path} does not fit {whose}",
            "take a dataset whose frames have the size of those that the tokenizer was trained on",
        )

    def commit(self, number: int, episode: Episode) -> IndexEntry:
        """Write an episode and list it; when this returns it survives any crash.

        Raises:
            UsageError: The number is taken, or frames or actions do not fit the dataset.
            RunError: The disk is full.
        """
        self._check_free(number)
        space, shape = self.action_space, episode.frames.shape[1:3]
        if shape != self.meta.frame_size:
            raise UsageError(f"{self.path} holds frames of {self.meta.frame_size}, got {shape}")
        if episode.actions.shape[1:] != space.shape or episode.actions.dtype != space.dtype:
            got = f"{episode.actions.dtype}{list(episode.actions.shape)}"
            raise UsageError(
                f"{self.path} holds {space.kind} actions {space.dtype}{[len(episode), *space.shape]}, got {got}"
            )
        if problem := _action_problem(space, episode.actions):
            raise UsageError(f"episode {number}: {problem}")
        held, got = self.meta.sound and self.meta.sound.samples, episode.sounds
        if held != (None if got is None else got.shape[1]):
            raise UsageError(
                f"{self.path} holds {_heard(held)}, episode {number} {_heard(None if got is None else got.shape[1])}"
            )
        return self.append(write_episode(self.path, number, episode, self.meta.compression))

    def read(self, number: int) -> Episode:
        """Read a whole episode.

        Raises:
            UsageError: There is no such episode.
            CorruptFileError: Its file is missing or broken.
        """
        entry, mapped = self.entry(number), self.mapped(number)
        return Episode(
            frames=np.array(self.frames(number)),
            actions=np.array(mapped.actions),
            rewards=np.array(mapped.rewards),
            terminated=entry.terminated,
            truncated=entry.truncated,
            interrupted=entry.interrupted,
            seed=entry.seed,
            meta=mapped.meta,
            sounds=None if mapped.sounds is None else np.array(mapped.sounds),
        )

    def truncate(self, entry: IndexEntry, num_frames: int) -> IndexEntry:
        """Write an episode again that is not listed yet, truncated after its first ``num_frames`` frames."""
        mapped, steps = self._map(entry), num_frames - 1
        frames = np.empty((num_frames, *self.item_shape), np.uint8)
        if mapped.frames is not None:
            frames[:] = mapped.frames[:num_frames]
        else:
            decode_frames(mapped.file.tensors, entry.num_frames, 0, frames)
        actions, rewards = np.array(mapped.actions[:steps]), np.array(mapped.rewards[:steps])
        sounds = None if mapped.sounds is None else np.array(mapped.sounds[:steps])
        ending = {"terminated": False, "truncated": True}
        episode = Episode(frames, actions, rewards, **ending, seed=entry.seed, meta=mapped.meta, sounds=sounds)
        return write_episode(self.path, entry.number, episode, self.meta.compression)

    def frames(self, number: int) -> np.ndarray:
        """All frames of an episode, (T+1, H, W, 3) uint8: memory-mapped and read-only unless compressed."""
        mapped = self.mapped(number)
        if mapped.frames is not None:
            return mapped.frames
        frames = np.empty((self.entry(number).num_frames, *self.item_shape), np.uint8)
        self.copy_window(number, 0, frames)
        return frames

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of a frame, (H, W, 3)."""
        return (*self.meta.frame_size, 3)

    def copy_window(self, number: int, start: int, out: np.ndarray) -> None:
        """Copy frames ``start`` to ``start + len(out)`` of an episode into ``out``."""
        mapped = self.mapped(number)
        if mapped.frames is not None:
            out[:] = mapped.frames[start : start + len(out)]
            return
        try:
            decode_frames(mapped.file.tensors, self.entry(number).num_frames, start, out)
        except ValueError as error:
            raise CorruptFileError(f"{self.path / self.entry(number).file}: {error}") from None

    def _map(self, entry: IndexEntry) -> MappedEpisode:
        steps, space = entry.num_frames - 1, self.action_space
        expected = {"actions": (space.dtype, (steps, *space.shape)), "rewards": (np.dtype(np.float32), (steps,))}
        if self.meta.compression == "none":
            expected["frames"] = (np.dtype(np.uint8), (entry.num_frames, *self.item_shape))
        if self.meta.sound is not None:
            expected["sounds"] = (np.dtype(np.int16), (steps, self.meta.sound.samples))
        path = self.path / entry.file
        file = map_file(path)
        check_expected(path, file, expected)
        about = check_listed(path, file, entry)
        tensors = file.tensors
        if self.meta.compression == "zstd":
            self._check_chunks(entry, file)
        sounds = tensors["sounds"] if self.meta.sound is not None else None
        arrays = tensors.get("frames"), tensors["actions"], tensors["rewards"], sounds
        return MappedEpisode(*arrays, file, about["meta"])

    def _check_chunks(self, entry: IndexEntry, file: SafetensorsFile) -> None:
        """Refuse compressed frames that do not say of every chunk what it must hold, or would fill the memory."""
        path, frame_bytes = self.path / entry.file, math.prod(self.item_shape)
        try:
            check_chunks(file.tensors, entry.num_frames, frame_bytes)
        except ValueError as error:
            raise CorruptFileError(f"{path}: {error}") from None
        held, whole = file.tensors["frames_zstd"].nbytes, entry.num_frames * frame_bytes
        if whole > max(MAX_EXPANDED, MAX_EXPANSION * held):
            raise CorruptFileError(f"{path}: {held:,} bytes would expand to {whole:,}, which no recording does")

    def _check_contents(self, entry: IndexEntry) -> None:
        path, mapped = self.path / entry.file, self._map(entry)
        if problem := _action_problem(self.action_space, mapped.actions):
            raise CorruptFileError(f"{path}: {problem}")
        if mapped.frames is None:
            try:
                check_decodes(mapped.file.tensors)
            except ValueError as error:
                raise CorruptFileError(f"{path}: {error}") from None


def _heard(samples: int | None) -> str:
    return "no sound" if samples is None else f"{samples} samples of sound a step"


def _action_problem(space: ActionSpace, actions: np.ndarray) -> str:
    """Say which action lies outside the space, or return ""."""
    if space.kind == "box":
        return "" if np.isfinite(actions).all() else "an action is not finite"
    outside = (actions < 0) | (actions >= np.array(space.nvec if space.shape else space.nvec[0]))
    return f"an action is {int(actions[outside][0])}, the space is {space.nvec}" if outside.any() else ""
