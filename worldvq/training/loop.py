"""The loop of a training run: step, log, save, draw."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from worldvq.errors import RunError, StoppedError
from worldvq.nn.quantizer import Quantizer, VectorQuantizer, as_one_pass
from worldvq.training.batches import Batches, ReadAhead, Request
from worldvq.training.checkpoints import Checkpoints, gather_checkpoint
from worldvq.training.config import OptimizerConfig, TrainConfig
from worldvq.training.processes import highest, on_main
from worldvq.training.signals import StopWhenSaved
from worldvq.training.tracking import Log

LossFunction = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
Picture = Callable[[nn.Module, int], np.ndarray]
IDS_SHOWN = 8
HELDOUT_BATCHES = 2
"""What a run is measured on every time it logs: always the same ones."""


def learning_rate(step: int, done: float, config: OptimizerConfig) -> float:
    """Rate of an update: linear warm-up, constant, then linear to zero over the last ``decay_fraction`` of the run.

    Args:
        step: Updates before it.
        done: Fraction of the run that is over, in steps or in time.
        config: The optimizer.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * min(warmup, 1.0, (1 - done) / max(config.decay_fraction, 1e-9))


@dataclasses.dataclass
class Loop:
    """What training needs, ready for the device and the processes.

    Attributes:
        model: As Accelerate wrapped it.
        plain: The model itself; under FSDP a whole copy, which :meth:`unshard` brings up to date.
        optimizer: As Accelerate wrapped it.
        heldout: Batches that are not trained on, to measure the loss of as it goes.
    """

    accelerator: Accelerator
    model: nn.Module
    plain: nn.Module
    optimizer: Any
    loss_function: LossFunction
    batches: Batches
    config: TrainConfig
    heldout: Batches | None = None
    _initialized: bool = False  # codes, as far as is known: the first steps of a run look

    def train(self, step: int, checkpoints: Checkpoints, stop: StopWhenSaved, picture: Picture | None) -> None:
        """Train from ``step`` to the end: step, log, save, draw."""
        config, accelerator = self.config, self.accelerator
        out = checkpoints.folder.parent
        log: Log | None = None
        if accelerator.is_main_process:
            log = Log(out / "metrics.jsonl", step, config.steps, accelerator, _flat(config.model_dump(mode="json")))
        window: list[dict[str, Tensor]] = []
        window_begun = time.monotonic()
        try:
            while step < config.steps:
                with self._reading(step + 1):
                    row, signum = self.update(step, stop.signum)
                window.append(row)
                step += 1
                ends = step == config.steps or signum > 0
                if step % config.log_every == 0 or ends:
                    self._log(log, step, window, time.monotonic() - window_begun)
                    window, window_begun = [], time.monotonic()
                if log:
                    log.advance(step)
                if step % config.save_every == 0 or ends:
                    checkpoint = gather_checkpoint(
                        step, self.module, self.optimizer.optimizer, accelerator.is_main_process
                    )
                    on_main(accelerator, lambda checkpoint=checkpoint: checkpoints.write(checkpoint))
                if signum:
                    raise StoppedError(signum)
                if picture and (step % config.picture_every == 0 or ends):
                    self._draw(picture, step, log)
        finally:
            if log:
                log.close()

    @property
    def module(self) -> nn.Module:
        """The model that is trained, without what Accelerate wrapped around it."""
        return self.model if self.accelerator.is_fsdp2 else self.plain

    def unshard(self) -> None:
        """Bring the whole copy up to date, where there is one; all processes take part."""
        if self.accelerator.is_fsdp2:
            self.plain.load_state_dict(gather_checkpoint(0, self.model, self.optimizer.optimizer).model)

    def update(self, step: int, signum: int = 0, done: float | None = None) -> tuple[dict[str, Tensor], int]:
        """One optimizer update on the global batch of ``step``.

        Args:
            step: Updates before it.
            signum: The signal that came to this process, or 0.
            done: Fraction of the run that is over, for the learning rate; that of its steps if None.

        Returns:
            Scalars to log, and the signal that came to any process, or 0.

        Raises:
            RunError: Loss or gradient is not finite on some process; model and optimizer are as before.
        """
        accelerator = self.accelerator
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, step / self.config.steps if done is None else done, self.config.optimizer)
        written = _written_by_a_step(self.model)
        before = [tensor.detach().clone() for tensor in written]
        # Equal on all processes, a function of the step alone. A CPU's generator keeps the low 32 bits, the step: two
        # seeds draw the same there, of batches that differ; two steps do not.
        seed = (self.config.seed << 32) + step
        torch.manual_seed(seed)
        clips = self._initialize(self._clips(self.batches, step))
        torch.manual_seed(seed)  # as if nothing had been drawn to initialize
        with as_one_pass(self.model, VectorQuantizer.learn):
            means = self._accumulate(clips)
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        # In fp16 a gradient that overflows is no error: the scaler skips the step and scales less.
        checked = [means["loss"]] if accelerator.mixed_precision == "fp16" else [means["loss"], norm]
        bad = ~torch.stack(checked).isfinite().all()
        # The one look at the device that a step takes, and with many processes one tiny exchange.
        failed, signum = highest(accelerator, torch.stack([bad, torch.tensor(signum, device=bad.device)]))
        if failed:
            with torch.no_grad():
                for tensor, value in zip(written, before, strict=True):
                    tensor.copy_(value)
            self.optimizer.zero_grad()
            raise RunError(_not_finite(step, float(means["loss"]), float(norm), self.batches.ids(step)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return means, signum

    def _requests(self, step: int) -> Iterator[Request]:
        """One slice of the global batch for each process and pass, so that the global batch stays the same."""
        accelerator, passes = self.accelerator, self.config.accumulate
        for part in range(passes):
            rank = part * accelerator.num_processes + accelerator.process_index
            yield step, rank, accelerator.num_processes * passes

    def _clips(self, batches: Batches, step: int) -> Iterator[Any]:
        return (batches.batch(*request) for request in self._requests(step))

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Read the batch of a step beside the block, if it is one of the run and batches are read ahead."""
        if isinstance(self.batches, ReadAhead) and step < self.config.steps:
            return self.batches.reading(self._requests(step))
        return contextlib.nullcontext()

    def _initialize(self, clips: Iterable[Any]) -> Iterable[Any]:
        """Start codes that have not started, all at once from a whole global batch; returns its clips again."""
        if not self._initialized:
            quantizers = [module for module in self.model.modules() if isinstance(module, VectorQuantizer)]
            self._initialized = all(bool(quantizer.initialized) for quantizer in quantizers)
        if self._initialized:
            return clips
        clips = list(clips)
        with torch.no_grad(), self.accelerator.autocast(), as_one_pass(self.model, VectorQuantizer.initialize):
            for clip in clips:
                self.loss_function(self.model, clip.to(self.accelerator.device))
        return clips

    def _accumulate(self, clips: Iterable[Any]) -> dict[str, Tensor]:
        """Gradients of the global batch; returns means of the scalars of this process."""
        accelerator, passes = self.accelerator, self.config.accumulate
        logged: list[dict[str, Tensor]] = []
        for part, clip in enumerate(clips):
            last = part == passes - 1  # exchange gradients only then
            with accelerator.autocast(), contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss, metrics = self.loss_function(self.model, clip.to(accelerator.device))
                accelerator.backward(loss / passes)
            logged.append({"loss": loss.detach(), **metrics})
        return _means(logged)

    def _measure(self) -> dict[str, Tensor]:
        """Means over this process's shares of the held-out batches; changes nothing."""
        if self.heldout is None:
            return {}
        self.model.eval()
        rows: list[dict[str, Tensor]] = []
        with torch.no_grad(), self.accelerator.autocast():
            for number in range(HELDOUT_BATCHES):
                for clip in self._clips(self.heldout, number):
                    loss, metrics = self.loss_function(self.model, clip.to(self.accelerator.device))
                    rows.append({"loss": loss, **metrics})
        return _means(rows)

    def time_step(self) -> float:
        """Seconds of one update, measured on two passes that change nothing (eval mode leaves codebooks alone)."""
        self.model.eval()
        accelerator, passes = self.accelerator, self.config.accumulate
        clip = self.batches.batch(0, accelerator.process_index, accelerator.num_processes * passes)
        clip = clip.to(accelerator.device)
        seconds = 0.0
        for _ in range(2):
            begun = time.monotonic()
            with accelerator.autocast():
                loss, _ = self.loss_function(self.model, clip)
            accelerator.backward(loss)
            self.model.zero_grad()
            loss.item()
            seconds = time.monotonic() - begun
        return seconds * passes

    def _log(self, log: Log | None, step: int, window: list[dict[str, Tensor]], seconds: float) -> None:
        """Log means over the steps of a window, those of held-out batches beside them; over processes."""
        scalars = _means(window) | {f"heldout_{key}": value for key, value in self._measure().items()}
        means: Any = self.accelerator.reduce(torch.stack(list(scalars.values())), reduction="mean")
        config = self.config
        if log:
            rate = len(window) * config.batch_size / seconds
            row = dict(zip(scalars, means.tolist(), strict=True))
            row["learning_rate"] = learning_rate(step - 1, (step - 1) / config.steps, config.optimizer)
            row["clips_per_second"] = rate
            log.write({"step": step, **row}, (config.steps - step) * config.batch_size / rate)

    def _draw(self, picture: Picture, step: int, log: Log | None) -> None:
        self.unshard()

        def draw() -> None:
            model = self.plain.to(self.accelerator.device).eval()
            with torch.no_grad():
                drawn = picture(model, step)
            model.train()
            if self.accelerator.is_fsdp2:
                model.cpu()  # the device has no room to keep it
            if log:
                log.show(drawn, step)

        on_main(self.accelerator, draw)


def _means(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key].float() for row in rows]).mean() for key in rows[0]}


def _written_by_a_step(model: nn.Module) -> list[Tensor]:
    """What a step writes before it is known to be finite: buffers, and the codes of quantizers."""
    codes = [p for module in model.modules() if isinstance(module, Quantizer) for p in module.parameters()]
    return [*model.buffers(), *codes]


def _not_finite(step: int, loss: float, norm: float, ids: np.ndarray) -> str:
    shown = ", ".join(":".join(map(str, row)) for row in ids[:IDS_SHOWN].tolist())
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return (
        f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g} is not finite, here or in another process; "
        f"its clips ({'dataset:' if ids.shape[1] > 2 else ''}episode:first frame): {shown}{more}; "
        "nothing was updated and the last checkpoint is intact: "
        f"lower optimizer.learning_rate or look at the data"
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``key.path: value``, with values that every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, list) else value
    return flat
