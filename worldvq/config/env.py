"""Which environment, as configs and datasets say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from worldvq.config.fields import Config, FrameSize, NonNegativeInt, PositiveInt
from worldvq.errors import UsageError

VIDEOS, IMAGES = "videos:", "images:"
IMPORTED = (VIDEOS, IMAGES)
"""What the id of a dataset begins with that was imported from videos or images: nobody can play it."""


class EnvConfig(Config):
    """Which environment, and how it becomes a stream of frames and actions."""

    id: str = "worldvq/Maze-v0"
    """A Gymnasium id; ``module:Id`` or ``./file.py:Id`` where a module registers it when it is imported."""
    kwargs: dict[str, Any] = {}
    """Keywords of the environment's constructor."""
    size: FrameSize = (64, 64)
    """Height and width of a stored frame: ``[48, 64]``, ``48x64``, or ``64`` for both."""
    observation_key: str | None = None
    """Key of a Dict or Tuple observation that holds the image, dotted where it lies deeper (``sensors.camera``, ``0``);
    ``null`` finds the only image there is."""
    source: Literal["observation", "render"] | None = None
    """What is recorded: the image in the observation, or what ``render()`` gives; ``null`` prefers the first."""
    wrappers: tuple[str, ...] = ()
    """Gymnasium wrappers, each ``module:Name`` or ``./file.py:Name``, put around the environment in this order."""
    action_names: tuple[str, ...] = ()
    """Names of the actions, or of the factors of an action; empty takes those that the environment has."""
    crop: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    """Pixels cut from the top, bottom, left and right before resizing."""
    fit: Literal["squash", "pad", "crop"] = "squash"
    """Where the image has other proportions than ``size``: stretch it, add black, or cut its middle out."""
    frame_skip: PositiveInt = 1
    """Each action is repeated this often; rewards add up."""
    max_steps: PositiveInt | None = None
    """Truncate episodes after this many (skipped) steps; ``null`` leaves it to the environment, and where that has no
    limit takes 10,000."""

    @property
    def kind(self) -> str:
        """Of an imported dataset, what it was imported from: ``videos`` or ``images``."""
        return self.id.partition(":")[0]


def refuse_images(env: EnvConfig, source: Path) -> None:
    """Refuse a dataset of single images where frames have to follow each other.

    Raises:
        UsageError: It is one.
    """
    if env.id.startswith(IMAGES):
        raise UsageError(
            f"{source} holds single images ('{env.id}'), which do not follow each other: a tokenizer can learn from "
            "them, but there is nothing to foresee; take recorded frames or videos"
        )
