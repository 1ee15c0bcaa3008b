"""One loop that trains every kind of model, on Accelerate: one device or many processes alike."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from worldvq.errors import RunError, StoppedError, UsageError
from worldvq.nn.quantizer import Quantizer
from worldvq.training.checkpoints import Checkpoint, Checkpoints, fill_optimizer, take
from worldvq.training.config import OptimizerConfig, TrainConfig
from worldvq.training.optimizers import make_optimizer
from worldvq.training.processes import highest, holding, make_accelerator, on_main
from worldvq.training.signals import StopWhenSaved
from worldvq.training.tracking import Log, check_trackers

LossFunction = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
Picture = Callable[[nn.Module, int], np.ndarray]
IDS_SHOWN = 8


class Batches(Protocol):
    """Where batches come from: a pure function of the step."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """Return this rank's share of the global batch of a step."""
        ...

    def ids(self, step: int) -> np.ndarray:
        """Return episode number and first frame of every clip of the global batch of a step, (batch_size, 2)."""
        ...


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Rate of an update: linear warm-up, constant, then linear to zero over the last ``decay_fraction`` of the run."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1.0, config.decay_fraction * steps)
    return config.learning_rate * min(warmup, 1.0, (steps - step) / decay_steps)


def fit(
    model: nn.Module,
    loss_function: LossFunction,
    batches: Batches,
    config: TrainConfig,
    out: Path,
    *,
    summary: str,
    picture: Picture | None = None,
    claim: Callable[[], None] | None = None,
    trackers: Sequence[str] = (),
) -> nn.Module:
    """Train a model, resuming from the newest checkpoint in ``out`` if there is one.

    Everything random is a pure function of the seed and the step, so a resumed run, and a run on another number of
    processes, sees the same global batches.

    SIGTERM and SIGUSR1, to any of the processes, end the run after the step it is in, with a checkpoint.

    Args:
        model: The model; trained in place, except under FSDP, which takes it apart.
        loss_function: From model and batch to the loss and scalars to log.
        batches: From step to batch; its batches have ``to(device)``.
        config: Steps, rates, intervals.
        out: Run folder: ``metrics.jsonl`` and ``checkpoints/``; locked while this runs.
        summary: What is trained, for the first line, for instance "tokenizer, 64 tokens a frame".
        picture: Draws the model at a step, at intervals and at the end, on the first process; returns what it drew,
            (H, W, 3) uint8, for trackers that show pictures.
        claim: Called by the first process once it holds ``out``, before it writes there.
        trackers: ``tensorboard``, ``wandb`` or ``trackio``, besides ``metrics.jsonl``.

    Returns:
        The trained model, unwrapped, in eval mode.

    Raises:
        RunError: The loss or gradient is not finite, and the last checkpoint is intact; or somebody else trains there.
        UsageError: The batch size is not divisible by processes x accumulate; or what Accelerate was told to do is not
            possible.
        StoppedError: A signal came; a checkpoint is saved.
    """
    check_trackers(trackers)
    accelerator = make_accelerator(config.precision, trackers, out)
    _check(accelerator, model, config)
    with StopWhenSaved() as stop, holding(accelerator, out, claim):
        optimizer = make_optimizer(model, config.optimizer)
        checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
        on_main(accelerator, checkpoints.clean)
        newest = checkpoints.read_newest(model, optimizer)
        step = _agree_on_start(accelerator, newest, out)
        if newest:
            model.load_state_dict(newest.model)
        if step >= config.steps:
            return model.to(accelerator.device).eval()
        plain = copy.deepcopy(model) if accelerator.is_fsdp2 else model
        wrapped, prepared = accelerator.prepare(model, optimizer)
        if newest:
            fill_optimizer(prepared.optimizer, newest.optimizer)
        del newest
        run = _Run(accelerator, wrapped, plain, prepared, loss_function, batches, config)
        _announce(run, step, summary)
        run.train(step, checkpoints, stop, picture)
        run.unshard()
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes autocast off: what was trained is fp32
    return plain.to(accelerator.device).eval()


def _check(accelerator: Accelerator, model: nn.Module, config: TrainConfig) -> None:
    """Refuse what cannot work before anything is written."""
    processes = accelerator.num_processes
    if config.batch_size % (processes * config.accumulate):
        raise UsageError(
            f"batch_size {config.batch_size} is not divisible by {processes} processes x accumulate {config.accumulate}"
        )
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise UsageError(f"{kind.value} is not supported: use DDP, or FSDP with fsdp_version: 2 for a large dynamics")
    if accelerator.is_fsdp2 and any(isinstance(module, Quantizer) for module in model.modules()):
        raise UsageError("a tokenizer cannot be sharded (FSDP), its codebook is updated whole: use DDP for it")


