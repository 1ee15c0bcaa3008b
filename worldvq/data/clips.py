"""Clips: windows of T frames or token grids, sampled at random or fixed for evaluation.

Which window stands where is a pure function of (seed, step), so a resumed run, on any number of processes,
sees exactly the batches that an uninterrupted one would.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, plural
from worldvq.types import Clip, TokenClip

if TYPE_CHECKING:
    from worldvq.data.store import Split
    from worldvq.data.tokens import TokenStore


@overload
def read_clips(store: EpisodeStore, ids: np.ndarray, clip_frames: int) -> Clip: ...
@overload
def read_clips(store: TokenStore, ids: np.ndarray, clip_frames: int) -> TokenClip: ...
@overload
def read_clips(store: EpisodeStore | TokenStore, ids: np.ndarray, clip_frames: int) -> Clip | TokenClip: ...
def read_clips(store: EpisodeStore | TokenStore, ids: np.ndarray, clip_frames: int) -> Clip | TokenClip:
    """Read windows into one batch; what lies past the end of an episode is zero and masked.

    Args:
        store: Frames or tokens.
        ids: (B, 2) episode number and first frame of each window.
        clip_frames: Frames a window, T.

    Raises:
        UsageError: There is no such episode or frame.
        CorruptFileError: A file is missing or broken.
    """
    batch, space = len(ids), store.action_space
    windows = np.asarray(ids).tolist()
    episodes = [store.mapped(number) for number, _ in windows]  # checked before memory is taken for what they claim
    is_frames = isinstance(store, EpisodeStore)
    items = torch.empty((batch, clip_frames, *store.item_shape), dtype=torch.uint8 if is_frames else torch.int64)
    actions = np.zeros((batch, clip_frames, *space.shape), space.dtype)
    rewards = np.zeros((batch, clip_frames), np.float32)
    terminated, mask, action_mask = np.zeros((3, batch, clip_frames), bool)
    sound = store.meta.sound if isinstance(store, EpisodeStore) else None
    sounds = np.zeros((batch, clip_frames, sound.samples), np.int16) if sound else None
    out = items.numpy()
    for row, ((number, start), episode) in enumerate(zip(windows, episodes, strict=True)):
        entry = store.entry(number)
        if not 0 <= start < entry.num_frames:
            raise UsageError(
                f"{store.path}: episode {number} has {plural(entry.num_frames, 'frame')}, there is no frame {start}"
            )
        num_frames = min(clip_frames, entry.num_frames - start)
        num_actions = min(clip_frames, entry.num_frames - 1 - start)
        store.copy_window(number, start, out[row, :num_frames])
        out[row, num_frames:] = 0
        actions[row, :num_actions] = episode.actions[start : start + num_actions]
        rewards[row, :num_actions] = episode.rewards[start : start + num_actions]
        if sounds is not None:
            first = max(start - 1, 0)  # before the first frame of an episode nothing was heard
            sounds[row, first + 1 - start : num_frames] = episode.sounds[first : start + num_frames - 1]  # type: ignore[union-attr]
        mask[row, :num_frames] = True
        action_mask[row, :num_actions] = True
        if entry.terminated and num_actions and start + num_actions == entry.num_frames - 1:
            terminated[row, num_actions - 1] = True
    rest = [torch.from_numpy(array) for array in (actions, rewards, terminated, mask, action_mask)]
    heard = None if sounds is None else torch.from_numpy(sounds)
    return Clip(items, *rest, sounds=heard) if is_frames else TokenClip(items, *rest)


class ClipSampler:
    """Random windows of a split, by step.

    Every frame that can start a full window is equally likely; an episode shorter than the window counts as
    one window, which is padded.
    """

    def __init__(
        self, store: EpisodeStore | TokenStore, split: Split, clip_frames: int, batch_size: int, seed: int
    ) -> None:
        """Fix what is drawn from; episodes committed later are not seen.

        Raises:
            UsageError: The split is empty, or a size is not positive.
        """
        if clip_frames < 1 or batch_size < 1 or seed < 0:
            raise UsageError(
                "clip_frames and batch_size must be at least 1 and seed at least 0, "
                f"got {clip_frames}, {batch_size}, {seed}"
            )
        self.store, self.clip_frames, self.batch_size, self.seed = store, clip_frames, batch_size, seed
        self._numbers = np.array(store.numbers(split), np.int64)
        if not len(self._numbers):
            raise UsageError(
                f"{store.path} has no {split} episodes ({len(store)} in all, record.heldout_every is "
                f"{store.heldout_every}); record more, or record again with another record.heldout_every, which plays "
                "nothing again"
            )
        starts = [max(self._length(int(n)) - clip_frames + 1, 1) for n in self._numbers]
        self._ends = np.cumsum(starts)

    def _length(self, number: int) -> int:
        """How long an episode is, in what a window is counted in."""
        return self.store.entry(number).num_frames

    @property
    def num_windows(self) -> int:
        """Number of different windows."""
        return int(self._ends[-1])

    def ids(self, step: int) -> np.ndarray:
        """Episode number and first frame of every window of the global batch of a step, (batch_size, 2) int64."""
        return self._ids(self._draw(step))

    def _ids(self, windows: np.ndarray) -> np.ndarray:
        episode, start = locate(self._ends, windows)
        return np.stack([self._numbers[episode], start], axis=1)

    def _words(self, step: int, count: int) -> np.ndarray:
        """Raw words of a counter-based generator: random access by step, and the same in every numpy."""
        return np.random.Philox(key=self.seed, counter=step << 64).random_raw(count)

    def _draw(self, step: int) -> np.ndarray:
        """Windows (batch_size,) of a step, counted through all episodes."""
        return (self._words(step, self.batch_size) % np.uint64(self.num_windows)).astype(np.int64)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Clip | TokenClip:
        """Read this process's contiguous slice of the global batch of a step.

        Raises:
            UsageError: The batch does not divide by the number of processes.
        """
        return read_clips(self.store, self.ids(step)[self._share(rank, world)], self.clip_frames)

    def _share(self, rank: int, world: int) -> slice:
        if self.batch_size % world:
            raise UsageError(f"batch_size {self.batch_size} is not divisible by {world} processes")
        share = self.batch_size // world
        return slice(rank * share, (rank + 1) * share)


def locate(ends: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In which part an index into parts laid end to end falls, and where in it; ``ends`` are the parts' ends."""
    part = np.searchsorted(ends, index, side="right")
    return part, index - np.concatenate([[0], ends])[part]


