"""A player that gathers medkits in ViZDoom's HealthGathering by what it sees, and what it gains as the reward.

    worldvq record VizdoomHealthGathering-v1 --out runs/medkits/data env.audio_key=audio env.frame_skip=4 \\
        env.wrappers=[./tools/medkits.py:Gained] record.policy=./tools/medkits.py:gather
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from worldvq.types import ActionSpace

FORWARD, RIGHT, LEFT = 1, 2, 3  # 0 is to do nothing


class Gained(gymnasium.Wrapper):
    """The reward of a step is the health gained in it, which only medkits give; sound has no part in it.

    Where the acid takes from full health what a medkit gives back in the same step, nothing is gained.
    """

    def reset(self, **arguments: Any) -> Any:
        """Begin an episode."""
        observation, info = self.env.reset(**arguments)
        self.health = float(observation["gamevariables"][0])
        return observation, info

    def step(self, action: Any) -> Any:
        """Take a step."""
        observation, _, terminated, truncated, info = self.env.step(action)
        before, self.health = self.health, float(observation["gamevariables"][0])
        return observation, max(self.health - before, 0.0), terminated, truncated, info


def gather(space: ActionSpace, seed: int) -> Callable[[np.ndarray], int]:
    """Return a player: from a frame (H, W, 3) to an action.

    It turns to the nearest medkit in sight (bright and grey) and walks there; more than a third of the steps are of
    stretches of one random action, so that it also passes medkits by.
    """
    rng = np.random.default_rng(seed)
    action, left = FORWARD, 0

    def act(frame: np.ndarray) -> int:
        nonlocal action, left
        if left:
            left -= 1
            return action
        if rng.random() < 0.12:
            action, left = int(rng.integers(space.nvec[0])), int(rng.integers(1, 7))
            return action
        values = frame.astype(int)
        rows, columns = np.nonzero((values.min(-1) > 110) & (np.ptp(values, axis=-1) < 40))
        if not len(rows):
            return RIGHT if rng.random() < 0.7 else FORWARD
        aside = columns[rows >= rows.max() - 3].mean() / frame.shape[1] - 0.5
        return FORWARD if abs(aside) < 0.08 else RIGHT if aside > 0 else LEFT

    return act
