"""Where a dream begins: contexts of held-out episodes, and how the real environment gets there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldvq.data.clips import heldout_clips, spread_by_change
from worldvq.data.episodes import EpisodeStore

NUM_STARTS = 12
"""Thumbnails."""
CANDIDATES = 96
"""Held-out clips among which they are chosen."""


@dataclass(frozen=True)
class Start:
    """A context.

    Attributes:
        frames: (C, H, W, 3) uint8.
        actions: (C - 1, ...) between them.
        seed: Of the episode that it is from.
        path: (t, ...) actions from the first frame of the episode to the last one of the context.
    """

    frames: np.ndarray
    actions: np.ndarray
    seed: int
    path: np.ndarray


def find_starts(store: EpisodeStore, context: int | None, longest: int) -> list[Start]:
    """Choose contexts of held-out episodes, from such in which much changes to such in which little does.

    Args:
        store: The dataset.
        context: Frames of each; None takes as many as are remembered, if there are as many.
        longest: Frames that are remembered.

    Raises:
        UsageError: There is no held-out episode, or none of so many frames.
    """
    if context is None:
        lengths = [store.entry(number).num_frames for number in store.numbers("heldout")]
        context = min([longest, *([max(lengths)] if lengths else [])])
    ids = heldout_clips(store, CANDIDATES, context, setting="--context")
    starts = []
    for number, first in ids[spread_by_change(store, ids, context, NUM_STARTS)].tolist():
        frames = np.empty((context, *store.item_shape), np.uint8)
        store.copy_window(number, first, frames)
        path = np.array(store.mapped(number).actions[: first + context - 1])
        starts.append(Start(frames, path[first:], store.entry(number).seed, path))
    return starts
