"""An environment whose state is a sum of moves, so that what undoes what is plain: its frame is its position.

Its id is ``support.moves_env:Moves-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE = (16, 16)
EDGE = 8
"""How far from the middle one can go; a move beyond does nothing."""
MOVES = {"stay": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BUTTONS = ("left", "right", "up", "down")


class MovesEnv(gymnasium.Env):
    """Discrete: the moves by name, and ``jump``, to anywhere. Buttons: moves together. Box: any move."""

    def __init__(self, action: str = "discrete", length: int = 60, crowd: int = 0):
        self.action, self.length = action, length
        self.action_names = {"discrete": (*MOVES, "jump"), "buttons": BUTTONS}.get(action)
        if crowd:  # many actions: of each two that stand beside each other the second one undoes the first
            self.action_names = tuple(f"{sign}{number}" for number in range(crowd) for sign in "+-")
        self.crowd = crowd
        discrete = spaces.Discrete(len(self.action_names) if self.action_names else 1)
        self.action_space = {
            "discrete": discrete,
            "buttons": spaces.MultiBinary(len(BUTTONS)),
            "box": spaces.Box(-1, 1, (2,)),
            "forward": spaces.Box(0, 1, (2,)),
        }[action]
        self.observation_space = spaces.Box(0, 255, (*SIZE, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        self.position = self.np_random.integers(-3, 4, self.crowd or 2).astype(float)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        there = self.position + self._move(action)
        if (np.abs(there) <= EDGE).all():
            self.position = there
        return self._observe(), 0.0, False, self.steps == self.length, {}

    def _move(self, action: Any) -> Any:
        if self.crowd:
            return (1 - 2 * (action % 2)) * np.eye(self.crowd)[action // 2]
        if self.action == "discrete":
            if action == len(MOVES):
                return self.np_random.integers(-3, 4, 2) - self.position
            return np.array(list(MOVES.values())[action])
        if self.action == "buttons":
            return np.dot(action, [MOVES[name] for name in BUTTONS])
        return action

    def _observe(self) -> np.ndarray:
        frame = np.full((*SIZE, 3), 100, np.uint8)
        if self.crowd:
            frame[: self.crowd] = np.rint(128 + self.position * 12)[:, None, None]
        else:
            frame[..., :2] = np.rint(128 + self.position * 12)
        return frame


gymnasium.register("Moves-v0", MovesEnv)
