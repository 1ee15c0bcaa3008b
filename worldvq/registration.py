"""Registers our environments with Gymnasium by entry-point string: ``worldvq_envs`` is imported when one is made."""

from __future__ import annotations

import gymnasium


def register_envs() -> None:
    """Register ``worldvq/Maze-v0`` and ``worldvq/Dream-v0``.

    Done by ``import worldvq`` and by making ``"worldvq:worldvq/Maze-v0"``.
    """
    if "worldvq/Dream-v0" not in gymnasium.registry:
        gymnasium.register(
            id="worldvq/Dream-v0",
            entry_point="worldvq_envs.dream:DreamEnv",
            vector_entry_point="worldvq_envs.dream:DreamVectorEnv",
        )
    if "worldvq/Maze-v0" not in gymnasium.registry:
        gymnasium.register(
            id="worldvq/Maze-v0",
            entry_point="worldvq_envs.maze.env:MazeEnv",
            vector_entry_point="worldvq_envs.maze.env:MazeVectorEnv",
        )
