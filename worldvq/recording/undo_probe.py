"""Finding by trying which action undoes which, once a dataset and before anything is written.

A try plays one action k times and another one k times, on and on in a few episodes: nothing is replayed, so any
environment will do. Tries of a pair follow each other: what still moves from the pair before, as in worlds with
inertia, comes to rest meanwhile. They take turns in which action comes first: a try does not end with what was played
before it, so a frame that shows what is pressed does not seem to come back. A pair that came back at all is tried again
in other episodes, as in a corner anything may seem to undo anything. A try that a wall stopped does not count; one that
slid along a wall does, so even of two actions that undo each other not every try comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from worldvq.recording.players import random_action
from worldvq.recording.policies import Stream
from worldvq.recording.undo import Undo, inverse_of, parts_of

LONGEST = 4
"""How often an action is played in a try, at most."""
BACK = 0.25
"""A try comes back where the mean absolute difference to its first frame falls to this part."""
ENOUGH = 4
"""Tries that decide on a pair at a place: so many of one outcome, before as many of the other."""
FIRST, FEW, PLACES = 4, 8, 16
"""At how many places a pair is tried that never comes back, one that is to be found, and any one at most."""
SHARE, CLEAR = 0.3, 0.2
"""Of its tries, in which a pair has to come back; and how far from that it is plain."""
VISIBLE = 0.1
"""A try does not come back where its first action changes the frame by less than this part of what others did."""
MOST_STEPS, MOST_EPISODES = 6000, 100
MOST_PAIRS = 66
"""Pairs that are tried, of 12 actions all, else those that are nearest in number. A wrong one takes 80 steps."""

Pair = tuple[np.ndarray | None, np.ndarray | None]
Draw = Callable[[], Pair]
"""Gives two actions to try together; None for one that there is not."""


class _EndedError(Exception):
    """The episode is over: the try does not count."""


class _BlockedError(Exception):
    """A step changed nothing: the try does not count."""


class _Player:
    """Plays on in as many episodes as it takes; ``moving`` is called before each reset and step with which it is."""

    def __init__(self, stream: Stream, seed_of: Callable[[int], int], moving: Callable[[bool], None], most_steps: int):
        self.stream, self.seed_of, self.moving, self.most_steps = stream, seed_of, moving, most_steps
        self.steps = self.episodes = 0
        self.frame: np.ndarray | None = None  # None before an episode
        self.changes: list[float] = []

    @property
    def spent(self) -> bool:
        return self.steps >= self.most_steps or (self.frame is None and self.episodes >= MOST_EPISODES)

    def show(self) -> np.ndarray:
        """Return the frame as it is, (H, W, 3) int16."""
        if self.frame is None:
            self.moving(False)
            self.frame = self.stream.reset(self.seed_of(self.episodes)).astype(np.int16)
            self.episodes += 1
        return self.frame

    def move_on(self) -> None:
        """Leave the episode, if there may be another one."""
        if self.episodes < MOST_EPISODES:
            self.frame = None

    def play(self, action: np.ndarray, times: int) -> np.ndarray:
        """Play an action; returns the frame after it."""
        for _ in range(times):
            before = self.show()
            self.moving(True)
            frame, _, terminated, truncated = self.stream.step(self.stream.as_played(action))
            self.steps += 1
            if terminated or truncated or not self.stream.has_frame:
                self.frame = None
                raise _EndedError
            self.frame = frame.astype(np.int16)
            if np.array_equal(self.frame, before):
                raise _BlockedError
        return self.show()


def find_undo(
    stream: Stream,
    seed: int,
    seed_of: Callable[[int], int],
    moving: Callable[[bool], None],
    most_steps: int = MOST_STEPS,
) -> Undo:
    """Find by trying which action undoes which: a pure function of environment and seeds.

    Args:
        stream: The environment.
        seed: Of what is tried.
        seed_of: Seed of the n-th episode that is played.
        moving: Called before every reset (False) and step (True).
        most_steps: After which no other try begins.

    Returns:
        The table, :data:`worldvq.recording.undo.Undo`; empty where nothing was found.
    """
    space, rng = stream.action_space, np.random.default_rng(seed)
    player = _Player(stream, seed_of, moving, most_steps)
    if space.kind == "box":
        negated = inverse_of(space, "negated")

        def draw() -> Pair:
            action = random_action(space, rng)
            return action, negated(action)

        return "negated" if _most_agree([draw], player, rng) else {}
    parts = parts_of(space)
    names = list(parts)
    nearest = ((one, one + apart) for apart in range(1, len(names)) for one in range(len(names) - apart))
    pairs = list(islice(nearest, MOST_PAIRS))
    draws = [lambda one=parts[names[one]], other=parts[names[other]]: (one, other) for one, other in pairs]
    found: dict[str, str] = {}
    for number in _most_agree(draws, player, rng):
        one, other = (names[index] for index in pairs[number])
        found = {one: other, other: one} | found
    return {name: found[name] for name in names if name in found}


def _most_agree(draws: Sequence[Draw], player: _Player, rng: np.random.Generator) -> list[int]:
    """Return the numbers of the pairs that undo each other, the surest first."""
    ratios: list[list[float]] = [[] for _ in draws]
    shares = np.full(len(draws), SHARE)  # of the tries of a pair, in which it came back
    for place in range(PLACES):
        clear = np.abs(shares - SHARE) >= CLEAR if place >= FEW else (shares == 0) & (place >= FIRST)
        for number in rng.permutation(np.flatnonzero(~clear)).tolist():
            if place > 1:  # at first the tries of all other pairs are between two places
                player.move_on()
            ratios[number] += _try(player, draws[number], rng)
        if place > 0:
            shares[:] = [np.mean(np.array(tries) <= BACK) if tries else 0 for tries in ratios]
    sure = [number for number, share in enumerate(shares) if share >= SHARE and share * len(ratios[number]) >= ENOUGH]
    return sorted(sure, key=lambda number: (-shares[number], np.mean(ratios[number])))


def _try(player: _Player, draw: Draw, rng: np.random.Generator) -> list[float]:
    """Try a pair of actions, in one order and the other in turn, until ``ENOUGH`` tries agree.

    Returns:
        For every try that counts, how far the frame was from where it began after the second action, as a part of how
        far it was after the first one.
    """
    ratios: list[float] = []
    idle, turn = 0, 1
    while idle < ENOUGH and not player.spent:
        undone = sum(ratio <= BACK for ratio in ratios)
        if max(undone, len(ratios) - undone) >= ENOUGH:
            break
        there, back = draw()[::turn]
        times = int(rng.integers(1, LONGEST + 1))
        if there is None or back is None:
            idle += 1
            continue
        try:
            first = player.show()
            away = float(np.abs(player.play(there, times) - first).mean())
            if away < VISIBLE * np.mean([*player.changes, away]):
                ratios.append(1.0)
                continue
            player.changes.append(away)
            ratios.append(float(np.abs(player.play(back, times) - first).mean() / away))
        except _BlockedError:
            idle += 1
        except _EndedError:
            continue
        turn = -turn
    return ratios
