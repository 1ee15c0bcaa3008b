"""Registers our environments with Gymnasium, by entry-point string: nothing of ``envs`` is imported until it is made."""

from __future__ import annotations

import gymnasium


def register_envs() -> None:
    """Register ``worldvq/Maze-v0``; ``import worldvq`` does it. ``gymnasium.make("worldvq:worldvq/Maze-v0")`` needs no import."""
    if "worldvq/Maze-v0" not in gymnasium.registry:
        gymnasium.register(
            id="worldvq/Maze-v0",
            entry_point="envs.maze:MazeEnv",
            vector_entry_point="envs.maze:MazeVectorEnv",
        )
