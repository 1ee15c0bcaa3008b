"""Small mazes, and one that is a single room."""

from __future__ import annotations

import numpy as np
from worldvq_envs.maze.env import MazeEnv

NOOP, FORWARD, BACK, LEFT, RIGHT, LOOK_LEFT, LOOK_RIGHT = range(7)
SMALL = {"num_cells": 5, "num_objects": 3}


def room(side: int = 7, objects: tuple = (), **kwargs) -> MazeEnv:
    """A maze without inner walls, the agent in the middle looking along +x, balls at ``objects``."""
    env = MazeEnv(num_cells=side, num_objects=len(objects), **kwargs)
    env.reset(seed=0)
    state = env.get_state()
    state["grid"][:, 1:-1, 1:-1] = 0
    state["position"][:] = 1 + side / 2
    state["heading"][:] = 0
    if objects:
        state["object_positions"][:] = objects
    env.set_state(state)
    return env


def frame(env: MazeEnv) -> np.ndarray:
    return env.set_state(env.get_state())
