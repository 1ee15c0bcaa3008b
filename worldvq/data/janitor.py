"""Ends what a recorder leaves behind: run as a script, by path, with a pipe to the recorder as standard input.

Lines ``group ID``, ``release ID`` and ``folder PATH`` say what exists. When the pipe ends, be it because the recorder
is done or because it was killed, all processes of a group that was not released are killed, and folders are removed.
The standard library alone, so that it starts in a blink and can hardly fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

PROC = Path("/proc")
SHARED_MEMORY = "/dev/shm/"


def group_members(group: int) -> list[int]:
    """Return the processes of a group that leads its own session, zombies apart; [] where there is no /proc."""
    members = []
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[2]) == int(fields[3]) == group:
                members.append(int(entry.name))
    return members


def shared_memory(processes: list[int]) -> set[str]:
    """Return the files of shared memory that processes have mapped."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError):
            lines = (PROC / str(process) / "maps").read_text(errors="replace").splitlines()
            found |= {line[line.index(SHARED_MEMORY) :] for line in lines if SHARED_MEMORY in line}
    return {name for name in found if not name.endswith(" (deleted)")}


def kill_group(group: int) -> None:
    """Kill a worker with all that it started, and free the shared memory that only they had mapped."""
    members = group_members(group)
    segments = shared_memory(members)
    if not members and PROC.is_dir():  # all gone: the number may be another's by now
        return
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    if segments:
        others = [int(entry.name) for entry in PROC.glob("[0-9]*") if int(entry.name) not in members]
        for name in segments - shared_memory(others):
            with contextlib.suppress(OSError):
                Path(name).unlink()


def main() -> None:
    """Read lines until the pipe ends, then clean up."""
    groups: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin:
        what, _, value = line.rstrip("\n").partition(" ")
        if what == "folder":
            folders.append(value)
        elif what == "group":
            groups.add(int(value))
        elif what == "release":
            groups.discard(int(value))
    for group in groups:
        kill_group(group)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for ignored in ("SIGINT", "SIGTERM", "SIGHUP"):  # it ends when the recorder does, and not before
        if hasattr(signal, ignored):
            signal.signal(getattr(signal, ignored), signal.SIG_IGN)
    main()