class RewardedClipSampler(ClipSampler):
    """Windows of tokens of which some hold a reward more often than they would by chance.

    With probability ``fraction`` a window is drawn uniformly from those in which some reward is not zero, else
    uniformly from all. Each carries as its weight how much more often uniform sampling would have drawn it, so that
    weighted means are those of uniform sampling: rare rewards are learnt with less noise, not believed to be frequent.
    """

    store: TokenStore

    def __init__(
        self, store: TokenStore, split: Split, clip_frames: int, batch_size: int, seed: int, fraction: float
    ) -> None:
        """Fix what is drawn from, and find the rewards in it.

        Args:
            store: Tokens.
            split: See :class:`ClipSampler`; likewise the rest.
            clip_frames: Frames a window.
            batch_size: Windows of the global batch.
            seed: Of all that is drawn.
            fraction: From 0, which draws as :class:`ClipSampler` does, to less than 1.

        Raises:
            UsageError: The split is empty, or a size is not positive.
            CorruptFileError: A file is missing or broken.
        """
        super().__init__(store, split, clip_frames, batch_size, seed)
        runs = [np.empty((0, 2), np.int64)]  # first and last window of each run of windows that hold a reward
        if fraction:
            for number, before, end in zip(self._numbers, np.concatenate([[0], self._ends]), self._ends, strict=False):
                runs.append(before + _rewarded_runs(store.rewards(int(number)), clip_frames, int(end - before)))
        self._firsts, lasts = np.concatenate(runs).T
        self._run_ends = np.cumsum(lasts - self._firsts + 1)
        self.fraction = fraction if len(self._firsts) else 0.0

    def _draw(self, step: int) -> np.ndarray:
        window = super()._draw(step)
        if not self.fraction:
            return window
        words, choice = self._words(step, 2 * self.batch_size).reshape(2, -1)
        run, place = locate(self._run_ends, (words % np.uint64(self._run_ends[-1])).astype(np.int64))
        return np.where(choice / 2.0**64 < self.fraction, self._firsts[run] + place, window)

    def _weights(self, windows: np.ndarray) -> np.ndarray:
        """Uniform probability over that of the mixture."""
        if not self.fraction:
            return np.ones(len(windows))
        run = np.searchsorted(self._firsts, windows, side="right") - 1
        sizes = np.diff(self._run_ends, prepend=0)
        rewarded = (run >= 0) & (windows < (self._firsts + sizes)[run])
        return 1 / (1 - self.fraction + self.fraction * self.num_windows / self._run_ends[-1] * rewarded)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenClip:
        """Read this process's slice, with weights; see :meth:`ClipSampler.batch`."""
        windows = self._draw(step)[self._share(rank, world)]
        clip = read_clips(self.store, self._ids(windows), self.clip_frames)
        return dataclasses.replace(clip, weight=torch.from_numpy(self._weights(windows)).float())


