"""Running out of memory, said in one line with what takes less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worldvq.errors import RunError, WorldVQError

_SAID = ("out of memory", "can't allocate memory", "not enough memory")
"""What PyTorch says on the CPU, on MPS and on Windows, where it has no error of its own for it."""


@contextmanager
def memory_errors(way_out: str) -> Iterator[None]:
    """Raise a RunError with the way out where a block runs out of memory, of a device or of the machine."""
    try:
        yield
    except WorldVQError:
        raise
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in str(error) for words in _SAID):
            raise
        raise RunError(f"out of memory: {way_out} ({' '.join(str(error).split())[:200]})") from error
