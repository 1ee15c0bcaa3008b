"""Reading files that nobody vouches for: bounds are checked first, and what is wrong is one error that names the file.

JSON is read within bounds of size, depth and numbers; a record is written with a checksum of its content, so that a
flipped bit which leaves it valid JSON is found too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.differences import short

MAX_JSON = 2**20
"""Bytes of a JSON file; parsed, the worst of that size takes some 30 MB."""
MAX_DEPTH = 64
MAX_INTEGER = 2**64
CHECKSUM = "checksum"


def is_utf8(path: Path) -> bool:
    """Whether a path can be given to libraries that take UTF-8 only; one of a POSIX system can be any bytes."""
    return not any("\ud800" <= char <= "\udfff" for char in str(path))


@contextmanager
def open_file(path: Path, *, follow: bool = True) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yields it and its size.

    Args:
        path: The file.
        follow: Whether it may be a symbolic link.

    Raises:
        CorruptFileError: It is missing, a folder, a device, a link that may not be one, or cannot be read.
    """
    if "\0" in str(path):
        raise CorruptFileError(f"{str(path)!r}: no file has such a name")
    try:
        # Not blocking: a named pipe would hold the reader up before it can be refused.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CorruptFileError(f"{path}: not a regular file")
            yield file, status.st_size
    except OSError as error:
        if not follow and path.is_symlink():
            raise CorruptFileError(f"{path}: a symbolic link; a store holds its files itself") from None
        raise CorruptFileError(f"{path}: cannot read: {error.strerror or error}") from None


def read_bounded(path: Path, limit: int = MAX_JSON, *, follow: bool = True) -> bytes:
    """Read a whole file of at most ``limit`` bytes.

    Raises:
        CorruptFileError: As :func:`open_file`, or it is larger.
    """
    with open_file(path, follow=follow) as (file, size):
        if size > limit:
            raise CorruptFileError(f"{path}: {size:,} bytes; at most {limit:,} are read")
        return file.read(limit)


def parse_json(text: bytes, source: str) -> Any:
    """Parse JSON; NaN, infinities, keys that stand twice and what lies very deep are refused.

    Raises:
        CorruptFileError: It is no such JSON; ``source`` names where.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
        _check_bounds(value)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{source}: not valid JSON ({error})") from None
    return value


def read_json(path: Path, limit: int = MAX_JSON, *, follow: bool = True) -> Any:
    """Read a JSON file as :func:`parse_json` does; raises CorruptFileError that names it."""
    return parse_json(read_bounded(path, limit, follow=follow), str(path))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _check_bounds(value: Any) -> None:
    """Raise a ValueError for what is deeper or larger than anything that is written here."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError("a number is too large")
            if isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError("an integer is too large")
        lists = [item for item in level if isinstance(item, list)]
        level = [child for item in level if isinstance(item, dict) for child in item.values()]
        level += [child for item in lists for child in item]
        if not level:
            return
    raise ValueError(f"deeper than {MAX_DEPTH} levels")


def _digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(record: dict[str, Any]) -> bytes:
    """Return a record as JSON with a checksum of its content, for :func:`unseal`.

    Raises:
        UsageError: It holds what :func:`unseal` would refuse to read.
    """
    try:
        record = json.loads(json.dumps(record, allow_nan=False))  # as it will be read: tuples are lists
        _check_bounds(record)
    except ValueError as error:
        raise UsageError(f"this cannot be stored as JSON ({error}): {short(record)}") from None
    return json.dumps({**record, CHECKSUM: _digest(record)}, indent=1, allow_nan=False).encode() + b"\n"


def unseal(text: bytes, source: str) -> dict[str, Any]:
    """Parse what :func:`seal` returned; a record that has no checksum, from before there were any, is taken as it is.

    Raises:
        CorruptFileError: It is no JSON object, or not what was written; ``source`` names it.
    """
    record = parse_json(text, source)
    if not isinstance(record, dict):
        raise CorruptFileError(f"{source}: expected keys and values, got {type(record).__name__}")
    checksum = record.pop(CHECKSUM, None)
    if checksum is not None and checksum != _digest(record):
        raise CorruptFileError(
            f"{source}: its {CHECKSUM} is not that of its content: it was damaged, or changed by hand; copy it here "
            f"again, or if you changed it and mean it, delete the line with {CHECKSUM}"
        )
    return record


def read_sealed(path: Path, *, follow: bool = True) -> dict[str, Any]:
    """Read a file that :func:`seal` made; raises CorruptFileError that names it."""
    return unseal(read_bounded(path, follow=follow), str(path))
