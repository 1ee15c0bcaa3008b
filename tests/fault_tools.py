"""What the fault tests share: what must not be left behind, and processes that are killed for real."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


def shared_memory() -> set[str]:
    """Names of the shared memory segments of this machine."""
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Processes, however they were started, whose environment has ``variable=value``, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_until(condition, seconds: float = 10.0, every: float = 0.02) -> bool:
    """Wait for a condition; False when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
