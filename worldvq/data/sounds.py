"""Sounds in a folder: samples of one channel at one rate, each sound of a speaker; and random pieces of them.

A sound is an episode of the store: a file of its own, listed with its hash, of a length in samples, whose label is the
speaker. What cuts pieces asks for no more than :class:`Sounds`, so other stores that hold sound will do too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from worldvq.config.fields import NonNegativeInt, PositiveInt
from worldvq.data.clips import ClipSampler
from worldvq.data.episode_files import (
    IndexEntry,
    Record,
    check_expected,
    check_listed,
    map_file,
    write_listed,
)
from worldvq.data.mapped import MappedStore
from worldvq.data.store import Split
from worldvq.errors import plural
from worldvq.types import SoundCrops, TokenImages, samples_to_model

MIN_SAMPLES = 2


class Sounds(Protocol):
    """What sound is trained on: waveforms by number, each of a speaker."""

    @property
    def path(self) -> Path:
        """Where they are, for messages."""
        ...

    @property
    def rate(self) -> int:
        """Samples a second, of all of them."""
        ...

    @property
    def heldout_every(self) -> int:
        """One in so many is held out."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def numbers(self, split: Split = "all") -> list[int]:
        """Numbers of the sounds of a split, ascending."""
        ...

    def num_samples(self, number: int) -> int:
        """Length of a sound."""
        ...

    def samples(self, number: int) -> np.ndarray:
        """Samples (N,) int16 of a sound, as they lie in the file."""
        ...

    def label(self, number: int) -> str:
        """Who is heard."""
        ...

    def fingerprint(self) -> dict[str, int | str]:
        """What tells these sounds from others."""
        ...


class SoundMeta(Record):
    """Where sounds are from, fixed when the store is made."""

    format_version: Literal[1] = 1
    source: str
    """``sounds:`` and the name of the folder that they were read from; or what made them."""
    made_of: dict[str, Any] = {}
    """What else decides the sounds: a hash of the files, or a seed."""
    rate: int = Field(ge=1000, le=768_000)
    """Samples a second."""
    heldout_every: PositiveInt = 10
    seed: NonNegativeInt = 0
    versions: dict[str, str] = {}

    def moved(self, other: SoundMeta) -> SoundMeta | None:
        """Nothing of it may change."""
        return None


@dataclass(frozen=True)
class MappedSound:
    """A sound as it lies in the file: samples (N,) int16, and what was said of it."""

    samples: np.ndarray
    meta: dict[str, Any]


class SoundStore(MappedStore[SoundMeta, MappedSound]):
    """Sounds in a folder; ``num_frames`` of an entry counts samples."""

    meta_type: ClassVar = SoundMeta
    meta_file: ClassVar = "sounds.json"
    what: ClassVar = "store of sounds"
    how_to_make: ClassVar = "worldvq data import sounds FOLDER --out DIR"

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self.meta.rate

    @property
    def environment(self) -> str:
        """What the sounds are from: the speaker where nobody is named."""
        return self.meta.source

    @property
    def heldout_every(self) -> int:
        """Sound n is held out when n % heldout_every == heldout_every - 1."""
        return self.meta.heldout_every

    def describe(self) -> str:
        """Return how much there is, in one line."""
        seconds, speakers = self.num_frames / self.rate, len({entry.label for entry in self.entries})
        of = f"of {plural(speakers, 'speaker')}, {seconds:,.0f} s at {self.rate:,} samples a second"
        return f"{plural(len(self), 'sound')} {of}, {len(self.numbers('heldout'))} held out"

    def num_samples(self, number: int) -> int:
        """Length of a sound; raises UsageError where there is none of this number."""
        return self.entry(number).num_frames

    def samples(self, number: int) -> np.ndarray:
        """Samples (N,) int16 of a sound, memory-mapped and read-only; see :meth:`mapped`."""
        return self.mapped(number).samples

    def commit(self, number: int, samples: np.ndarray, meta: dict[str, Any]) -> IndexEntry:
        """Write a sound and list it; when this returns it survives any crash.

        Args:
            number: Of the sound.
            samples: (N,) int16.
            meta: JSON values; ``label`` is the speaker.

        Raises:
            UsageError: The number is taken.
            RunError: The disk is full.
        """
        self._check_free(number)
        assert samples.dtype == np.int16 and samples.ndim == 1 and len(samples) >= MIN_SAMPLES
        about = {"seed": 0, "terminated": False, "truncated": True, "interrupted": False, "meta": meta}
        return self.append(write_listed(self.path, number, {"samples": samples}, len(samples), 0.0, about))

    def _map(self, entry: IndexEntry) -> MappedSound:
        path = self.path / entry.file
        file = map_file(path)
        check_expected(path, file, {"samples": (np.dtype(np.int16), (entry.num_frames,))})
        return MappedSound(file.tensors["samples"], check_listed(path, file, entry)["meta"])

    def _check_contents(self, entry: IndexEntry) -> None:
        self._map(entry)


