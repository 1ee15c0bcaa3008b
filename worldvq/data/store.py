"""The base of both stores: safetensors files in a folder with an append-only, hashed index.

Nothing that was committed can be lost: a file is written under a temporary name, flushed to disk and renamed,
and only then listed in the index, whose line is flushed too. What a crash leaves behind is a temporary file, a
file without a line, or a torn last line; all three are ignored on reading and cleaned up or overwritten later.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel

from worldvq.data.episode_files import IndexEntry, check_hash, load_json, read_index, refuse_links, repair_index
from worldvq.data.shard import INDEX, Shard
from worldvq.data.shards import merge_shards, shard_indexes
from worldvq.errors import CorruptFileError, UsageError, plural
from worldvq.files.atomic import disk_errors, sync_folder, write_atomic
from worldvq.files.differences import require_same
from worldvq.files.lock import Lock
from worldvq.files.reading import read_bounded, seal
from worldvq.types import ActionSpace

Split = Literal["train", "heldout", "all"]
M = TypeVar("M", bound=BaseModel)


class Store(Generic[M]):
    """Base of the stores: ``<meta>.json``, ``index.jsonl``, ``episodes/`` and a lock.

    Attributes:
        path: The folder.
        meta: What the store was made from.
        entries: The committed episodes, by number.
    """

    meta_type: ClassVar[type[BaseModel]]
    meta_file: ClassVar[str]
    what: ClassVar[str]
    how_to_make: ClassVar[str]
    may_change: ClassVar[tuple[str, ...]] = ()
    """Keys of the description that a store takes on when it is continued: what was written does not depend on them."""

    def __init__(self, path: Path, meta: M, entries: list[IndexEntry], locks: list[Lock] | None = None) -> None:
        self.path, self.meta, self._locks, self._shard = path, meta, locks or [], Shard()
        self._entries = {entry.number: entry for entry in sorted(entries, key=lambda entry: entry.number)}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open for reading.

        Raises:
            UsageError: There is no such store, or only shards that are not merged; the message says what to do.
            CorruptFileError: The description or the index cannot be read.
        """
        path = Path(path)
        if not (path / cls.meta_file).is_file():
            problem = f"holds no {cls.what} (no {cls.meta_file})" if path.exists() else f"no such {cls.what}"
            raise UsageError(f"{path}: {problem}; make one with: {cls.how_to_make}")
        if not (path / INDEX).exists() and (shards := shard_indexes(path)):
            raise UsageError(f"{path} holds {plural(len(shards), 'shard')} not merged: worldvq data merge {path}")
        refuse_links(path)
        meta = cls.read_meta(path)
        return cls(path, meta, read_index(path / INDEX)[0])

    @classmethod
    def create(cls, path: str | Path, meta: M, shard: Shard = Shard()) -> Self:  # noqa: B008 (frozen)
        """Open for writing and reading; a store that is there already with the same ``meta`` is continued.

        Args:
            path: The folder; made if it is missing.
            meta: What the store is made from.
            shard: Write only this shard's episodes, beside the writers of other shards. It holds what it listed itself
                and what was merged before; ``merge`` makes it whole.

        What ``may_change`` is rewritten in a store that is there, but by a shard: others may be at work.

        Raises:
            UsageError: The folder holds something else, a store with another ``meta`` (the differences are named), or
                shards of another division that are not merged.
            RunError: Another process is writing to it.
        """
        path = Path(path)
        cls.refuse_strangers(path)
        refuse_links(path)
        with disk_errors(path):
            (path / "episodes").mkdir(parents=True, exist_ok=True)
        locks = [Lock(path, shared=not shard.is_whole)]
        try:
            if not shard.is_whole:
                locks.append(Lock(path, shard.lock_name))
            if others := [other for other in shard_indexes(path).values() if other.count != shard.count]:
                raise UsageError(f"{path} holds shard {others[0]}, not merged: worldvq data merge {path}")
            for stale in _stale_files(path, shard):
                stale.unlink(missing_ok=True)
            if (path / cls.meta_file).is_file():
                found = cls.read_meta(path)
                require_same(
                    found.model_dump(mode="json"),
                    meta.model_dump(mode="json"),
                    (f"the {cls.what} has", "you ask for"),
                    f"{path} was made otherwise",
                    "give another folder",
                    ignore=("versions", *(cls.may_change if shard.is_whole else ())),  # versions are of libraries
                )
                if changed := found.moved(meta) if shard.is_whole else None:
                    write_atomic(path / cls.meta_file, seal(changed.model_dump(mode="json")))
                meta = changed or found
            else:
                write_atomic(path / cls.meta_file, seal(meta.model_dump(mode="json")))
            own, whole = read_index(path / shard.index_name)
            if (path / shard.index_name).exists():
                repair_index(path / shard.index_name, whole)
            merged = [] if shard.is_whole else read_index(path / INDEX)[0]
            numbers = {entry.number for entry in own}
            store = cls(path, meta, own + [entry for entry in merged if entry.number not in numbers], locks)
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        store._shard = shard
        return store

    @classmethod
    def refuse_strangers(cls, path: Path) -> None:
        """Raise a UsageError where a store would be made in a folder that holds something else."""
        if path.exists() and (not path.is_dir() or _strangers(path)) and not (path / cls.meta_file).is_file():
            raise UsageError(f"{path} holds other files and no {cls.what}; give a new or an empty folder")

    @classmethod
    def read_meta(cls, path: Path) -> Any:
        """Read the description of the store in a folder; raises CorruptFileError."""
        file = path / cls.meta_file
        return load_json(cls.meta_type, read_bounded(file, follow=False), str(file))

    @classmethod
    def merge(cls, path: str | Path) -> Self:
        """Merge the shards of a store into its index (see :func:`worldvq.data.shards.merge_shards`); open it."""
        merge_shards(Path(path))
        return cls.open(path)

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Release the locks, if this store holds any."""
        while self._locks:
            self._locks.pop().release()

    def __contains__(self, number: int) -> bool:
        """Whether this episode is committed."""
        return number in self._entries

    def __len__(self) -> int:
        """Number of committed episodes."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Show where and how much."""
        held = f"{plural(len(self), 'episode')}, {plural(self.num_frames, 'frame')}"
        return f"{type(self).__name__}({str(self.path)!r}, {held})"

    @property
    def entries(self) -> list[IndexEntry]:
        """The committed episodes, by number."""
        return [self._entries[number] for number in sorted(self._entries)]

    @property
    def num_frames(self) -> int:
        """Frames in all committed episodes."""
        return sum(entry.num_frames for entry in self._entries.values())

    @property
    def heldout_every(self) -> int:
        """Episode n is held out when n % heldout_every == heldout_every - 1."""
        raise NotImplementedError

    @property
    def action_space(self) -> ActionSpace:
        """What an action is."""
        raise NotImplementedError

    def entry(self, number: int) -> IndexEntry:
        """Index entry of an episode.

        Raises:
            UsageError: There is no such episode.
        """
        if number not in self._entries:
            raise UsageError(f"{self.path}: there is no episode {number}; it holds {plural(len(self), 'episode')}")
        return self._entries[number]

    def label(self, number: int) -> str:
        """Return what the frames of an episode show: its own label, else the environment that was recorded."""
        return self.entry(number).label or self.environment

    @property
    def environment(self) -> str:
        """Id of the environment."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, int | str]:
        """Return what tells these episodes from others: how many, and a hash of their numbers and files' SHA-256."""
        listed = "".join(f"{entry.number} {entry.sha256}\n" for entry in self.entries)
        return {
            "episodes": len(self),
            "frames": self.num_frames,
            "heldout_every": self.heldout_every,
            "hash": hashlib.sha256(listed.encode()).hexdigest()[:16],
        }

    def numbers(self, split: Split = "all") -> list[int]:
        """Numbers of the episodes of a split, ascending. The split is fixed by the number alone.

        Raises:
            UsageError: An unknown split.
        """
        if split not in ("train", "heldout", "all"):
            raise UsageError(f"unknown split '{split}': train, heldout or all")
        every = self.heldout_every
        return [n for n in sorted(self._entries) if split == "all" or (n % every == every - 1) == (split == "heldout")]

    def split_problem(self) -> str:
        """Say that nothing is held out, or nothing left to train on, and what to do; "" where both have episodes."""
        count, heldout = len(self), len(self.numbers("heldout"))
        if 0 < heldout < count:
            return ""
        what = "nothing is left to train on" if heldout else "nothing is held out"
        every = min(10, count) if heldout else min(4, count)
        fewer = sum(number % every == every - 1 for number in self._entries) if every > 1 else 0
        way_out = f"record again with record.heldout_every={every}, which plays nothing again, or " if fewer else ""
        return (
            f"{self.path}: {what} (held out {heldout} of {count}, record.heldout_every is {self.heldout_every}): "
            f"{way_out}record more episodes"
        )

    def append(self, entry: IndexEntry) -> IndexEntry:
        """List an episode whose file is already written; it counts as committed when this returns.

        Raises:
            UsageError: The number is taken, or the store is open for reading only.
            RunError: The disk is full; the index is as before.
            CorruptFileError: The file does not hold what the entry says.
        """
        self._check_free(entry.number)
        self._map(entry)
        index = self.path / self._shard.index_name
        line = entry.to_line()
        with disk_errors(index), index.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "short write")
                os.fsync(file.fileno())
            except OSError:
                os.truncate(index, before)
                raise
        if before == 0:
            sync_folder(self.path)
        self._entries[entry.number] = entry
        return entry

    def _check_free(self, number: int) -> None:
        """Refuse to write over an episode, or without the lock."""
        if not self._locks:
            raise UsageError(f"{self.path} is open for reading only; {type(self).__name__}.create opens it for writing")
        if number in self._entries:
            raise UsageError(f"{self.path}: episode {number} is already recorded")
        if not self._shard.owns(number):
            raise UsageError(f"{self.path}: episode {number} is not one of shard {self._shard}")

    def _map(self, entry: IndexEntry) -> Any:
        """Map an episode's file and check names, dtypes and shapes; raises CorruptFileError."""
        raise NotImplementedError

    def _check_contents(self, entry: IndexEntry) -> None:
        """Read everything an episode's file holds; raises CorruptFileError."""
        raise NotImplementedError

    def verify(self) -> list[str]:
        """Hash and read every listed file; return one line for each that is broken, naming it."""
        problems = []
        for entry in self.entries:
            try:
                check_hash(self.path / entry.file, entry.sha256)
                self._check_contents(entry)
            except CorruptFileError as error:
                problems.append(str(error))
        return problems


def _strangers(path: Path) -> list[str]:
    """Names in a folder that creating a store there would not have left behind."""
    names = [file.name for file in path.iterdir() if file.name != "episodes" and file.suffix != ".tmp"]
    return [name for name in names if not name.startswith(".lock")]


def _stale_files(path: Path, shard: Shard) -> list[Path]:
    """What a writer that crashed left half-written; of a shard only its own, others may be at work."""
    if shard.is_whole:
        return [*path.glob(".*.tmp"), *(path / "episodes").glob(".*.tmp")]
    stale = (path / "episodes").glob(".*.safetensors.*.tmp")
    numbers = {file: file.name[1:].partition(".")[0] for file in stale}
    return [file for file, number in numbers.items() if number.isdecimal() and shard.owns(int(number))]
