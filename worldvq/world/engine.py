"""What a dream needs of a world."""

from __future__ import annotations

import torch

from worldvq.errors import UsageError


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        UsageError: The name is unknown or the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device '{device}' cannot be used ({str(error).splitlines()[0]}): try --device auto"
        ) from None
