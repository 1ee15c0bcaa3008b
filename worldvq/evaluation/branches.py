"""What really happens when a held-out situation is played on in other ways: forks of an environment.

A situation is a frame of a held-out episode. The episode's seed and its actions lead there again; that they do is
proved by comparing the frames with those that were recorded. Nothing else is asked of an environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldvq.data.clips import read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, plural
from worldvq.types import UNBOUNDED, ActionSpace

MOST_PLANS = 9
"""Ways to go on from a situation, at most."""
EARLY = 24
"""Situations lie among so many frames after the first context: to come back to one, all before it is replayed."""


class CannotForkError(UsageError):
    """Situations of this dataset cannot be played on: its environment is not there, or comes to other frames."""


class Player(Protocol):
    """What is needed of an adapted environment; ``worldvq_envs.stream.FrameStream`` is one."""

    has_frame: bool

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; returns its first frame (H, W, 3) uint8."""
        ...

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Take a stored action; returns frame, reward, terminated, truncated."""
        ...


@dataclass(frozen=True)
class Situation:
    """A frame of an episode, and how one gets there.

    Attributes:
        number: The episode.
        seed: Its seed.
        frames: (C, H, W, 3) uint8, the last of which is the one where branches begin.
        actions: (t, ...) from the start of the episode.
        sounds: (C, S) int16, what was heard before each of the frames; None in a dataset without sound.
    """

    number: int
    seed: int
    frames: np.ndarray
    actions: np.ndarray
    sounds: np.ndarray | None = None

    @property
    def between(self) -> np.ndarray:
        """Actions between the frames, (C - 1, ...)."""
        return self.actions[len(self.actions) - len(self.frames) + 1 :]

    @property
    def place(self) -> np.ndarray:
        """Episode and frame, (2,) int64."""
        return np.array([self.number, len(self.actions)], np.int64)


def find_situations(store: EpisodeStore, player: Player, context: int, count: int, seed: int) -> list[Situation]:
    """Draw situations of held-out episodes, and prove that playing leads to them again.

    Args:
        store: The dataset.
        player: Its environment.
        context: Frames that are shown of each.
        count: How many, if there are as many.
        seed: Of the choice.

    Raises:
        CannotForkError: The environment comes to other frames.
        UsageError: No held-out episode is long enough.
    """
    rng = np.random.default_rng(seed)
    places = []
    for number in store.numbers("heldout"):
        last = min(store.entry(number).num_frames - 2, context - 1 + EARLY)  # something has to follow
        places += [(number, step) for step in range(context - 1, last + 1)]
    if not places:
        raise UsageError(f"{store.path}: no held-out episode has more than {plural(context, 'frame')}")
    situations = []
    for index in rng.permutation(len(places))[:count]:
        number, step = places[index]
        episode = store.read(number)
        clip = read_clips(store, np.array([[number, step - context + 1]]), context)
        heard = None if clip.sounds is None else clip.sounds[0].numpy()
        found = Situation(number, episode.seed, clip.frames[0].numpy(), episode.actions[:step], heard)
        _prove(player, found, episode.frames[: step + 1], store)
        situations.append(found)
    return situations


def _prove(player: Player, situation: Situation, recorded: np.ndarray, store: EpisodeStore) -> None:
    """Raise a CannotForkError unless an episode, played again, shows the frames that were recorded."""
    frame = player.reset(situation.seed)
    for step, action in enumerate((*situation.actions, None)):
        if not np.array_equal(frame, recorded[step]):
            raise CannotForkError(
                f"'{store.meta.env.id}' cannot be forked: episode {situation.number}, played again with its seed and "
                f"actions, shows another frame {step} than {store.path} holds"
            )
        if action is not None:
            frame = player.step(action)[0]


def _come_back(player: Player, situation: Situation) -> None:
    player.reset(situation.seed)
    for action in situation.actions:
        player.step(action)


def play_on(player: Player, situation: Situation, actions: np.ndarray) -> np.ndarray | None:
    """Return the frames (N, H, W, 3) that follow a situation under actions (N, ...); None where it ends before."""
    _come_back(player, situation)
    frames = []
    for step, action in enumerate(actions):
        frame, _, terminated, truncated = player.step(action)
        if not player.has_frame or ((terminated or truncated) and step < len(actions) - 1):
            return None
        frames.append(frame)
    return np.stack(frames)


def return_of(player: Player, situation: Situation, actions: np.ndarray) -> float:
    """Return the sum of the rewards that follow a situation under actions (N, ...), until it ends."""
    _come_back(player, situation)
    total = 0.0
    for action in actions:
        _, reward, terminated, truncated = player.step(action)
        total += reward
        if terminated or truncated:
            break
    return total


def plans_of(space: ActionSpace) -> tuple[list[str], np.ndarray]:
    """Return names and actions (P, ...) of what is held in the branches, at most ``MOST_PLANS``.

    Discrete: every action, or some spread evenly over them. Several factors: none, then each factor alone in each of
    its choices. Box: the middle, then each number alone at its lower and upper bound, at -1 and 1 where there is none.
    """
    if space.kind == "discrete":
        count = min(space.nvec[0], MOST_PLANS)
        actions = np.linspace(0, space.nvec[0] - 1, count).round().astype(np.int64)
    elif space.kind == "multi_discrete":
        rows = [np.zeros(len(space.nvec), np.int64)]
        for factor, choices in enumerate(space.nvec):
            for choice in range(1, choices):
                rows.append(rows[0].copy())
                rows[-1][factor] = choice
        actions = np.stack(rows[:MOST_PLANS])
    else:
        low, high = (np.array(side, np.float64) for side in (space.low, space.high))
        low, high = np.where(low > -UNBOUNDED, low, -1), np.where(high < UNBOUNDED, high, 1)
        rows = [np.clip(np.zeros(len(low)), low, high)]
        for number in range(len(low)):
            for side in (low, high):
                rows.append(rows[0].copy())
                rows[-1][number] = side[number]
        actions = np.stack(rows[:MOST_PLANS]).astype(np.float32)
    return [space.label(action) for action in actions], actions
