"""Files that a crash cannot spoil: atomic safetensors, a hashed index and JSON records."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.numpy import save

from worldvq.config.fields import NonNegativeInt
from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.files.atomic import disk_errors, write_atomic
from worldvq.files.differences import short
from worldvq.files.headers import MAX_HEADER, Header, parse_header
from worldvq.files.reading import is_utf8, open_file, parse_json, unseal
from worldvq.types import Episode

MAX_LINE = 4096
"""Bytes of a line of an index; one has about 300."""
MAX_META = MAX_HEADER // 16
"""Bytes of an episode's description; in the header its quotes are escaped."""
MAX_LABEL = 256
"""Characters of an episode's label, so that its line stays one."""
_DTYPES = {"U8": "u1", "BOOL": "?", "U16": "<u2", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F32": "<f4"}
_CRC = re.compile(rb'(\{"number":.*),"crc32":"([0-9a-f]{8})"\}')
_LINE_BEGINS = b'{"number":'

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
    seed: int = Field(ge=-(2**63), lt=2**64)
    episode_return: float
    terminated: bool
    truncated: bool
    interrupted: bool
    label: str = Field("", max_length=MAX_LABEL)
    """What its frames show, such as the name of the folder that images came from; "" where nobody said."""

    @model_validator(mode="after")
    def _file_is_ours(self) -> IndexEntry:
        if self.file != file_name(self.number):  # so no index can point out of its folder
            raise ValueError(f"the file of episode {self.number} is {file_name(self.number)}, got {self.file!r}")
        return self

    def to_line(self) -> bytes:
        """Return the line of the index, newline included; it ends with a checksum of what stands before."""
        content = self.model_dump_json(exclude=None if self.label else {"label"}).encode().removesuffix(b"}")
        return content + b',"crc32":"%08x"}\n' % zlib.crc32(content)


_ALL_FIELDS = set(IndexEntry.model_fields)


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
        RunError: The disk is full, a reward is not finite, or the episode's meta is far too large.
    """
    total = float(episode.rewards.astype(np.float64).sum())
    if not math.isfinite(total):
        raise RunError(f"{folder}: episode {number} holds a reward that is not finite; it was not written")
    about = {"seed": int(episode.seed), "meta": episode.meta}
    about |= {name: bool(getattr(episode, name)) for name in ("terminated", "truncated", "interrupted")}
    return write_listed(folder, number, tensors, len(episode.frames), total, about)


def write_listed(
    folder: Path, number: int, tensors: dict[str, np.ndarray], num_frames: int, total: float, about: dict
) -> IndexEntry:
    """As :func:`write_tensors`, of what may be no episode.

    Args:
        folder: The store.
        number: Of its file.
        tensors: What the file holds.
        num_frames: How long it is: frames, samples.
        total: Sum of its ``rewards``, 0 where it has none.
        about: ``seed``, ``meta``, and how it ended.
    """
    description = json.dumps({"number": number, **about})
    parse_json(description.encode(), f"{folder}: the meta of episode {number}, which was not written")
    if len(description) > MAX_META:
        raise RunError(
            f"{folder}: the meta of episode {number} has {len(description):,} bytes, at most {MAX_META:,} are kept; "
            "it was not written"
        )
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"episode": description})
    write_atomic(folder / file_name(number), data)
    about = dict(about)
    return IndexEntry(
        number=number,
        file=file_name(number),
        sha256=hashlib.sha256(data).hexdigest(),
        num_frames=num_frames,
        episode_return=total,
        label=str(about.pop("meta").get("label", "")),
        **about,
    )


def refuse_links(folder: Path) -> None:
    """Refuse a store whose parts are symbolic links, so that nothing outside it is written, deleted or shown.

    The folder itself may be one. Files of episodes are looked at when they are opened.

    Raises:
        UsageError: Names the link.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_symlink() and not path.name.endswith(".tmp"):  # those are removed, not what they point to
                raise UsageError(f"{path}: a symbolic link; a store holds its files itself: put a copy in its place")


# ------------------------------------------------------------------------------------------------ reading


def load_json(model: type[M], text: bytes, source: str) -> M:
    """Parse JSON from disk, sealed or not, into a validated record.

    Raises:
        CorruptFileError: It is no JSON, it is not what was written, or a key or value is wrong; ``source`` names where.
    """
    data = unseal(text, source)
    try:
        return build(model, data, source)
    except UsageError as error:
        raise CorruptFileError(str(error)) from None


def map_file(path: Path) -> SafetensorsFile:
    """Memory-map a safetensors file after checking that its header fits its size.

    The mapping holds no file descriptor, so thousands of episodes can stay mapped. It does where the path is no UTF-8,
    which PyTorch insists on.

    Raises:
        CorruptFileError: The file is missing, a symbolic link, cut short, or its header is not valid.
    """
    with open_file(path, follow=False) as (file, size):
        header = parse_header(file, size, path)
    if is_utf8(path):
        raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
        raw.flags.writeable = False
    else:
        raw = np.asarray(np.memmap(path, np.uint8, "r"))
    return _arrays(raw, header, path)


def load_file(path: Path, sha256: str) -> SafetensorsFile:
    """Read a safetensors file into memory, hashed and checked.

    Raises:
        CorruptFileError: As :func:`map_file`, or its hash is another one.
    """
    with open_file(path, follow=False) as (file, size):
        header = parse_header(file, size, path)
        file.seek(0)
        raw = file.read()
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise CorruptFileError(_changed(path))
    return _arrays(np.frombuffer(raw, np.uint8), header, path)


def check_hash(path: Path, sha256: str) -> None:
    """Raise CorruptFileError unless a file has this SHA-256."""
    with open_file(path, follow=False) as (file, _):
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:  # type: ignore[arg-type]
            raise CorruptFileError(_changed(path))


def _changed(path: Path) -> str:
    return f"{path}: its hash is not the one in the index; the file has changed"


def _arrays(raw: np.ndarray, header: Header, path: Path) -> SafetensorsFile:
    """View the bytes of a file as the arrays that its header lists."""
    if unknown := {slot.dtype for slot in header.slots.values()} - _DTYPES.keys():
        raise CorruptFileError(f"{path}: wrong safetensors header (no store holds {', '.join(sorted(unknown))})")
    tensors = {
        name: np.frombuffer(raw, _DTYPES[slot.dtype], slot.count, header.base + slot.begin).reshape(slot.shape)
        for name, slot in header.slots.items()
    }
    return SafetensorsFile(tensors, header.metadata)


Expected = dict[str, tuple[np.dtype, tuple[int, ...]]]


def check_expected(path: Path, file: SafetensorsFile, expected: Expected) -> None:
    """Raise CorruptFileError unless a file holds tensors of these dtypes and shapes."""
    for name, (dtype, shape) in expected.items():
        held = file.tensors.get(name)
        if held is None or held.dtype != dtype or held.shape != shape:
            got = "nothing" if held is None else f"{held.dtype}{list(held.shape)}"
            raise CorruptFileError(f"{path}: {name} should be {dtype}{list(shape)}, the file holds {got}")


def check_listed(path: Path, file: SafetensorsFile, entry: IndexEntry) -> dict:
    """Return what a file says of its episode; raise CorruptFileError where the index says otherwise."""
    about = parse_json(file.metadata.get("episode", "").encode("utf-8", "replace"), f"{path}: its description")
    if not isinstance(about, dict) or not isinstance(about.get("meta"), dict):
        raise CorruptFileError(f"{path}: its description is no record of an episode")
    rewards = file.tensors.get("rewards", np.zeros(0))
    total = float(rewards.astype(np.float64).sum())
    for name in ("number", "seed", "terminated", "truncated", "interrupted"):
        if about.get(name) != getattr(entry, name):
            raise CorruptFileError(f"{path}: {name} is {short(about.get(name))}, the index says {getattr(entry, name)}")
    if not math.isclose(total, entry.episode_return, rel_tol=1e-6, abs_tol=1e-6):
        raise CorruptFileError(f"{path}: its rewards add up to {total:g}, the index says {entry.episode_return:g}")
    return about


# ------------------------------------------------------------------------------------------------ the index


def read_index(path: Path) -> tuple[list[IndexEntry], int]:
    """Read an index; a torn last line (a crash while appending) is left out.

    A last line that lacks nothing but its newline counts; :func:`repair_index` gives it one before more is appended.

    Returns:
        The entries in file order, and how many bytes of the file hold whole lines.

    Raises:
        CorruptFileError: A line is malformed or changed, an episode is listed twice, or the file cannot be read.
    """
    entries: dict[int, IndexEntry] = {}
    whole = 0
    if not path.exists() and not path.is_symlink():
        return [], 0
    with open_file(path, follow=False) as (file, _):
        for line_number, line in enumerate(_lines(file), start=1):
            source = f"{path}, line {line_number}"
            content = line.rstrip(b"\n") if line.endswith(b"\n") else _torn(line, source)
            if content is None:
                break
            entry = _parse_line(content, source)
            if entry.number in entries:
                raise CorruptFileError(f"{source}: episode {entry.number} is listed twice")
            entries[entry.number] = entry
            whole += len(content) + line.endswith(b"\n")
    return list(entries.values()), whole


def repair_index(path: Path, whole: int) -> None:
    """Cut off what :func:`read_index` left out, and end the last line if it was not, so that lines can be appended.

    Raises:
        RunError: The disk is full, or the file cannot be written to.
    """
    with disk_errors(path), path.open("r+b") as file:
        file.truncate(whole)
        file.seek(max(whole - 1, 0))
        if whole and file.read(1) != b"\n":
            file.write(b"\n")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines one by one, however large the file; one that never ends comes in parts, which are no lines."""
    while line := file.readline(MAX_LINE):
        yield line


def _parse_line(content: bytes, source: str) -> IndexEntry:
    """Check a line's checksum, if it has one (older lines have none), and its fields."""
    if len(content) >= MAX_LINE - 1:
        raise CorruptFileError(f"{source}: longer than a line can be")
    if match := _CRC.fullmatch(content):
        if zlib.crc32(match[1]) != int(match[2], 16):
            raise CorruptFileError(f"{source}: its checksum is not that of its content; the line has changed")
        content = match[1] + b"}"
    try:
        entry = IndexEntry.model_validate_json(content)  # five times as fast as the way below, which says what is wrong
    except ValidationError:
        try:
            entry = build(IndexEntry, parse_json(content, source), source)
        except UsageError as error:
            raise CorruptFileError(str(error)) from None
    # All fields are set in all entries: one set that says so is enough, and half of the memory of a long index.
    object.__setattr__(entry, "__pydantic_fields_set__", _ALL_FIELDS)
    return entry


def _torn(rest: bytes, source: str) -> bytes | None:
    """Return what stands after the last newline if it is a whole line, or None if it is the beginning of one.

    Raises:
        CorruptFileError: It is neither: no crash while appending leaves this.
    """
    rest = rest.rstrip(b"\0")  # some file systems show zeros where the end was not written yet
    if not (_LINE_BEGINS.startswith(rest) or rest.startswith(_LINE_BEGINS)) or len(rest) >= MAX_LINE - 1:
        raise CorruptFileError(f"{source}: neither a line nor the beginning of one")
    try:
        _, end = json.JSONDecoder().raw_decode(rest.decode("ascii", "replace"))
    except (ValueError, RecursionError):
        return None
    if end != len(rest):
        raise CorruptFileError(f"{source}: other bytes follow its content where the line should end")
    return rest