def _agree_on_start(accelerator: Accelerator, newest: Checkpoint | None, out: Path) -> int:
    """The step to start from, which must be the same everywhere.

    Raises:
        UsageError: Processes found different checkpoints.
    """
    step = newest.step if newest else 0
    high, negative_low = highest(accelerator, [step, -step])
    if high != -negative_low:
        raise UsageError(
            f"{out}: one process finds a checkpoint of step {high}, another of step {-negative_low}: "
            f"give an --out that all machines share"
        )
    return step


def _announce(run: _Run, step: int, summary: str) -> None:
    """Print one line that says what is trained, on what, and how long it will take."""
    seconds = run.time_step()
    accelerator, config = run.accelerator, run.config
    if accelerator.is_main_process:
        print(
            f"training {summary}: device {accelerator.device}"
            f"{f' x {accelerator.num_processes}' if accelerator.num_processes > 1 else ''}"
            f"{' (FSDP)' if accelerator.is_fsdp2 else ''}, "
            f"precision {accelerator.mixed_precision.replace('no', 'fp32')}, "
            f"{sum(p.numel() for p in run.plain.parameters()) / 1e6:.2f}M parameters, "
            f"{f'resuming at step {step}, ' if step else ''}{config.steps} steps of {config.batch_size}, "
            f"expected {(config.steps - step) * seconds / 60:.1f} min",
            flush=True,
        )


@dataclasses.dataclass
class _Run:
    """What training needs, ready for the device and the processes.

    Attributes:
        model: As Accelerate wrapped it.
        plain: The model itself; under FSDP a whole copy, which :meth:`unshard` brings up to date.
        optimizer: As Accelerate wrapped it.
    """

    accelerator: Accelerator
    model: nn.Module
    plain: nn.Module
    optimizer: Any
    loss_function: LossFunction
    batches: Batches
    config: TrainConfig

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
                    checkpoint = take(step, self.module, self.optimizer.optimizer, accelerator.is_main_process)
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
            self.plain.load_state_dict(take(0, self.model, self.optimizer.optimizer).model)

    def update(self, step: int, signum: int) -> tuple[dict[str, Tensor], int]:
        """One optimizer update on the global batch of ``step``.

        Returns:
            Scalars to log, and the signal that came to any process (here: ``signum``), or 0.

        Raises:
            RunError: Loss or gradient is not finite on some process; model and optimizer are as before.
        """
        accelerator = self.accelerator
        self.model.train()
        torch.manual_seed((self.config.seed << 32) + step)  # equal on all processes, and a function of the step alone
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.steps, self.config.optimizer)
        written = _written_by_forward(self.model)
        before = [tensor.detach().clone() for tensor in written]
        means = self._accumulate(step)
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

    def _accumulate(self, step: int) -> dict[str, Tensor]:
        """Gradients of the global batch of a step; returns means of the scalars of this process."""
        accelerator, passes = self.accelerator, self.config.accumulate
        logged: list[dict[str, Tensor]] = []
        for part in range(passes):
            # One slice of the global batch for each process and pass, so that the global batch stays the same.
            rank = part * accelerator.num_processes + accelerator.process_index
            clip = self.batches.batch(step, rank, accelerator.num_processes * passes).to(accelerator.device)
            last = part == passes - 1  # exchange gradients only then
            with accelerator.autocast(), contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss, metrics = self.loss_function(self.model, clip)
                accelerator.backward(loss / passes)
            logged.append({"loss": loss.detach(), **metrics})
        return {key: torch.stack([row[key] for row in logged]).mean() for key in logged[0]}

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
        """Log means over the steps of a window and over processes."""
        means = torch.stack([torch.stack([row[key].float() for row in window]).mean() for key in window[0]])
        means: Any = self.accelerator.reduce(means, reduction="mean")
        config = self.config
        if log:
            rate = len(window) * config.batch_size / seconds
            row = dict(zip(window[0], means.tolist(), strict=True))
            row["learning_rate"] = learning_rate(step - 1, config.steps, config.optimizer)
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


def _written_by_forward(model: nn.Module) -> list[Tensor]:
    """What a forward pass in training may write: buffers, and the codes of quantizers."""
    codes = [p for module in model.modules() if isinstance(module, Quantizer) for p in module.parameters()]
    return [*model.buffers(), *codes]


def _not_finite(step: int, loss: float, norm: float, ids: np.ndarray) -> str:
    shown = ", ".join(f"{number}:{start}" for number, start in ids[:IDS_SHOWN].tolist())
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return (
        f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g} is not finite, here or in another process; "
        f"its clips (episode:first frame): {shown}{more}; nothing was updated and the last checkpoint is intact: "
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
