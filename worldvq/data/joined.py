"""Several stores as one: windows of all of them, and single token grids with their classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldvq.data.clips import ClipSampler, locate, read_clips
from worldvq.errors import UsageError
from worldvq.types import Clip, TokenClip, TokenImages

if TYPE_CHECKING:
    from worldvq.data.episodes import EpisodeStore
    from worldvq.data.store import Split
    from worldvq.data.tokens import TokenStore

MAX_CLASSES = 2048
"""Their names stand in the description of what was trained on them, which is a small file."""


class JoinedSampler(ClipSampler):
    """Random windows of several stores, by step: every window of all of them is equally likely.

    Of one store it draws what :class:`ClipSampler` draws. Where there are more, a batch holds no actions (zeros): what
    an action is, is each environment's own.
    """

    def __init__(
        self,
        stores: Sequence[EpisodeStore | TokenStore],
        split: Split,
        clip_frames: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Fix what is drawn from.

        Args:
            stores: At least one; their frames, or token grids, are of one size.
            split: See :class:`ClipSampler`; likewise the rest.
            clip_frames: Frames a window.
            batch_size: Windows of the global batch.
            seed: Of all that is drawn.

        Raises:
            UsageError: The split of a store is empty, or a size is not positive.
        """
        super().__init__(stores[0], split, clip_frames, batch_size, seed)
        self.stores = stores
        self._parts = [ClipSampler(store, split, clip_frames, batch_size, seed) for store in stores]
        self._ends = np.cumsum([part.num_windows for part in self._parts])

    def _ids(self, windows: np.ndarray) -> np.ndarray:
        """Episode and first frame of windows (n,), where there are several stores the number of the store first."""
        if len(self._parts) == 1:
            return self._parts[0]._ids(windows)
        number, place = locate(self._ends, windows)
        rows = [np.append(n, self._parts[n]._ids(np.array([at]))[0]) for n, at in zip(number, place, strict=True)]
        return np.stack(rows).astype(np.int64)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """Read this process's slice of the global batch of a step; see :meth:`ClipSampler.batch`."""
        return self._read(self.ids(step)[self._share(rank, world)])

    def _read(self, ids: np.ndarray) -> Clip | TokenClip:
        if len(self._parts) == 1:
            return read_clips(self.store, ids, self.clip_frames)
        order = np.argsort(ids[:, 0], kind="stable")
        numbers, counts = np.unique(ids[:, 0], return_counts=True)
        rows = np.split(ids[order, 1:], np.cumsum(counts)[:-1])
        clips = [read_clips(self.stores[n], part, self.clip_frames) for n, part in zip(numbers, rows, strict=True)]
        back = torch.from_numpy(np.argsort(order))
        names = [field.name for field in dataclasses.fields(clips[0]) if field.name not in ("actions", "sounds")]
        joined = {name: torch.cat([getattr(clip, name) for clip in clips])[back] for name in names}
        return type(clips[0])(**joined, actions=torch.zeros(joined["mask"].shape, dtype=torch.int64))


class LabelledSampler(JoinedSampler):
    """Random single token grids of several stores, each with the number of its class; by step."""

    def __init__(
        self, stores: Sequence[TokenStore], split: Split, batch_size: int, seed: int, classes: Sequence[str]
    ) -> None:
        """Fix what is drawn from.

        Args:
            stores: See :class:`JoinedSampler`; likewise the rest.
            split: Which episodes.
            batch_size: Grids of the global batch.
            seed: Of all that is drawn.
            classes: All labels that there are, a class has the number of its place; or one name, for whatever is there.
        """
        super().__init__(stores, split, 1, batch_size, seed)
        numbers = {name: number for number, name in enumerate(classes)}
        several = len(classes) > 1
        self._labels = [
            {n: numbers[store.label(n)] if several else 0 for n in store.numbers(split)} for store in stores
        ]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenImages:
        """Read this process's slice of the global batch of a step."""
        ids = self.ids(step)[self._share(rank, world)]
        clip = self._read(ids)
        assert isinstance(clip, TokenClip)
        rows = ids if len(self.stores) > 1 else np.insert(ids, 0, 0, axis=1)  # (B, 3)
        return TokenImages(
            clip.tokens[:, 0], torch.tensor([self._labels[n][episode] for n, episode, _ in rows.tolist()])
        )


def classes_of(stores: Sequence[EpisodeStore | TokenStore]) -> tuple[str, ...]:
    """Return the labels of all episodes, in alphabetical order.

    Raises:
        UsageError: There are more than MAX_CLASSES.
    """
    names = sorted({store.label(number) for store in stores for number in store.numbers()})
    if len(names) > MAX_CLASSES:
        raise UsageError(
            f"{stores[0].path}: the episodes have {len(names):,} different labels, at most {MAX_CLASSES:,} classes are "
            "told apart: set prior.classes=false, or give fewer labels"
        )
    return tuple(names)
