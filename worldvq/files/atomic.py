"""Files that are there whole or not at all, whatever crashes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from worldvq.errors import RunError

try:
    import resource
except ImportError:  # pragma: no cover (Windows has no such limits)
    resource = None

FREE_RESERVE = 32 * 2**20
"""Bytes that writing leaves free on the disk."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing into a RunError that names the file and, where space ran out, what is left."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk is full ({free_space(path):,} bytes free); free some space and run it again"
        elif error.errno == errno.EFBIG:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource else -1
            reason = (
                f"the file would grow over the limit of {most:,} bytes ({free_space(path):,} bytes free on the disk); "
                "raise it (ulimit -f) and run it again"
            )
        else:
            reason = f"cannot write: {error.strerror or error}"
        raise RunError(f"{path}: {reason}") from error


def free_space(path: Path) -> int:
    """Bytes free where a file is, or is to be."""
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(folder).free


def check_space(path: Path, size: int) -> None:
    """Refuse to write ``size`` bytes where little would be left.

    Raises:
        RunError: Names the file and the free bytes.
    """
    free = free_space(path)
    if free < size + FREE_RESERVE:
        raise RunError(
            f"{path}: the disk is full: {size:,} bytes needed and {FREE_RESERVE:,} in reserve, {free:,} bytes free; "
            "free some space and run it again"
        )


def remove_stale(folder: Path, name: str = "*") -> None:
    """Remove what a writer that was killed left half-written of files in a folder; for its only writer."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
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
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder; the last one, if it is there, belongs to the others.

    The first is replaced when all are on the disk under other names, so one that is full leaves the old ones. A crash
    may leave them without the last one, which is taken away while the others are replaced.

    Raises:
        RunError: As :func:`write_atomic`.
    """
    *_, last = files
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, data in files.items():
            with disk_errors(path):
                check_space(path, len(data))
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary[path].unlink(missing_ok=True)
                with temporary[path].open("xb") as file:  # never through a link that somebody has put there
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        with disk_errors(last):
            if len(files) > 1:
                last.unlink(missing_ok=True)
            for path, written in temporary.items():
                written.replace(path)
            sync_folder(last.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            for written in temporary.values():
                written.unlink(missing_ok=True)
        raise
