"""Train several models for the same time each, in turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import nn

from worldvq.training.config import OptimizerConfig, TrainConfig
from worldvq.training.loop import Batches, LossFunction
from worldvq.training.optimizers import make_optimizer
from worldvq.training.processes import resolve_precision

TURN = 3.0  # seconds
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}


def learning_rate(step: int, fraction: float, config: OptimizerConfig) -> float:
    """Linear warm-up by steps, then linear to zero over the last ``decay_fraction`` of the time."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * min(warmup, (1 - fraction) / max(config.decay_fraction, 1e-9))


@dataclasses.dataclass
class Entrant:
    """A model in training.

    Attributes:
        model: Trained in place, in eval mode afterwards.
        loss_function: See :func:`worldvq.training.fit.fit`, likewise ``batches``.
        config: Optimizer, precision and seed; its number of steps does not matter.
        steps: Updates made.
        seconds: Time they took.
    """

    model: nn.Module
    loss_function: LossFunction
    batches: Batches
    config: TrainConfig
    steps: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Make the optimizer, and one pass that is not timed."""
        self.optimizer = make_optimizer(self.model, self.config.optimizer)
        self.device = next(self.model.parameters()).device
        self.dtype = PRECISIONS[resolve_precision(self.config.precision, self.device)]
        self.loss_function(self.model.eval(), self.batches.batch(0).to(self.device))[0].backward()
        self.optimizer.zero_grad()
        self.model.train()

    @property
    def frames_per_second(self) -> float:
        """Frames trained on a second."""
        return self.steps * self.config.batch_size * self.config.clip_frames / max(self.seconds, 1e-9)

    def turn(self, budget: float) -> None:
        """Train for a turn, of a budget of so many seconds in all."""
        begun = time.monotonic()
        while (spent := time.monotonic() - begun) < TURN and self.seconds + spent < budget:
            self._update((self.seconds + spent) / budget)
        self.seconds += time.monotonic() - begun

    def _update(self, fraction: float) -> None:
        torch.manual_seed((self.config.seed << 32) + self.steps)  # as worldvq.training.fit does
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.steps, fraction, self.config.optimizer)
        clip: Any = self.batches.batch(self.steps).to(self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            loss, _ = self.loss_function(self.model, clip)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm, error_if_nonfinite=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        loss.item()  # waits for the device, so that the clock tells the truth


def race(entrants: dict[str, Entrant], seconds: float) -> None:
    """Train all of them for ``seconds`` each."""
    last = time.monotonic()
    while any(entrant.seconds < seconds for entrant in entrants.values()):
        for entrant in entrants.values():
            entrant.turn(seconds)
        if time.monotonic() - last > 20:
            last = time.monotonic()
            done = min(entrant.seconds for entrant in entrants.values())
            print(f"{done:.0f} of {seconds:.0f} s each", flush=True)
    for entrant in entrants.values():
        entrant.model.eval()
