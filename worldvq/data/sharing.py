"""Several processes that divide work and meet in files: who does what, and the barriers between them.

``accelerate launch``, torchrun and SLURM say in the environment who a process is. All that such processes need of each
other here is to wait, so there is no process group: a barrier is a shared counter that is looked at now and then, for
hours where it must, and a signal interrupts it at once. Whoever started the processes ends them all when one fails.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from worldvq.errors import RunError, UsageError, first_line

_teams = itertools.count()


class Processes:
    """This process among those that were started together.

    Attributes:
        index: Its number.
        count: How many there are.
    """

    def __init__(self) -> None:
        """Find the others.

        Raises:
            UsageError: The environment says that there are others, but not where.
            RunError: The first process cannot be reached.
        """
        self.index, self.count, self._store = 0, 1, None
        self._waits: Counter[str] = Counter()
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return
        try:
            self.index, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but RANK, MASTER_ADDR or MASTER_PORT do not say where the "
                f"others are ({error}): start with `accelerate launch` or torchrun"
            ) from None
        # torchrun keeps the counters itself; otherwise the first process does.
        serves = self.index == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._store = PrefixStore(f"worldvq/{next(_teams)}", _connect(host, port, self.count, serves))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what all of them made."""
        return self.index == 0

    def wait_for_first(self) -> None:
        """Half a barrier: wait until the first process is here too, which itself goes on at once."""
        self._wait("first", self.is_first, 1)

    def wait_for_others(self) -> None:
        """The other half: the first process waits until all others are here too, which themselves go on at once."""
        self._wait("others", not self.is_first, self.count - 1)

    def _wait(self, whom: str, arrives: bool, expected: int) -> None:
        """Count an arrival, or wait for as many as are expected."""
        if self._store is None:
            return
        name = f"{whom}/{self._waits[whom]}"
        self._waits[whom] += 1
        try:
            if arrives:
                self._store.add(name, 1)
            else:
                while self._store.add(name, 0) < expected:
                    time.sleep(0.02)
        except RuntimeError:  # what torch raises when nobody answers any more
            raise RunError("the first process has ended early: its error stands above") from None


def _connect(host: str, port: int, count: int, serves: bool) -> TCPStore:
    """Reach the counters; in short attempts, between which a signal is heard."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return TCPStore(host, port, count, serves, timedelta(seconds=2), wait_for_workers=False, multi_tenant=True)
        except RuntimeError as error:
            if serves or time.monotonic() > deadline:
                raise RunError(f"cannot reach the first process at {host}:{port}: {first_line(error)}") from None


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"
