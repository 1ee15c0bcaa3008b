"""Where a dream begins: contexts of held-out episodes, and how the real environment gets there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldvq.data.clips import heldout_clips, read_clips, spread_by_change
from worldvq.data.episodes import EpisodeStore
from worldvq.world.dream import Dream
from worldvq.world.model import WorldModel

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
        sounds: (C, S) int16, what was heard before each frame; None in a dataset without sound.
    """

    frames: np.ndarray
    actions: np.ndarray
    seed: int
    path: np.ndarray
    sounds: np.ndarray | None = None


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
        clip = read_clips(store, np.array([[number, first]]), context)
        heard = None if clip.sounds is None else clip.sounds[0].numpy()
        path = np.array(store.mapped(number).actions[: first + context - 1])
        starts.append(Start(clip.frames[0].numpy(), path[first:], store.entry(number).seed, path, heard))
    return starts


class Openings:
    """Dreams that have seen a context and nothing else, kept: to begin is then to copy a row.

    Attributes:
        world: What dreams.
        starts: The contexts.
    """

    def __init__(self, world: WorldModel, starts: list[Start]):
        self.world, self.starts = world, starts
        self._seen: dict[int, tuple[Dream, np.ndarray]] = {}

    def begin(self, start: int, luck: int) -> tuple[Dream, np.ndarray]:
        """Return a dream of one row that has seen a start, with a seed of its own, and the frame (H, W, 3) it is at."""
        if start not in self._seen:
            frames, actions, sounds = self.starts[start].frames, self.starts[start].actions, self.starts[start].sounds
            # Players come and go: what is compiled or measured anew for every size of a batch would stall the others,
            # and in bf16 they would see one another in the ties.
            fixed = {"compile": False, "method": "predictive", "precision": "no"}
            dream = self.world.start(
                frames[None], actions[None], sounds=None if sounds is None else sounds[None], **fixed
            )
            self._seen[start] = dream, dream.render()[0].numpy()
        dream, frame = self._seen[start]
        return dream.fork([0], row_seeds=[luck]), frame
