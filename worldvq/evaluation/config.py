"""The held-out protocol."""

from __future__ import annotations

from worldvq.config.fields import Config, NonNegativeInt, PositiveInt
from worldvq.models.config import SamplingConfig


class EvaluateConfig(Config):
    """The held-out protocol."""

    clips: PositiveInt = 256
    context: PositiveInt = 6
    horizon: PositiveInt = 10
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0
    sampling: SamplingConfig = SamplingConfig()
