"""The real environment under a person's actions, and the dataset of what was played. Used by one thread alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.types import ActionSpace, Episode


class Stream(Protocol):
    """What is needed of an adapted environment; ``worldvq_envs.stream.FrameStream`` is one."""

    action_space: ActionSpace
    has_frame: bool
    sound: np.ndarray | None

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; returns its first frame (H, W, 3) uint8."""
        ...

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Take a stored action; returns frame, reward, terminated, truncated."""
        ...

    def as_played(self, action: np.ndarray) -> np.ndarray:
        """Return a stored action as :meth:`step` plays it."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...


class Takes:
    """The dataset that people's episodes go into; shared by all players.

    Attributes:
        store: Open for writing.
        count: Episodes that were kept since it was opened.
    """

    def __init__(
        self,
        store: EpisodeStore,
        seed_of: Callable[[int], int],
        episodes: int | None = None,
        frames: int | None = None,
    ):
        """Begin.

        Args:
            store: Open for writing.
            seed_of: The environment's seed in the episode of a number.
            episodes: So many are enough; None is never enough.
            frames: Likewise, where no number of episodes is given.
        """
        self.store, self.count, self._seed_of = store, 0, seed_of
        self._episodes, self._frames = episodes, frames
        self._reserved: set[int] = set()

    @property
    def enough(self) -> bool:
        """Whether all that was asked for is recorded."""
        if self._episodes is not None:
            return len(self.store) >= self._episodes
        return self._frames is not None and self.store.num_frames >= self._frames

    def is_full(self, frames: int) -> bool:
        """Whether an episode in play of so many frames reaches the number that was asked for."""
        return self._episodes is None and self._frames is not None and self.store.num_frames + frames >= self._frames

    def reserve(self) -> tuple[int, int]:
        """Return the number of an episode that nobody else plays, and its seed."""
        number = next(n for n in range(2**31) if n not in self.store and n not in self._reserved)
        self._reserved.add(number)
        return number, self._seed_of(number)

    def keep(self, number: int, episode: Episode | None) -> None:
        """Commit what was played of a reserved episode; None, where there was not one step, gives its number back."""
        self._reserved.discard(number)
        if episode is not None:
            self.store.commit(number, episode)
            self.count += 1


class Outcome(NamedTuple):
    """Where the real environment is.

    Attributes:
        frame: (H, W, 3) uint8.
        reward: Of the last step.
        total: Of all steps since play began, without those that led there.
        over: "", or ``terminated`` or ``truncated``: nothing moves any more.
    """

    frame: np.ndarray
    reward: float
    total: float
    over: str


class Real:
    """One player's environment, and the episode in play.

    Attributes:
        recording: Whether episodes are kept when they end or are left.
    """

    def __init__(self, open_stream: Callable[[], Stream], takes: Takes | None = None, recording: bool = False):
        """Build nothing yet: that is for the thread that plays."""
        self._open, self._stream, self._takes, self.recording = open_stream, None, takes, recording
        self._number: int | None = None
        self._clear(0)

    def _clear(self, seed: int) -> None:
        self._seed, self._over, self._kept = seed, "", False
        self._led = self._taken = 0  # steps that led to where play began, and those since
        self._frames: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._sounds: list[np.ndarray] = []

    def begin(self, seed: int, path: Iterable[np.ndarray] = ()) -> Outcome:
        """Begin an episode, and take the actions that lead to where play begins."""
        self.leave()
        if self._stream is None:
            self._stream = self._open()
        self._clear(seed)
        self._frames = [self._stream.reset(seed).copy()]
        for action in path:
            self._step(action)
        self._led, self._taken = len(self._actions), 0
        return self._outcome()

    def begin_next(self) -> Outcome:
        """Begin the next episode of the dataset that is recorded."""
        assert self._takes is not None
        self.leave()
        number, seed = self._takes.reserve()
        try:
            return self.begin(seed)
        finally:
            self._number = number

    def act(self, action: np.ndarray) -> Outcome:
        """Take a stored action; of an episode that is over, nothing happens."""
        if not self._over:
            self._step(action)
            if self._over:
                self._keep()
        return self._outcome()

    def rewind(self, count: int) -> Outcome:
        """Go back to where it was ``count`` steps after play began: it cannot, but it can come to the same place again.

        Raises:
            UsageError: It came to another one, and has begun anew.
        """
        if count < self._taken:
            led, seed, shown = self._led, self._seed, self._frames[self._led + count]
            path = self._actions[: led + count]
            self._clear(seed)  # so that what is taken back is not kept
            self.begin(seed, path)
            self._led, self._taken = led, count
            if not np.array_equal(self._frames[-1], shown):
                self._clear(seed)
                self.begin(seed, path[:led])
                raise UsageError("the real environment does not come to the same place again: it has begun anew")
        return self._outcome()

    def leave(self) -> None:
        """Keep the episode in play as interrupted, if episodes are recorded; begin no other."""
        self._keep()
        self._clear(self._seed)

    def close(self) -> None:
        """Keep what was played, and close the environment."""
        try:
            self.leave()
        finally:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def _step(self, action: np.ndarray) -> None:
        assert self._stream is not None
        self._taken += 1
        played = self._stream.as_played(action)
        frame, reward, terminated, truncated = self._stream.step(played)
        if self._stream.has_frame or not self._actions:
            self._frames.append(frame.copy())  # a stream may draw the next frame into the same array
            self._actions.append(np.asarray(played))
            self._rewards.append(reward)
            if self._stream.sound is not None:
                self._sounds.append(self._stream.sound)
        else:  # it ended without showing where: the step before is the last one that can be seen
            self._rewards[-1] += reward
        self._over = "terminated" if terminated else "truncated" if truncated else ""
        if not self._over and self.recording and self._takes is not None and self._takes.is_full(len(self._frames)):
            self._over = "truncated"

    def _keep(self) -> None:
        """Hand the episode in play over to the dataset, once."""
        number, self._number = self._number, None
        played = self.recording and self._taken > 0 and not self._kept
        if self._takes is None or not (played or number is not None):
            return
        if number is None:
            number = self._takes.reserve()[0]
        self._kept = True
        self._takes.keep(number, self._episode() if played and self._actions else None)

    def _episode(self) -> Episode:
        assert self._stream is not None
        return Episode(
            np.stack(self._frames),
            np.stack(self._actions).astype(self._stream.action_space.dtype),
            np.array(self._rewards, np.float32),
            terminated=self._over == "terminated",
            truncated=self._over == "truncated",
            interrupted=not self._over,
            seed=self._seed,
            sounds=np.stack(self._sounds) if self._sounds else None,
        )

    def _outcome(self) -> Outcome:
        reward = self._rewards[-1] if self._rewards else 0.0
        return Outcome(self._frames[-1], reward, float(sum(self._rewards[self._led :])), self._over)
