"""Files that a crash cannot spoil: atomic safetensors, a hashed index and JSON records."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.numpy import save

from worldvq.atomic import write_atomic
from worldvq.config import NonNegativeInt, build
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.types import Episode

MAX_HEADER = 16 * 2**20
_DTYPES = {"U8": "u1", "BOOL": "?", "U16": "<u2", "I32": "<i4", "I64": "<i8", "F32": "<f4"}

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

    def to_line(self) -> bytes:
        """Return the line of the index, newline included."""
        return self.model_dump_json().encode() + b"\n"


def file_name(number: int) -> str:
    """Path of an episode's file inside its store."""
    return f"episodes/{number:06d}.safetensors"


@dataclass(frozen=True)
class SafetensorsFile:
    """The tensors of one file, memory-mapped and read-only, and the strings of its header."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


# ------------------------------------------------------------------------------------------------ writing


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


def map_expected(path: Path, expected: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> SafetensorsFile:
    """Memory-map a file; raise CorruptFileError unless it holds tensors of these dtypes and shapes."""
    file = map_file(path)
    for name, (dtype, shape) in expected.items():
        held = file.tensors.get(name)
        if held is None or held.dtype != dtype or held.shape != shape:
            got = "nothing" if held is None else f"{held.dtype}{list(held.shape)}"
            raise CorruptFileError(f"{path}: {name} should be {dtype}{list(shape)}, the file holds {got}")
    return file


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
