"""What a training run is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from worldvq.config.fields import Config, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class OptimizerConfig(Config):
    """The optimizer, with linear warm-up and decay to zero over the run."""

    kind: Literal["adamw", "muon"] = "adamw"
    """``muon`` (Jordan et al. 2024) for the matrices of hidden layers and convolutions, AdamW for the rest."""
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 100
    decay_fraction: Fraction = 1.0
    """The last fraction of the steps over which the rate falls linearly to zero."""
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip_norm: PositiveFloat = 1.0


FREE = ("steps", "log_every", "picture_every", "save_every", "keep_checkpoints", "accumulate", "precision")
"""What a run may be continued with another value of. With more steps the rate of learning goes on as that of a run of
so many."""


class TrainConfig(Config):
    """One training run. A step is one optimizer update on ``batch_size`` clips over all processes."""

    steps: PositiveInt = 5000
    batch_size: PositiveInt = 64
    clip_frames: PositiveInt = 1
    """Frames a clip: 1 for a tokenizer; for dynamics, more than ``context_frames`` trains the sliding window too."""
    accumulate: PositiveInt = 1
    """Forward passes a step; the global batch stays ``batch_size``."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """``auto`` is bf16 where the GPU or the CPU computes in it, and fp32 elsewhere."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of 32 bits: with the step it makes the 64 of torch's seeds."""
    log_every: PositiveInt = 50
    picture_every: PositiveInt = 1000
    save_every: PositiveInt = 1000
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Of the newest; two, so that one is whole whatever happens to the other."""
