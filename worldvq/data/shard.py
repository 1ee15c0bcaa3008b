"""Which part of a store a writer writes. Imports neither torch nor NumPy, as :mod:`worldvq.files.lock`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from worldvq.errors import UsageError

INDEX = "index.jsonl"


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``: the episodes n with n mod count = index."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Check that there is such a shard."""
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"there is no shard {self.index}/{self.count}: write i/N with 0 <= i < N, for instance 0/4"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/N``.

        Raises:
            UsageError: The text is something else, or there is no such shard.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal()):
            raise UsageError(f"there is no shard '{text}': write i/N with 0 <= i < N, for instance 0/4")
        return cls(int(first), int(second))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> tuple[Shard, str]:
        """Return what a launcher says this process is, and the variable that said it ("" where none does).

        ``RANK`` and ``WORLD_SIZE`` (torchrun, accelerate, MPI wrappers), else ``SLURM_ARRAY_TASK_ID`` among
        ``SLURM_ARRAY_TASK_MIN``, ``_MAX`` and ``_STEP``.

        Raises:
            UsageError: The variables contradict each other.
        """
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
        try:
            if "RANK" in environment and "WORLD_SIZE" in environment:
                return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"])), "RANK"
            if names[0] in environment:
                task, first, last = (int(environment[name]) for name in names[:3])
                step = int(environment.get(names[3], 1))
                return cls((task - first) // step, (last - first) // step + 1), names[0]
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise UsageError(
                f"RANK, WORLD_SIZE or SLURM_ARRAY_TASK_* say no shard ({error}): set --shard i/N"
            ) from None
        return cls(), ""

    def __str__(self) -> str:
        """Show as it is parsed."""
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this is all there is: no other shards."""
        return self.count == 1

    @property
    def index_name(self) -> str:
        """File that lists what this shard committed."""
        return INDEX if self.is_whole else f"index.{self.index}-of-{self.count}.jsonl"

    @property
    def lock_name(self) -> str:
        """File that keeps a second writer out of this shard."""
        return f".lock.{self.index}-of-{self.count}"

    def owns(self, number: int) -> bool:
        """Whether an episode belongs to this shard."""
        return number % self.count == self.index

    def share(self, total: int) -> int:
        """How many of the first ``total`` episodes are this shard's."""
        return len(range(self.index, total, self.count))
