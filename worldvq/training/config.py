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
    """The highest rate, between warm-up and decay."""
    warmup_steps: NonNegativeInt = 100
    """Steps over which the rate rises linearly."""
    decay_fraction: Fraction = 1.0
    """The last fraction of the steps over which the rate falls linearly to zero."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled, of the weights of linear layers and convolutions alone."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's averages of the gradient and of its square."""
    clip_norm: PositiveFloat = 1.0
    """Gradients of a larger norm, over all parameters, are scaled down to it."""


FREE = ("steps", "log_every", "picture_every", "save_every", "keep_checkpoints", "accumulate", "precision")
"""What a run may be continued with another value of. With more steps the rate of learning goes on as that of a run of
so many."""


class TrainConfig(Config):
    """One training run. A step is one optimizer update on ``batch_size`` clips over all processes."""

    steps: PositiveInt = 5000
    """Optimizer updates in all; the learning rate is planned over them."""
    batch_size: PositiveInt = 64
    """Clips a step, over all processes."""
    clip_frames: PositiveInt = 1
    """Frames a clip: 1 for a tokenizer, 2 or more where its loss looks at motion."""
    accumulate: PositiveInt = 1
    """Forward passes a step; the global batch stays ``batch_size``."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """``auto`` is bf16 where the GPU or the CPU computes in it, and fp32 elsewhere."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of weights, batches and noise. Of 32 bits: with the step it makes the 64 of torch's seeds."""
    log_every: PositiveInt = 50
    """Steps between lines of ``metrics.jsonl`` and between looks at the held-out loss."""
    picture_every: PositiveInt = 1000
    """Steps between pictures of held-out clips; one more is drawn at the end."""
    save_every: PositiveInt = 1000
    """Steps between checkpoints; one more is saved at the end, and when a signal ends the run."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints that are kept: two or more, so that one is whole whatever happens to the other."""
