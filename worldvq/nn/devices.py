"""Devices by name."""

from __future__ import annotations

import os

import torch

from worldvq.errors import UsageError, first_line


def resolve_device(device: str) -> torch.device:
    """Return the device of a name, with its number; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        UsageError: The name is unknown or the device is not there; names those that are.
    """
    there = ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if device == "auto":
        device = there[0]
    try:
        tensor = torch.zeros(1, device=device)
        tensor.item()  # the meta device, for one, cannot
        return tensor.device
    except (RuntimeError, AssertionError, ImportError) as error:
        is_there = device.partition(":")[0] in there
        problem = f"cannot be used ({first_line(error)})" if is_there else "is not there"
        count = f" ({torch.cuda.device_count()} GPUs)" if "cuda" in there else ""
        raise UsageError(f"device '{device}' {problem}: give auto or one of {', '.join(there)}{count}") from None


def local_device(device: str) -> str:
    """Return the name of a device, of the GPU that is this process's own where several share a machine."""
    if device in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return ``bf16`` for ``auto`` where the device multiplies in bf16, ``no`` where it would only imitate it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    able = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}  # torch 2.10 has it not yet
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"
