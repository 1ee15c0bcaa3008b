"""Stores whose files are mapped, not read: each is hashed the first time, and no more are mapped than a process may."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from worldvq.data.episode_files import IndexEntry, check_hash
from worldvq.data.store import Store

MAX_MAPPED = 16_384
"""Files kept mapped; far below Linux's limit of 65,530 mappings a process."""

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class MappedStore(Store[M], Generic[M, T]):
    """A store that keeps mappings T of its files."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mapped: OrderedDict[int, T] = OrderedDict()
        self._hashed: set[int] = set()

    def mapped(self, number: int) -> T:
        """Map a file, hashed the first time, or return the mapping that is kept from before.

        Raises:
            UsageError: There is none of this number.
            CorruptFileError: The file is missing, or not what was committed.
        """
        try:
            return self._mapped[number]
        except KeyError:
            entry = self.entry(number)
            mapped = self._map(entry)
            if number not in self._hashed:
                check_hash(self.path / entry.file, entry.sha256)
                self._hashed.add(number)
            self._mapped[number] = mapped
            if len(self._mapped) > MAX_MAPPED:
                self._mapped.popitem(last=False)
            return mapped

    def close(self) -> None:
        """Release the lock and the mappings."""
        self._mapped.clear()
        super().close()

    def _map(self, entry: IndexEntry) -> T:
        raise NotImplementedError
