"""The held-out protocol."""

from __future__ import annotations

from worldvq.config.fields import Config, NonNegativeInt, PositiveInt
from worldvq.models.config import SamplingConfig


class EvaluateConfig(Config):
    """The held-out protocol."""

    clips: PositiveInt = 256
    """Held-out clips to measure, or as many as there are."""
    context: PositiveInt = 6
    """Real frames at the start of a clip."""
    horizon: PositiveInt = 10
    """Frames imagined after them."""
    batch_size: PositiveInt = 64
    """Clips that are imagined at a time."""
    seed: NonNegativeInt = 0
    """Of the clips and of the sampling."""
    situations: NonNegativeInt = 0
    """Held-out situations that ``demo`` plays on in the environment itself, to see whether the dream obeys and
    remembers (docs/evaluation.md); 0 leaves that out."""
    sampling: SamplingConfig = SamplingConfig()
