"""One writer a folder: advisory locks that the system releases when their owner dies, however it dies.

Imports neither torch nor NumPy, so that a second writer is told within a blink.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from worldvq.errors import RunError
from worldvq.files.atomic import disk_errors

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows: a second writer is not noticed there)
    fcntl = None

NAME = ".lock"


class Lock:
    """The right to write to a folder. What a dead owner leaves is a file that nobody holds: it is taken over."""

    def __init__(self, folder: Path, name: str = NAME, *, shared: bool = False) -> None:
        """Take the lock; the folder must exist.

        Args:
            folder: What is written to.
            name: File of the lock in it.
            shared: Allow others who also ask for a shared one: shards of a store, which write beside each other.

        Raises:
            RunError: Somebody else holds it; names who.
        """
        path = folder / name
        if path.is_symlink():  # its target would be written over
            raise RunError(f"{path}: a symbolic link; delete it")
        with disk_errors(path):
            self._file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            if fcntl is not None:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read(300).strip() or "another process"
            self._file.close()
            raise RunError(f"{folder}: {owner} is writing to it; wait for it or choose another folder") from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        # Who stands there is gone. Of those who share it each may end before the others, so none is named.
        owner = "" if shared else f"process {os.getpid()} on {socket.gethostname()} (since {since})\n"
        try:
            with disk_errors(path):
                os.ftruncate(self._file.fileno(), 0)
                os.write(self._file.fileno(), owner.encode())
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Let the next writer in."""
        self._file.close()


def check_unlocked(folder: Path, name: str = NAME, *, shared: bool = False) -> None:
    """Raise the RunError of :class:`Lock` if somebody is writing to a folder; leaves no trace in it."""
    if (folder / name).is_file():
        Lock(folder, name, shared=shared).release()
