"""Safetensors files in a folder with an append-only, hashed index: what both stores are made of.

Nothing that was committed can be lost: a file is written under a temporary name, flushed to disk and renamed,
and only then listed in the index, whose line is flushed too. What a crash leaves behind is a temporary file, a
file without a line, or a torn last line; all three are ignored on reading and cleaned up or overwritten later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.numpy import save

from worldvq.config import NonNegativeInt, build
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.types import ActionSpace, Episode

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows: a second writer is not noticed there)
    fcntl = None

INDEX = "index.jsonl"
FREE_RESERVE = 32 * 2**20
"""Bytes that writing leaves free on the disk."""
MAX_HEADER = 16 * 2**20
_DTYPES = {"U8": "u1", "BOOL": "?", "U16": "<u2", "I32": "<i4", "I64": "<i8", "F32": "<f4"}

Split = Literal["train", "heldout", "all"]
M = TypeVar("M", bound=BaseModel)


class Record(BaseModel):
    """Base of what is stored as JSON: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IndexEntry(Record):
    """One committed episode: one line of the index."""

    number: NonNegativeInt
    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    num_frames: int = Field(ge=2)
    seed: int
    episode_return: float
    terminated: bool
    truncated: bool
    interrupted: bool

    @model_validator(mode="after")
    def _file_is_ours(self) -> IndexEntry:
        if self.file != file_name(self.number):  # so no index can point out of its folder
            raise ValueError(f"the file of episode {self.number} is {file_name(self.number)}, got {self.file!r}")
        return self


def file_name(number: int) -> str:
    """Path of an episode's file inside its store."""
    return f"episodes/{number:06d}.safetensors"


@dataclass(frozen=True)
class SafetensorsFile:
    """The tensors of one file, memory-mapped and read-only, and the strings of its header."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


# ------------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing into a RunError that names the file and, on a full disk, the free bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise RunError(f"{path}: the disk is full ({free:,} bytes free); free some space and run it again") from error
        raise RunError(f"{path}: cannot write: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the whole file or none.

    Raises:
        RunError: The disk is full (checked before writing, and while), or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < len(data) + FREE_RESERVE:
            raise RunError(
                f"{path}: the disk is full: {len(data):,} bytes needed and {FREE_RESERVE:,} in reserve, {free:,} free"
            )
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_tensors(folder: Path, number: int, tensors: dict[str, np.ndarray], episode: Episode) -> IndexEntry:
    """Write one episode's file atomically and return the line that lists it; the index is not touched.

    Raises:
        RunError: The disk is full, or a reward is not finite.
    """
    total = float(episode.rewards.astype(np.float64).sum())
    if not math.isfinite(total):
        raise RunError(f"{folder}: episode {number} holds a reward that is not finite; it was not written")
    ending = {name: bool(getattr(episode, name)) for name in ("terminated", "truncated", "interrupted")}
    about = {"number": number, "seed": int(episode.seed), **ending, "meta": episode.meta}
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"episode": json.dumps(about)})
    write_atomic(folder / file_name(number), data)
    return IndexEntry(
        number=number,
        file=file_name(number),
        sha256=hashlib.sha256(data).hexdigest(),
        num_frames=len(episode.frames),
        seed=int(episode.seed),
        episode_return=total,
        **ending,
    )


# ------------------------------------------------------------------------------------------------ reading


def load_json(model: type[M], text: str | bytes, source: str) -> M:
    """Parse JSON from disk into a validated record.

    Raises:
        CorruptFileError: It is no JSON, or a key or value is wrong; ``source`` names where.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{source}: not valid JSON ({error})") from None
    try:
        return build(model, data, source)
    except UsageError as error:
        raise CorruptFileError(str(error)) from None


def map_file(path: Path) -> SafetensorsFile:
    """Memory-map a safetensors file after checking that its header fits its size.

    The mapping holds no file descriptor, so thousands of episodes can stay mapped.

    Raises:
        CorruptFileError: The file is missing, cut short, or its header is not valid.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise CorruptFileError(f"{path}: not a safetensors file, or cut short ({size:,} bytes)")
            header = json.loads(file.read(length))
        base = 8 + length
        metadata = header.pop("__metadata__", {})
        slots = {name: _slot(slot, size - base) for name, slot in header.items()}
        if sum(count * dtype.itemsize for dtype, _, count, _ in slots.values()) != size - base:
            raise ValueError("the tensors do not fill the file")
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("the metadata are not strings")
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: wrong safetensors header ({error})") from None
    raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    raw.flags.writeable = False
    tensors = {
        name: np.frombuffer(raw, dtype, count, base + begin).reshape(shape)
        for name, (dtype, shape, count, begin) in slots.items()
    }
    return SafetensorsFile(tensors, metadata)


def _slot(slot: dict[str, Any], size: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Return dtype, shape, number of elements and first byte of one tensor of a header."""
    dtype, shape = np.dtype(_DTYPES[slot["dtype"]]), tuple(slot["shape"])
    begin, end = slot["data_offsets"]
    if not all(type(value) is int and value >= 0 for value in (begin, end, *shape)):
        raise ValueError(f"wrong shape {shape} or offsets {begin}, {end}")
    count = math.prod(shape)
    if end > size or end - begin != count * dtype.itemsize:
        raise ValueError(f"shape {shape} does not fit bytes {begin} to {end}")
    return dtype, shape, count, begin


