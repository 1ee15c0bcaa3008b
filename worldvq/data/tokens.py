"""The store of token grids beside a dataset, held in memory: what the dynamics model is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from worldvq.config.fields import Side
from worldvq.data.episode_files import (
    IndexEntry,
    Record,
    SafetensorsFile,
    check_expected,
    check_listed,
    load_file,
    map_file,
    write_tensors,
)
from worldvq.data.episodes import DatasetMeta
from worldvq.data.store import Store
from worldvq.errors import CorruptFileError, UsageError
from worldvq.types import ActionSpace, Episode


class SoundTokenMeta(Record):
    """Which codec made the tokens of the sound."""

    codec_hash: str = Field(min_length=1)
    num_tokens: int = Field(gt=0, le=2**16)
    """Of a step."""
    num_codes: int = Field(gt=0, le=2**24)


class TokenMeta(Record):
    """Which tokenizer made the tokens, and of which dataset."""

    format_version: Literal[1] = 1
    tokenizer_hash: str = Field(min_length=1)
    dataset: DatasetMeta
    num_codes: int = Field(gt=0, le=2**24)
    grid: tuple[Side, Side]
    """Height and width of a frame in tokens, with those of its sound where there is any."""
    sound: SoundTokenMeta | None = None
    """Of the sound (:mod:`worldvq.models.layout`); a store without sound does not mention it."""

    @model_serializer(mode="wrap")
    def _only_what_is_heard(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if key != "sound" or value is not None}

    def moved(self, other: TokenMeta) -> TokenMeta | None:
        """Return this with the split of another, or None where it has the same."""
        dataset = self.dataset.moved(other.dataset)
        return self.model_copy(update={"dataset": dataset}) if dataset else None

    @property
    def dtype(self) -> np.dtype:
        """Dtype of a token on disk."""
        return np.dtype(np.uint16 if self.num_codes <= 2**16 else np.int32)


@dataclass(frozen=True)
class TokenEpisode:
    """Tokens (T+1, h, w), actions (T, ...) and rewards (T,) of an episode."""

    tokens: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray


class TokenStore(Store[TokenMeta]):
    """Token grids of the episodes of a dataset, under the same numbers."""

    meta_type: ClassVar = TokenMeta
    meta_file: ClassVar = "tokens.json"
    what: ClassVar = "token store"
    how_to_make: ClassVar = "worldvq tokenize --tokenizer DIR --data DIR --out DIR"
    may_change: ClassVar = ("heldout_every",)

    def __init__(self, path: Path, meta: TokenMeta, entries: list[IndexEntry], *locks: Any) -> None:
        super().__init__(path, meta, entries, *locks)
        self._action_space = ActionSpace.from_json(meta.dataset.action_space)
        self._held: dict[int, TokenEpisode] = {}

    @property
    def action_space(self) -> ActionSpace:
        """What an action is."""
        return self._action_space

    @property
    def environment(self) -> str:
        """As in the dataset."""
        return self.meta.dataset.env.id

    @property
    def heldout_every(self) -> int:
        """As in the dataset."""
        return self.meta.dataset.heldout_every

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of a frame in tokens, (h, w)."""
        return self.meta.grid

    def write(self, number: int, tokens: np.ndarray, episode: Episode) -> IndexEntry:
        """Write and list the tokens of an episode; one that is there already is left as it is.

        Args:
            number: The episode's number in the dataset.
            tokens: (T+1, h, w) integers below ``num_codes``.
            episode: The episode itself, for actions, rewards and how it ended.

        Raises:
            UsageError: Shape or range of the tokens do not fit, or the store is open for reading only.
            RunError: The disk is full.
        """
        if number in self:
            return self.entry(number)
        self._check_free(number)
        tokens = np.asarray(tokens)
        if tokens.shape != (len(episode.frames), *self.meta.grid) or not np.issubdtype(tokens.dtype, np.integer):
            expected = [len(episode.frames), *self.meta.grid]
            raise UsageError(
                f"episode {number}: tokens should be integers {expected}, got {tokens.dtype}{list(tokens.shape)}"
            )
        if tokens.min() < 0 or tokens.max() >= self.meta.num_codes:
            raise UsageError(
                f"episode {number}: tokens lie in {tokens.min()}..{tokens.max()}, not below {self.meta.num_codes}"
            )
        tensors = {"tokens": tokens.astype(self.meta.dtype), "actions": episode.actions, "rewards": episode.rewards}
        return self.append(write_tensors(self.path, number, tensors, episode))

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of an episode: tokens (T+1, h, w) in the dtype on disk, actions (T, ...), rewards (T,)."""
        held = self.mapped(number)
        return {"tokens": held.tokens, "actions": held.actions, "rewards": held.rewards}

    def mapped(self, number: int) -> TokenEpisode:
        """Arrays of an episode, from memory; its file is read, hashed and checked the first time.

        Raises:
            UsageError: There is no such episode.
            CorruptFileError: Its file is missing, or not what was committed.
        """
        entry = self.entry(number)
        if number not in self._held:
            self._held[number] = self._load(entry)
        return self._held[number]

    def recorded(self, number: int) -> Episode:
        """All that is kept of an episode but its tokens; its frames (T+1, 0, 0, 3) have no pixels.

        Raises:
            UsageError: There is no such episode.
            CorruptFileError: Its file is missing, or not what was committed.
        """
        entry, held = self.entry(number), self.mapped(number)
        path = self.path / entry.file
        about = check_listed(path, map_file(path), entry)
        return Episode(
            frames=np.zeros((entry.num_frames, 0, 0, 3), np.uint8),
            actions=held.actions,
            rewards=held.rewards,
            terminated=entry.terminated,
            truncated=entry.truncated,
            interrupted=entry.interrupted,
            seed=entry.seed,
            meta=about["meta"],
        )

    def rewards(self, number: int) -> np.ndarray:
        """Rewards (T,) of an episode, without its tokens: its file is mapped, and not kept.

        Raises:
            UsageError: There is no such episode.
            CorruptFileError: Its file is missing, or its rewards do not add up to what the index says.
        """
        return self._map(self.entry(number)).rewards.copy()

    def copy_window(self, number: int, start: int, out: np.ndarray) -> None:
        """Copy the tokens of frames ``start`` to ``start + len(out)`` of an episode into ``out``."""
        out[:] = self.mapped(number).tokens[start : start + len(out)]

    def _map(self, entry: IndexEntry) -> TokenEpisode:
        path = self.path / entry.file
        return self._checked(path, map_file(path), entry)

    def _load(self, entry: IndexEntry) -> TokenEpisode:
        """Read an episode into memory; check its hash and the range of its tokens."""
        path = self.path / entry.file
        held = self._checked(path, load_file(path, entry.sha256), entry)
        if held.tokens.min() < 0 or held.tokens.max() >= self.meta.num_codes:
            raise CorruptFileError(f"{path}: a token is not below num_codes {self.meta.num_codes}")
        return held

    def _checked(self, path: Path, file: SafetensorsFile, entry: IndexEntry) -> TokenEpisode:
        space, steps = self.action_space, entry.num_frames - 1
        expected = {
            "tokens": (self.meta.dtype, (entry.num_frames, *self.meta.grid)),
            "actions": (space.dtype, (steps, *space.shape)),
            "rewards": (np.dtype(np.float32), (steps,)),
        }
        check_expected(path, file, expected)
        check_listed(path, file, entry)
        return TokenEpisode(file.tensors["tokens"], file.tensors["actions"], file.tensors["rewards"])

    def _check_contents(self, entry: IndexEntry) -> None:
        self._load(entry)
