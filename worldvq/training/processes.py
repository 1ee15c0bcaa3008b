"""The processes of a training run: how they start, agree, and end together."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, patch_environment

from worldvq.errors import RunError, UsageError
from worldvq.files.atomic import disk_errors
from worldvq.files.lock import Lock
from worldvq.nn.devices import local_device, resolve_device, resolve_precision


def make_accelerator(
    precision: str, trackers: Sequence[str] = (), out: Path | None = None, device: str = "auto"
) -> Accelerator:
    """Return an Accelerator; under ``accelerate launch`` it joins the other processes.

    Args:
        precision: As in TrainConfig.
        trackers: Names that Accelerate knows; it starts them when told to.
        out: Where those that write files do so.
        device: ``auto`` leaves it to Accelerate and how it was launched; else ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        UsageError: The device is not there, or several processes were told to share it.
    """
    chosen = None if device == "auto" else resolve_device(local_device(device))
    if ":" in device and "LOCAL_RANK" in os.environ:
        raise UsageError(f"device '{device}': processes take a GPU each: leave it out, or say {device.split(':')[0]}")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    # Accelerate hands torch an argument that torch 2.13 renames.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # FSDP warns of outputs that are views; no loss here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    # Buffers are codebooks: already equal on every process, and updated in place during forward.
    handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    precision = resolve_precision(precision, chosen or torch.device("cuda" if on_gpu else "cpu"))
    # The stage before in this process may have had another precision or device; processes keep what they joined with.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    with patch_environment(**({"ACCELERATE_TORCH_DEVICE": str(chosen)} if chosen else {})):
        accelerator = Accelerator(
            cpu=chosen is not None and chosen.type == "cpu",
            mixed_precision=precision,
            kwargs_handlers=[handler],
            log_with=list(trackers) or None,
            project_dir=str(out) if out else None,
        )
    if accelerator.device.type == "cuda":
        torch.cuda.set_device(accelerator.device)  # Accelerate leaves that out where it is told the device
    return accelerator


def highest(accelerator: Accelerator, values: Sequence[int] | torch.Tensor) -> list[int]:
    """The highest of each value over all processes: how they agree on what to do next."""
    agreed = torch.as_tensor(values, dtype=torch.int64, device=accelerator.device)
    if accelerator.num_processes > 1:
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def on_main(accelerator: Accelerator, work: Callable[[], Any]) -> None:
    """Let the main process work while the others wait; if it fails, all do, instead of waiting for ever.

    Raises:
        RunError: In the other processes, when the main one failed; that one raises what it was.
    """
    error = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as caught:
            error = caught
    (failed,) = highest(accelerator, [error is not None])
    if error:
        raise error
    if failed:
        raise RunError(f"process {accelerator.process_index} ends because the main process failed; that one says why")


@contextlib.contextmanager
def lock_run(accelerator: Accelerator, out: Path, begin: Callable[[], None] | None) -> Iterator[None]:
    """Hold a run folder while the block runs: one trainer at a time, of which the main process writes.

    Args:
        accelerator: Of the run.
        out: The folder; it is created.
        begin: What the main process does first, before anything else is written.

    Raises:
        RunError: Another trainer holds it; names its owner.
    """
    held: list[Lock] = []

    def acquire() -> None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        held.append(Lock(out))
        if begin:
            begin()

    try:
        on_main(accelerator, acquire)
        yield
    finally:
        for lock in held:
            lock.release()
