"""Which environment, as configs and datasets say it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from worldvq.config.fields import Config, FrameSize, NonNegativeInt, PositiveInt
from worldvq.errors import UsageError

VIDEOS, IMAGES = "videos:", "images:"
IMPORTED = (VIDEOS, IMAGES)
"""What the id of a dataset begins with that was imported from videos or images: nobody can play it."""


class SoundFormat(Config):
    """How a dataset holds the sound of its steps: one channel, as many samples each step."""

    rate: Annotated[int, Field(gt=0, le=768_000)]
    """Samples a second."""
    samples: Annotated[int, Field(gt=0, le=2**20)]
    """Samples of a step: what is heard between a frame and the next one."""

    @property
    def steps_per_second(self) -> float:
        """Frames a second at which picture and sound go together."""
        return self.rate / self.samples


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
    audio_key: str | None = None
    """Key of the sound of a step, in the observation or in ``info``, dotted where it lies deeper (ViZDoom's is
    ``audio``); ``null`` records no sound."""
    audio_rate: Annotated[int, Field(gt=0, le=768_000)] | None = None
    """Samples a second of that sound; ``null`` takes what the environment's ``metadata["audio_rate"]`` says, and of
    ViZDoom, which makes 11025, 22050 or 44100, the first."""
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
