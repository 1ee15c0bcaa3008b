"""Where batches come from; and reading them while a step is taken, so that a GPU does not wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol

import numpy as np

Request = tuple[int, int, int]
"""Step, rank and world, as :meth:`Batches.batch` takes them."""


class Batches(Protocol):
    """Where batches come from: a pure function of the step."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """Return this rank's share of the global batch of a step."""
        ...

    def ids(self, step: int) -> np.ndarray:
        """Return episode number and first frame of every clip of the global batch of a step, (batch_size, 2).

        Where there are several stores, the number of its store stands before them: (batch_size, 3).
        """
        ...


class ReadAhead:
    """The same batches, some of which a thread reads in advance. They are a function of what is asked for alone."""

    def __init__(self, batches: Batches):
        self._batches = batches
        self._read: dict[Request, Future[Any]] = {}
        self._lock = Lock()  # stores are not made for two threads at once

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """Return this rank's share of the global batch of a step; where reading it failed, that is raised now."""
        future = self._read.pop((step, rank, world), None)
        return future.result() if future else self._batch((step, rank, world))

    def _batch(self, request: Request) -> Any:
        with self._lock:
            return self._batches.batch(*request)

    def ids(self, step: int) -> np.ndarray:
        """Return episode number and first frame of every clip of the global batch of a step, (batch_size, 2)."""
        return self._batches.ids(step)

    @contextmanager
    def reading(self, requests: Iterable[Request]) -> Iterator[None]:
        """Read batches beside the block; at its end they are there."""
        with ThreadPoolExecutor(1) as thread:
            self._read |= {request: thread.submit(self._batch, request) for request in requests}
            yield