class CropSampler(ClipSampler):
    """Random pieces of sounds, by step: every place that can start a whole piece is equally likely.

    A sound that is shorter than a piece is followed by silence.
    """

    store: Sounds  # type: ignore[assignment]

    def __init__(
        self, sounds: Sounds, split: Split, crop_samples: int, batch_size: int, seed: int, speakers: Sequence[str]
    ) -> None:
        """Fix what is drawn from.

        Args:
            sounds: What there is.
            split: Which of them.
            crop_samples: Samples of a piece.
            batch_size: Pieces of the global batch of a step.
            seed: Of all that is drawn.
            speakers: All that there are; one has the number of its place.

        Raises:
            UsageError: There is no sound in the split.
        """
        super().__init__(sounds, split, crop_samples, batch_size, seed)  # type: ignore[arg-type]
        numbers = {name: number for number, name in enumerate(speakers)}
        self._speakers = {number: numbers[sounds.label(number)] for number in sounds.numbers(split)}

    def _length(self, number: int) -> int:
        return self.store.num_samples(number)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> SoundCrops:  # type: ignore[override]
        """Read this process's slice of the global batch of a step; see :meth:`ClipSampler.batch`."""
        share = self._share(rank, world)
        ids = self.ids(step)[share].tolist()
        crops = np.zeros((len(ids), self.clip_frames), np.int16)
        for crop, (number, start) in zip(crops, ids, strict=True):
            piece = self.store.samples(number)[start : start + self.clip_frames]
            crop[: len(piece)] = piece
        speakers = torch.tensor([self._speakers[number] for number, _ in ids])
        words = self._words(step, 2 * self.batch_size)[self.batch_size :][share]  # those before say which pieces
        keys = torch.from_numpy(words.view(np.int32).reshape(-1, 2))
        return SoundCrops(samples_to_model(torch.from_numpy(crops)), speakers, keys)


class CodeSampler(CropSampler):
    """Random pieces of the codes of sounds, by step: every place that can start a whole piece is equally likely."""

    def __init__(
        self,
        sounds: Sounds,
        tokens: Mapping[int, np.ndarray],
        split: Split,
        crop_tokens: int,
        batch_size: int,
        seed: int,
        speakers: Sequence[str],
    ) -> None:
        """Fix what is drawn from.

        Args:
            sounds: See :class:`CropSampler`; likewise the rest.
            tokens: The codes (n,) of every sound, n >= ``crop_tokens``.
            split: Which sounds.
            crop_tokens: Codes of a piece.
            batch_size: Pieces of the global batch of a step.
            seed: Of all that is drawn.
            speakers: All that there are.
        """
        self._tokens = tokens
        super().__init__(sounds, split, crop_tokens, batch_size, seed, speakers)

    def _length(self, number: int) -> int:
        return len(self._tokens[number])

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenImages:  # type: ignore[override]
        """Read this process's slice of the global batch of a step: tokens (B, 1, n) and speakers (B,)."""
        ids = self.ids(step)[self._share(rank, world)].tolist()
        pieces = np.stack([self._tokens[number][start : start + self.clip_frames] for number, start in ids])
        return TokenImages(torch.from_numpy(pieces)[:, None], torch.tensor([self._speakers[n] for n, _ in ids]))
