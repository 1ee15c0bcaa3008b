"""The rules of the maze for a batch of environments: moving, sliding along walls, collecting, ending."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldvq_envs.maze.layout import NUM_HEADINGS, make_layout
from worldvq_envs.maze.render import DIRECTIONS, Scene

ACTION_NAMES = ("noop", "forward", "back", "strafe_left", "strafe_right", "look_left", "look_right")
STEP = 0.3
"""Cells a move."""
AGENT_RADIUS = 0.3125
"""Half the side of the square that the agent takes up; a binary fraction keeps positions exact."""
PICKUP_DISTANCE = 0.5
_TURN = np.array([0, 0, 0, 0, 0, -1, 1])


def _moves() -> np.ndarray:
    """(headings, actions, 2) displacement, rounded to 2^-16 so that a move and its inverse cancel exactly."""
    forward = DIRECTIONS
    right = np.stack([-forward[:, 1], forward[:, 0]], 1)
    none = np.zeros_like(forward)
    moves = np.stack([none, forward, -forward, -right, right, none, none], 1) * STEP
    return np.rint(moves * 65536) / 65536


_MOVES = _moves()


class Rules:
    """The state of ``num_envs`` mazes and how it changes.

    Attributes:
        scene: What the renderer needs.
        num_steps: (E,) int64 steps since the reset.
    """

    def __init__(self, num_envs: int, num_cells: int, num_objects: int, max_steps: int) -> None:
        side = num_cells + 2
        self.num_cells, self.num_objects, self.max_steps = num_cells, num_objects, max_steps
        self.scene = Scene(
            grid=np.ones((num_envs, side, side), np.uint8),
            position=np.zeros((num_envs, 2)),
            heading=np.zeros(num_envs, np.int64),
            object_positions=np.zeros((num_envs, num_objects, 2)),
            object_kinds=np.zeros((num_envs, num_objects), np.int64),
            object_present=np.zeros((num_envs, num_objects), bool),
        )
        self.num_steps = np.zeros(num_envs, np.int64)

    def reset(self, env: int, random: np.random.Generator) -> None:
        """Begin an episode in a new layout."""
        layout = make_layout(random, self.num_cells, self.num_objects)
        scene = self.scene
        scene.grid[env] = layout.grid
        scene.position[env] = layout.start
        scene.heading[env] = layout.heading
        scene.object_positions[env] = layout.object_positions
        scene.object_kinds[env] = layout.object_kinds
        scene.object_present[env] = True
        self.num_steps[env] = 0

    def step(self, actions: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Move every active environment by one action.

        Args:
            actions: (E,) int64.
            active: (E,) bool; the others stay as they are.

        Returns:
            (E,) float64 rewards (the number of objects collected), (E,) bool terminated (none is left),
            (E,) bool truncated (out of steps; never together with terminated).
        """
        scene = self.scene
        move = np.where(active[:, None], _MOVES[scene.heading, actions], 0.0)
        for axis in (0, 1):
            self._slide(axis, move[:, axis])
        scene.heading[:] = (scene.heading + np.where(active, _TURN[actions], 0)) % NUM_HEADINGS
        offset = scene.object_positions - scene.position[:, None]
        near = offset[..., 0] ** 2 + offset[..., 1] ** 2 < PICKUP_DISTANCE**2
        taken = scene.object_present & near & active[:, None]
        scene.object_present &= ~taken
        self.num_steps += active
        rewards = taken.sum(1).astype(np.float64)
        terminated = active & taken.any(1) & ~scene.object_present.any(1)
        truncated = active & ~terminated & (self.num_steps >= self.max_steps)
        return rewards, terminated, truncated

    def _slide(self, axis: int, move: np.ndarray) -> None:
        """Move along one axis up to the next wall. A move is shorter than a cell, so only the next cell matters."""
        scene = self.scene
        envs = np.arange(len(move))
        wanted = scene.position[:, axis] + move
        front = wanted + np.sign(move) * AGENT_RADIUS
        # A square that touches a wall is not in it, on either side.
        cell = np.where(move > 0, np.ceil(front) - 1, np.floor(front)).astype(np.int64)
        other = scene.position[:, 1 - axis]
        blocked = np.zeros(len(move), bool)
        for cross in (np.floor(other - AGENT_RADIUS), np.ceil(other + AGENT_RADIUS) - 1):
            across = cross.astype(np.int64)
            y, x = (across, cell) if axis == 0 else (cell, across)
            blocked |= scene.grid[envs, y, x] != 0
        wall = np.where(move > 0, cell - AGENT_RADIUS, cell + 1 + AGENT_RADIUS)
        scene.position[:, axis] = np.where(blocked & (move != 0), wall, wanted)

    def get_state(self) -> dict[str, Any]:
        """Return copies of all arrays, by name."""
        state = {name: value.copy() for name, value in vars(self.scene).items()}
        return {**state, "num_steps": self.num_steps.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`get_state`."""
        for name, value in vars(self.scene).items():
            value[...] = state[name]
        self.num_steps[...] = state["num_steps"]
