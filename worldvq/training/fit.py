"""One loop that trains every kind of model, on Accelerate: one device or many processes alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator, DistributedType
from torch import nn

from worldvq.errors import UsageError, plural
from worldvq.nn.memory import keep_freed_memory, memory_errors
from worldvq.nn.quantizer import Quantizer
from worldvq.training.batches import Batches, ReadAhead
from worldvq.training.checkpoints import Checkpoint, Checkpoints, fill_optimizer
from worldvq.training.config import TrainConfig
from worldvq.training.loop import Loop, LossFunction, Picture
from worldvq.training.optimizers import make_optimizer
from worldvq.training.processes import highest, lock_run, make_accelerator, on_main
from worldvq.training.signals import StopWhenSaved
from worldvq.training.tracking import check_trackers


def fit(
    model: nn.Module,
    loss_function: LossFunction,
    batches: Batches,
    config: TrainConfig,
    out: Path,
    *,
    summary: str,
    heldout: Batches | None = None,
    picture: Picture | None = None,
    begin: Callable[[], None] | None = None,
    trackers: Sequence[str] = (),
    device: str = "auto",
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
        heldout: Batches that are not trained on. A few, always the same, are measured whenever numbers are logged, as
            ``heldout_loss`` and so on; training is the same with and without.
        picture: Draws the model at a step, at intervals and at the end, on the first process; returns what it drew,
            (H, W, 3) uint8, for trackers that show pictures.
        begin: Called by the first process once it has locked ``out``, before it writes there.
        trackers: ``tensorboard``, ``wandb`` or ``trackio``, besides ``metrics.jsonl``.
        device: Where it trains, as :func:`worldvq.training.processes.make_accelerator` takes it.

    Returns:
        The trained model, unwrapped, in eval mode.

    Raises:
        RunError: The loss or gradient is not finite, or memory is out, and the last checkpoint is intact; or somebody
            else trains there.
        UsageError: The batch size is not divisible by processes x accumulate; the device is not there; or what
            Accelerate was told to do is not possible.
        StoppedError: A signal came; a checkpoint is saved.
    """
    check_trackers(trackers, out)
    keep_freed_memory()
    accelerator = make_accelerator(config.precision, trackers, out, device)
    _check(accelerator, model, config)
    with StopWhenSaved() as stop, lock_run(accelerator, out, begin):
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
        if accelerator.device.type != "cpu":  # which has no time to spare for a thread
            batches = ReadAhead(batches)
        loop = Loop(accelerator, wrapped, plain, prepared, loss_function, batches, config, heldout)
        with memory_errors(_less_memory(config)):
            _announce(loop, step, summary)
            loop.train(step, checkpoints, stop, picture)
        loop.unshard()
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes autocast off: what was trained is fp32
    return plain.to(accelerator.device).eval()


def _less_memory(config: TrainConfig) -> str:
    return (
        f"more passes take less, accumulate={2 * config.accumulate} instead of {config.accumulate}, with the same "
        f"batches, or a smaller batch_size, now {config.batch_size}; the last checkpoint is intact"
    )


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


def _announce(loop: Loop, step: int, summary: str) -> None:
    """Print one line that says what is trained, on what, and how long it will take."""
    seconds = loop.time_step()
    accelerator, config = loop.accelerator, loop.config
    if accelerator.is_main_process:
        print(
            f"training {summary}: device {accelerator.device}"
            f"{f' x {accelerator.num_processes}' if accelerator.num_processes > 1 else ''}"
            f"{' (FSDP)' if accelerator.is_fsdp2 else ''}, "
            f"precision {accelerator.mixed_precision.replace('no', 'fp32')}, "
            f"{sum(p.numel() for p in loop.plain.parameters()) / 1e6:.2f}M parameters, "
            f"{f'resuming at step {step}, ' if step else ''}{plural(config.steps, 'step')} of {config.batch_size}, "
            f"expected {(config.steps - step) * seconds / 60:.1f} min",
            flush=True,
        )
