"""Whatever computes, on one thread of its own: the steps of all players as rows of one batch, and environments."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from worldvq.world.dream import Dream

T = TypeVar("T")


class Stepped(NamedTuple):
    """What one step of n rows gave.

    Attributes:
        dream: The rows after it; the dream that was given stays as it was.
        frames: (n, H, W, 3) uint8.
        rewards: (n,) predicted rewards.
        ends: (n,) probabilities that this step ended the task.
        passes: (n,) passes through the prior.
        entropy: (n, h, w) nats a token; None unless it was asked for.
    """

    dream: Dream
    frames: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    passes: np.ndarray
    entropy: np.ndarray | None


@dataclass
class _Job:
    """A function to call, or where there is none, rows to step."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    function: Callable[[], Any] | None = None
    dream: Any = None
    actions: Any = None
    entropy: bool = False

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        """Hand a result over to whoever waits for it; nobody does where a browser was closed meanwhile."""

        def hand_over() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(hand_over)
        except RuntimeError:  # the server is gone
            return


class Rows:
    """The one thread that owns torch and the environments. Players who ask at the same time are stepped as one batch.

    A player is a row, or a few while it compares branches. Rows of one way of sampling make one batch: who plays at
    another temperature is stepped after the others. What a row dreams does not depend on it (:meth:`Dream.join`).
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="worldvq-rows", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on that thread."""
        loop = asyncio.get_running_loop()
        job = _Job(loop, loop.create_future(), lambda: function(*arguments))
        self._jobs.put(job)
        return await job.future

    async def step(self, dream: Dream, actions: Tensor, entropy: bool = False) -> Stepped:
        """Step copies of rows; those of others who ask meanwhile are in the same batch.

        Args:
            dream: n rows, which stay as they are.
            actions: (n, ...), checked.
            entropy: Also say how unsure each token was, which takes one more pass.
        """
        loop = asyncio.get_running_loop()
        job = _Job(loop, loop.create_future(), dream=dream, actions=actions, entropy=entropy)
        self._jobs.put(job)
        return await job.future

    def close(self) -> None:
        """Do what was asked for so far, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        torch.set_num_threads(1)  # two would wait for each other in every layer, and a browser runs beside them
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            for job in jobs:
                if job is not None and (function := job.function) is not None:
                    _attempt([job], lambda function=function: [function()])
            steps = [job for job in jobs if job is not None and job.function is None]
            steps.sort(key=lambda job: repr(job.dream.sampling))
            for _, group in groupby(steps, key=lambda job: repr(job.dream.sampling)):
                same = list(group)
                _attempt(same, lambda same=same: _step(same))
            if None in jobs:
                return


def _attempt(jobs: Sequence[_Job], work: Callable[[], list[Any]]) -> None:
    """Do some work, and tell those who asked for it what it gave, or that it failed."""
    try:
        results = work()
    except Exception as error:
        for job in jobs:
            job.settle(None, error)
    else:
        for job, result in zip(jobs, results, strict=True):
            job.settle(result)


def _step(jobs: list[_Job]) -> list[Stepped]:
    """Step the rows of all jobs as one batch."""
    joined = Dream.join([job.dream for job in jobs])
    step = joined.step_tokens(torch.cat([job.actions for job in jobs]))
    frames = joined.render().numpy()
    entropy = joined.entropy().numpy() if any(job.entropy for job in jobs) else None
    results, begin = [], 0
    for job in jobs:
        here = slice(begin, begin + len(job.dream))
        own = joined if len(jobs) == 1 else joined.fork(np.arange(here.start, here.stop))
        rewards, ends, passes = (part[here].numpy() for part in (step.rewards, step.termination, step.passes))
        unsure = entropy[here] if entropy is not None and job.entropy else None
        results.append(Stepped(own, frames[here], rewards, ends, passes, unsure))
        begin = here.stop
    return results