def read_index(path: Path) -> tuple[list[IndexEntry], int]:
    """Read an index; a torn last line (a crash while appending) is left out.

    Returns:
        The entries in file order, and how many bytes of the file hold whole lines.

    Raises:
        CorruptFileError: A line is malformed or an episode is listed twice.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    entries: dict[int, IndexEntry] = {}
    for line_number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        source = f"{path}, line {line_number}"
        entry = load_json(IndexEntry, line, source)
        if entry.number in entries:
            raise CorruptFileError(f"{source}: episode {entry.number} is listed twice")
        entries[entry.number] = entry
    return list(entries.values()), whole


class Lock:
    """An advisory lock on a folder, released by the system when its owner dies."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; a :class:`RunError` names the owner where somebody holds it."""
        with _disk_errors(folder / ".lock"):
            self._file = (folder / ".lock").open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read(200).strip() or "another process"
            self._file.close()
            raise RunError(f"{folder}: {owner} is writing to it; wait for it or choose another folder") from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let the next writer in."""
        self._file.close()


# ------------------------------------------------------------------------------------------------ a store


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

    def __init__(self, path: Path, meta: M, entries: list[IndexEntry], lock: Lock | None) -> None:
        self.path, self.meta, self._lock = path, meta, lock
        self._entries = {entry.number: entry for entry in sorted(entries, key=lambda entry: entry.number)}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open for reading.

        Raises:
            UsageError: There is no such store; the message says how to make one.
            CorruptFileError: The description or the index cannot be read.
        """
        path = Path(path)
        if not (path / cls.meta_file).is_file():
            problem = f"holds no {cls.what} (no {cls.meta_file})" if path.exists() else f"no such {cls.what}"
            raise UsageError(f"{path}: {problem}; make one with: {cls.how_to_make}")
        meta: Any = load_json(cls.meta_type, (path / cls.meta_file).read_bytes(), str(path / cls.meta_file))
        return cls(path, meta, read_index(path / INDEX)[0], None)

    @classmethod
    def create(cls, path: str | Path, meta: M) -> Self:
        """Open for writing and reading; a store that is there already with the same ``meta`` is continued.

        Raises:
            UsageError: The folder holds something else, or a store with another ``meta`` (the differences are named).
            RunError: Another process is writing to it.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or _strangers(path)) and not (path / cls.meta_file).is_file():
            raise UsageError(f"{path} holds other files and no {cls.what}; give a new or an empty folder")
        with _disk_errors(path):
            (path / "episodes").mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        try:
            for stale in (*path.glob(".*.tmp"), *(path / "episodes").glob(".*.tmp")):
                stale.unlink(missing_ok=True)
            if (path / cls.meta_file).is_file():
                store = cls.open(path)
                differences = _differences(store.meta.model_dump(mode="json"), meta.model_dump(mode="json"))
                if differences:
                    raise UsageError(f"{path} was made otherwise: {'; '.join(differences)}; give another folder")
            else:
                write_atomic(path / cls.meta_file, (meta.model_dump_json(indent=2) + "\n").encode())
                store = cls(path, meta, [], None)
            _, whole = read_index(path / INDEX)
            if (path / INDEX).exists():
                os.truncate(path / INDEX, whole)
        except BaseException:
            lock.release()
            raise
        store._lock = lock
        return store

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Release the lock, if this store holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __contains__(self, number: int) -> bool:
        """Whether this episode is committed."""
        return number in self._entries

    def __len__(self) -> int:
        """Number of committed episodes."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Show where and how much."""
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} episodes, {self.num_frames} frames)"

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
            raise UsageError(f"{self.path}: there is no episode {number}; it holds {len(self)} episodes")
        return self._entries[number]

    def numbers(self, split: Split = "all") -> list[int]:
        """Numbers of the episodes of a split, ascending. The split is fixed by the number alone.

        Raises:
            UsageError: An unknown split.
        """
        if split not in ("train", "heldout", "all"):
            raise UsageError(f"unknown split '{split}': train, heldout or all")
        every = self.heldout_every
        return [n for n in sorted(self._entries) if split == "all" or (n % every == every - 1) == (split == "heldout")]

    def append(self, entry: IndexEntry) -> IndexEntry:
        """List an episode whose file is already written; it counts as committed when this returns.

        Raises:
            UsageError: The number is taken, or the store is open for reading only.
            RunError: The disk is full; the index is as before.
            CorruptFileError: The file does not hold what the entry says.
        """
        self._check_free(entry.number)
        self._map(entry)
        index = self.path / INDEX
        line = entry.model_dump_json().encode() + b"\n"
        with _disk_errors(index), index.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "short write")
                os.fsync(file.fileno())
            except OSError:
                os.truncate(index, before)
                raise
        if before == 0:
            _sync_folder(self.path)
        self._entries[entry.number] = entry
        return entry

    def _check_free(self, number: int) -> None:
        """Refuse to write over an episode, or without the lock."""
        if self._lock is None:
            raise UsageError(f"{self.path} is open for reading only; {type(self).__name__}.create opens it for writing")
        if number in self._entries:
            raise UsageError(f"{self.path}: episode {number} is already recorded")

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
            path = self.path / entry.file
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != entry.sha256:
                    problems.append(f"{path}: its hash is not the one in the index; the file has changed")
                    continue
                self._check_contents(entry)
            except OSError as error:
                problems.append(f"{path}: cannot read: {error.strerror or error}")
            except CorruptFileError as error:
                problems.append(str(error))
        return problems


def _strangers(path: Path) -> list[str]:
    """Names in a folder that creating a store there would not have left behind."""
    return [file.name for file in path.iterdir() if file.name not in (".lock", "episodes") and file.suffix != ".tmp"]


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Compare two metas key by key; library versions may differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if k != "versions"]
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{key}.{k}" if key else k)]
    return [] if old == new else [f"{key} is {old!r} there, {new!r} asked"]
