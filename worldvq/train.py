"""One loop that trains every kind of model, on Accelerate: one device or many processes alike."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from worldvq.checkpoint import Checkpoints
from worldvq.config import OptimizerConfig, TrainConfig
from worldvq.errors import RunError, UsageError
from worldvq.optimizers import make_optimizer

LossFunction = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
Picture = Callable[[nn.Module, int], None]


class Batches(Protocol):
    """Where batches come from: a pure function of the step."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """Return this rank's share of the global batch of a step."""
        ...


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Rate of an update: linear warm-up, constant, then linear to zero over the last ``decay_fraction`` of the run."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1.0, config.decay_fraction * steps)
    return config.learning_rate * min(warmup, 1.0, (steps - step) / decay_steps)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return ``bf16`` for ``auto`` where the device multiplies in bf16, ``no`` where it would only imitate it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    able = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}  # torch 2.10 has it not yet
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"


def make_accelerator(precision: str) -> Accelerator:
    """Return an Accelerator; under ``accelerate launch`` it joins the other processes."""
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    # Accelerate hands torch an argument that torch 2.13 renames.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Buffers are codebooks: already equal on every process, and updated in place during forward.
    handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    precision = resolve_precision(precision, torch.device("cuda" if on_gpu else "cpu"))
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # the stage before in this process had another one
    return Accelerator(mixed_precision=precision, kwargs_handlers=[handler])


class _Log:
    """metrics.jsonl, and a progress bar on a terminal or a line now and then elsewhere."""

    def __init__(self, path: Path, start: int, total: int, show: bool):
        self.path, self.total, self.show = path, total, show
        self.console = Console(stderr=True)
        self.last_line = time.monotonic()
        self._forget_after(start)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        self.task = self.bar.add_task("train", total=total, completed=start, text="")
        if show and self.console.is_terminal:
            self.bar.start()

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run is about to repeat."""
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
            self.path.write_text("".join(line + "\n" for line in kept))

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def write(self, row: dict[str, Any], seconds_left: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {key: value for key, value in row.items() if key not in ("step", "seconds", "learning_rate")}
        text = " ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        self.bar.update(self.task, text=text)
        if self.show and not self.console.is_terminal and time.monotonic() - self.last_line > 20:
            self.last_line = time.monotonic()
            print(f"step {row['step']}/{self.total} {text} ETA {seconds_left:.0f} s", flush=True)

    def close(self) -> None:
        if self.bar.live.is_started:
            self.bar.stop()


def fit(
    model: nn.Module,
    loss_function: LossFunction,
    batches: Batches,
    config: TrainConfig,
    out: Path,
    *,
    summary: str,
    picture: Picture | None = None,
) -> nn.Module:
    """Train a model, resuming from the newest checkpoint in ``out`` if there is one.

    Everything random is a pure function of the seed and the step, so a resumed run, and a run on another number of
    processes, sees the same global batches.

    Args:
        model: The model; trained in place.
        loss_function: From model and batch to the loss and scalars to log.
        batches: From step to batch; its batches have ``to(device)``.
        config: Steps, rates, intervals.
        out: Run folder: ``metrics.jsonl`` and ``checkpoints/``.
        summary: What is trained, for the first line, for instance "tokenizer, 64 tokens a frame".
        picture: Called with the model and the step at intervals and at the end, on the first process.

    Returns:
        The trained model, unwrapped, in eval mode.

    Raises:
        RunError: The loss or gradient is not finite; the last checkpoint is intact.
        UsageError: The batch size is not divisible by processes x accumulate.
    """
    accelerator = make_accelerator(config.precision)
    share = accelerator.num_processes * config.accumulate
    if config.batch_size % share:
        raise UsageError(
            f"batch_size {config.batch_size} is not divisible by {accelerator.num_processes} processes "
            f"x accumulate {config.accumulate}"
        )
    main = accelerator.is_main_process
    settings = config.optimizer
    optimizer = make_optimizer(model, settings)
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    step = checkpoints.load_newest(model, optimizer)
    if step >= config.steps:
        return model.to(accelerator.device).eval()
    wrapped, prepared = accelerator.prepare(model, optimizer)

    out.mkdir(parents=True, exist_ok=True)
    seconds = _time_step(accelerator, wrapped, loss_function, batches, config)
    if main:
        resumed = f"resuming at step {step}, " if step else ""
        print(
            f"training {summary}: device {accelerator.device}"
            f"{f' x {accelerator.num_processes}' if accelerator.num_processes > 1 else ''}, "
            f"precision {accelerator.mixed_precision.replace('no', 'fp32')}, "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {resumed}{config.steps} steps of "
            f"{config.batch_size}, expected {(config.steps - step) * seconds / 60:.1f} min",
            flush=True,
        )
    log = _Log(out / "metrics.jsonl", step, config.steps, main) if main else None
    window: list[dict[str, Tensor]] = []
    begun = window_begun = time.monotonic()
    try:
        while step < config.steps:
            window.append(_update(accelerator, wrapped, prepared, loss_function, batches, config, step))
            step += 1
            last = step == config.steps
            if step % config.log_every == 0 or last:
                row = _reduce(accelerator, window)
                rate = len(window) * config.batch_size / (time.monotonic() - window_begun)
                if log:
                    row = {"step": step, **row, "learning_rate": learning_rate(step - 1, config.steps, settings)}
                    row |= {"clips_per_second": rate, "seconds": time.monotonic() - begun}
                    log.write(row, (config.steps - step) * config.batch_size / rate)
                window, window_begun = [], time.monotonic()
            if log:
                log.advance(step)
            if step % config.save_every == 0 or last:
                if main:
                    checkpoints.save(step, model, prepared.optimizer)
                accelerator.wait_for_everyone()
            if picture and (step % config.picture_every == 0 or last):
                if main:
                    _draw(model, picture, step)
                accelerator.wait_for_everyone()
    finally:
        if log:
            log.close()
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes autocast off the model: what was trained is fp32
    return model.eval()


def _draw(model: nn.Module, picture: Picture, step: int) -> None:
    model.eval()
    with torch.no_grad():
        picture(model, step)
    model.train()


def _seed(config: TrainConfig, step: int) -> None:
    """Make what is random in a step a function of seed and step, equal on all processes."""
    torch.manual_seed((config.seed << 32) + step)


def _update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loss_function: LossFunction,
    batches: Batches,
    config: TrainConfig,
    step: int,
) -> dict[str, Tensor]:
    """One optimizer update on the global batch of ``step``."""
    model.train()
    _seed(config, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config.steps, config.optimizer)
    logged: list[dict[str, Tensor]] = []
    for part in range(config.accumulate):
        # One slice of the global batch for each process and pass, so that the global batch stays the same.
        rank = part * accelerator.num_processes + accelerator.process_index
        clip = batches.batch(step, rank, accelerator.num_processes * config.accumulate).to(accelerator.device)
        last = part == config.accumulate - 1
        with accelerator.autocast(), _sync(accelerator, model, last):
            loss, metrics = loss_function(model, clip)
            accelerator.backward(loss / config.accumulate)
        logged.append({"loss": loss.detach(), **metrics})
    norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
    if norm is not None and not torch.isfinite(norm) and accelerator.mixed_precision != "fp16":
        optimizer.zero_grad()
        raise RunError(
            f"step {step}: loss {float(logged[-1]['loss']):.4g}, gradient norm {float(norm):.4g} is not finite; "
            f"nothing was updated and the last checkpoint is intact: lower optimizer.learning_rate or look at the data"
        )
    optimizer.step()
    optimizer.zero_grad()
    return {key: torch.stack([row[key] for row in logged]).mean() for key in logged[0]}


def _sync(accelerator: Accelerator, model: nn.Module, last: bool) -> Any:
    """Exchange gradients only in the last pass of an update."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


