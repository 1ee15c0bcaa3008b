"""Which environment, as configs and datasets say it."""

from __future__ import annotations

from typing import Any

from worldvq.config.fields import Config, NonNegativeInt, PositiveInt, Side


class EnvConfig(Config):
    """Which environment, and how it becomes a stream of frames and actions."""

    id: str = "worldvq/Maze-v0"
    kwargs: dict[str, Any] = {}
    size: tuple[Side, Side] = (64, 64)
    """Height and width of a stored frame."""
    observation_key: str | None = None
    """Key of a Dict observation that holds the image; None finds the only image there is."""
    crop: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    """Pixels cut from the top, bottom, left and right before resizing."""
    frame_skip: PositiveInt = 1
    """Each action is repeated this often; rewards add up."""
    max_steps: PositiveInt | None = None
    """Truncate episodes after this many (skipped) steps; None leaves it to the environment."""
