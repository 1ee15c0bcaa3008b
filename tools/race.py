"""Train several models for the same time each, in turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import nn

from worldvq.training.batches import Batches
from worldvq.training.config import TrainConfig
from worldvq.training.loop import Loop, LossFunction
from worldvq.training.optimizers import make_optimizer
from worldvq.training.processes import make_accelerator

TURN = 3.0  # seconds


@dataclasses.dataclass
class Entrant:
    """A model in training: the steps of :func:`worldvq.training.fit.fit`, as many as there is time for.

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
        """Get ready; two passes that are not timed."""
        accelerator = make_accelerator(self.config.precision)
        wrapped, optimizer = accelerator.prepare(self.model, make_optimizer(self.model, self.config.optimizer))
        self._loop = Loop(accelerator, wrapped, self.model, optimizer, self.loss_function, self.batches, self.config)
        self._loop.time_step()

    @property
    def frames_per_second(self) -> float:
        """Frames trained on a second."""
        return self.steps * self.config.batch_size * self.config.clip_frames / max(self.seconds, 1e-9)

    def turn(self, budget: float) -> None:
        """Train for a turn, of a budget of so many seconds in all."""
        begun = time.monotonic()
        while (spent := time.monotonic() - begun) < TURN and self.seconds + spent < budget:
            self._loop.update(self.steps, done=(self.seconds + spent) / budget)
            self.steps += 1
        self.seconds += time.monotonic() - begun

    def finish(self) -> None:
        """Take autocast off, as :func:`worldvq.training.fit.fit` does."""
        self._loop.accelerator.unwrap_model(self._loop.model, keep_fp32_wrapper=False)
        self.model.eval()


def place(config: TrainConfig) -> str:
    """Where and how precisely `fit` would train it; ACCELERATE_USE_CPU=1 keeps it off a GPU."""
    accelerator = make_accelerator(config.precision)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    return f"{accelerator.device} ({torch.get_num_threads()} threads, precision {precision})"


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
        entrant.finish()