def _time_step(
    accelerator: Accelerator, model: nn.Module, loss_function: LossFunction, batches: Batches, config: TrainConfig
) -> float:
    """Seconds of one update, measured on two passes that change nothing (eval mode leaves codebooks alone)."""
    model.eval()
    world = accelerator.num_processes * config.accumulate
    clip = batches.batch(0, accelerator.process_index, world).to(accelerator.device)
    seconds = 0.0
    for _ in range(2):
        begun = time.monotonic()
        with accelerator.autocast():
            loss, _ = loss_function(model, clip)
        accelerator.backward(loss)
        model.zero_grad()
        loss.item()
        seconds = time.monotonic() - begun
    return seconds * config.accumulate


def _reduce(accelerator: Accelerator, window: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean over the steps of a window and over processes."""
    means = torch.stack([torch.stack([row[key].float() for row in window]).mean() for key in window[0]])
    means = accelerator.reduce(means, reduction="mean")
    return dict(zip(window[0], means.tolist(), strict=True))  # type: ignore[union-attr]


def check_same_run(out: Path, text: str, what: str) -> None:
    """Refuse to continue a run folder with another config.

    Raises:
        UsageError: ``config.yaml`` in ``out`` is there and differs; names the first line that does.
    """
    path = out / "config.yaml"
    if path.is_file() and path.read_text() != text:
        old, new = path.read_text().splitlines(), text.splitlines()
        differing = next(((a, b) for a, b in zip(old, new, strict=False) if a != b), ("", ""))
        raise UsageError(
            f"{out} holds a {what} trained with another config (there '{differing[0].strip()}', "
            f"now '{differing[1].strip()}'): give another --out, or delete that folder"
        )
