"""Memory: keeping what was freed for what comes next, and running out of it, said in one line with what takes less."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worldvq.errors import RunError, WorldVQError, one_line

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
        raise RunError(f"out of memory: {way_out} ({one_line(error)[:200]})") from error


def keep_freed_memory() -> None:
    """Let this process keep what it frees instead of handing it back to the system, where the C library is glibc.

    Else every large tensor of a training step is made of new pages, which the system clears one by one: an eighth of a
    step on a CPU. What the process holds at most stays the same.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(mmap_max, 0)
