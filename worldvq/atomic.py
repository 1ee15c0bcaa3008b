"""Files that are there whole or not at all, whatever crashes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from worldvq.errors import RunError

FREE_RESERVE = 32 * 2**20
"""Bytes that writing leaves free on the disk."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing into a RunError that names the file and, on a full disk, the free bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise RunError(
                f"{path}: the disk is full ({free:,} bytes free); free some space and run it again"
            ) from error
        raise RunError(f"{path}: cannot write: {error.strerror or error}") from error


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
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
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
