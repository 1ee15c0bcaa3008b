"""Worlds that know what really happens, or nothing at all, to test the tests of a dream with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldvq.evaluation.branches import Player, Situation, play_on
from worldvq.types import ActionSpace


class Plane:
    """An endless plane, walked along two axes, and a dial of five positions; every place has a picture of its own."""

    has_frame = True
    action_space = ActionSpace("discrete", nvec=(6,), names=("stay", "east", "west", "north", "south", "dial"))
    moves = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]])

    def reset(self, seed: int) -> np.ndarray:
        self.place = np.array([seed % 100, 0, 0])
        return self._draw()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        self.place = self.place + self.moves[int(action)]
        self.place[2] %= 5
        return self._draw(), 0.0, False, False

    def _draw(self) -> np.ndarray:
        rng = np.random.default_rng(self.place + 1000)
        return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def situation(self, seed: int, actions: np.ndarray, context: int) -> Situation:
        """What one sees on a walk, as a situation."""
        frames = [self.reset(seed), *(self.step(action)[0] for action in actions)]
        return Situation(seed, seed, np.stack(frames[-context:]), actions)


class OracleWorld:
    """Imagines what the environment really does; its tokenizer adds a little grey, so that it has a ceiling."""

    def __init__(self, player: Player, situations: Sequence[Situation], action_space: ActionSpace, haze: int = 2):
        self.player, self.situations, self.action_space, self.haze = player, situations, action_space, haze

    def imagine(self, frames: np.ndarray, actions: np.ndarray, **_: Any) -> Tensor:
        """See :meth:`worldvq.world.model.WorldModel.imagine`."""
        return torch.from_numpy(np.stack([self._one(*row) for row in zip(frames, actions, strict=True)]))

    def _one(self, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
        for situation in self.situations:  # two may show the same
            context, given = len(situation.frames), frames[len(situation.frames) :]
            if np.array_equal(situation.frames, frames[:context]):
                real = play_on(self.player, situation, actions[context - 1 :])
                if real is not None and np.array_equal(given, real[: len(given)]):
                    return self._hazy(real[len(given) :])
        raise AssertionError("no situation shows these frames")

    def _hazy(self, frames: np.ndarray) -> np.ndarray:
        return np.where(frames < 128, frames + self.haze, frames - self.haze).astype(np.uint8)

    def tokenize(self, frames: np.ndarray) -> np.ndarray:
        return frames

    def render(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(self._hazy(tokens))


class StillWorld(OracleWorld):
    """Imagines that nothing ever changes."""

    def _one(self, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return self._hazy(np.stack([frames[-1]] * (len(actions) - len(frames) + 1)))