def _rewarded_runs(rewards: np.ndarray, clip_frames: int, num_windows: int) -> np.ndarray:
    """First and last (n, 2) of each run of an episode's windows that hold a reward; runs do not touch."""
    paid = np.flatnonzero(rewards)
    first, last = np.maximum(paid - clip_frames + 1, 0), np.minimum(paid, num_windows - 1)  # ascending, both
    begins = np.append(True, first[1:] > last[:-1] + 1)[: len(paid)]
    ends = np.append(begins[1:], True)[: len(paid)]
    return np.stack([first[begins], last[ends]], axis=1)


def heldout_clips(
    store: EpisodeStore | TokenStore,
    num_clips: int,
    clip_frames: int,
    seed: int = 0,
    setting: str = "context + horizon",
) -> np.ndarray:
    """Choose distinct full windows spread evenly over the held-out episodes.

    They do not overlap as long as there are enough that do not. Fewer are returned where there are fewer.

    Args:
        store: Where the episodes are.
        num_clips: How many windows, at most.
        clip_frames: Frames of each.
        seed: Of the choice.
        setting: What decides ``clip_frames``, for the error.

    Returns:
        (n, 2) int64, episode number and first frame, n <= num_clips; the same for the same arguments.

    Raises:
        UsageError: No held-out episode is long enough.
    """
    numbers = store.numbers("heldout")
    if not numbers:
        raise UsageError(
            f"{store.path} has no held-out episodes ({len(store)} in all, record.heldout_every is "
            f"{store.heldout_every}); record more, or record again with a smaller record.heldout_every, which plays "
            "nothing again"
        )
    lengths = {number: store.entry(number).num_frames for number in numbers}
    longest = max(numbers, key=lambda number: lengths[number])
    if lengths[longest] < clip_frames:
        raise UsageError(
            f"{store.path}: no held-out episode has {plural(clip_frames, 'frame')}, the longest (episode {longest}) "
            f"has {lengths[longest]}: set {setting} to at most that, or record longer episodes"
        )
    raw = np.random.Philox(key=seed).random_raw(len(numbers) + 1)
    apart, every = [], []
    for number, word in zip(numbers, raw[1:].tolist(), strict=True):
        num_starts = lengths[number] - clip_frames + 1
        if num_starts < 1:
            continue
        offset = word % (lengths[number] % clip_frames + 1)
        apart += [(number, start) for start in range(offset, num_starts, clip_frames)]
        every += [(number, start) for start in range(num_starts)]
    windows = apart if len(apart) >= num_clips else every
    if len(windows) > num_clips:
        phase = raw[0] / 2.0**64
        picked = ((np.arange(num_clips) + phase) * (len(windows) / num_clips)).astype(np.int64)
        windows = [windows[index] for index in np.minimum(picked, len(windows) - 1)]
    return np.array(windows, np.int64)


def spread_by_change(store: EpisodeStore, ids: np.ndarray, clip_frames: int, count: int) -> np.ndarray:
    """Choose clips to show, by a rule and not by hand: from such in which little changes to such in which much does.

    Clips are ordered by how much their pixels change from one frame to the next, on the mean. Shown are the middles of
    ``count`` equal parts of that order: of four, the quantiles 7/8, 5/8, 3/8 and 1/8.

    Args:
        store: Where the episodes are.
        ids: (n, 2) int64, episode and first frame of each.
        clip_frames: Frames of each.
        count: How many are shown, at most.

    Returns:
        Rows of ``ids`` (min(count, n),) int64, that in which most changes first.
    """
    frames, changes = np.empty((clip_frames, *store.item_shape), np.uint8), np.empty(len(ids))
    for row, (number, start) in enumerate(ids.tolist()):
        store.copy_window(number, start, frames)
        changes[row] = np.abs(np.diff(frames.astype(np.int16), axis=0)).sum()
    order = np.argsort(-changes, kind="stable")
    count = min(count, len(order))
    return order[((2 * np.arange(count) + 1) * len(order) - count) // (2 * count)]
