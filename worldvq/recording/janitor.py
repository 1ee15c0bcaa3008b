"""Ends what a recorder leaves behind, even if it is killed: a small process that waits for the recorder to end.

Run as a script it reads lines ``folder PATH`` from a pipe. When the pipe ends, every process group that a ``group``
file in a folder's subfolders names is killed, and the folders are removed; unless the last line was ``exit``: then
nobody was killed, and they are cared for. The standard library alone, so that it starts in a blink.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROC = Path("/proc")
SHARED_MEMORY = "/dev/shm/"
GROUP_FILE = "group"
"""In a worker's folder: its process group."""
SERVED_SECONDS = 3.0
"""How long the recorder's own fork server may take to see that it is gone."""


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
    """Return the files of shared memory that processes have mapped or open."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError):
            lines = (PROC / str(process) / "maps").read_text(errors="replace").splitlines()
            lines += [str(link.readlink()) for link in (PROC / str(process) / "fd").iterdir()]
            found |= {line[line.index(SHARED_MEMORY) :] for line in lines if SHARED_MEMORY in line}
    return {name for name in found if not name.endswith(" (deleted)")}


def kill_group(group: int, segments: set[str] | frozenset[str] = frozenset()) -> None:
    """Kill a worker with all that it started, and free the shared memory that only they had mapped.

    Args:
        group: The process group.
        segments: Shared memory that they were seen with, should they be dead already.
    """
    members = group_members(group)
    segments = segments | shared_memory(members)
    if members or not PROC.is_dir():  # once all are gone, the number may be another's
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    if segments:
        others = [int(entry.name) for entry in PROC.glob("[0-9]*") if int(entry.name) not in members]
        for name in segments - shared_memory(others):
            with contextlib.suppress(OSError):
                Path(name).unlink()


def is_served(folder: str) -> bool:
    """Say whether somebody listens to a socket in a folder: it is a fork's then, and not only the dead recorder's."""
    for _ in range(5):  # one reading can miss lines, where sockets come and go
        with contextlib.suppress(OSError):
            if f" {folder}/" in (PROC / "net" / "unix").read_text(errors="replace"):
                return True
        time.sleep(0.02)
    return False


_running: tuple[int, subprocess.Popen[str]] | None = None


def tell(line: str) -> None:
    """Tell this process's janitor what exists; starts it when it is first told something."""
    global _running
    if _running is None or _running[0] != os.getpid():  # a fork needs one of its own
        # Isolated and without site packages, in a session of its own: it must outlive this process by a blink.
        command = [sys.executable, "-I", "-S", str(Path(__file__))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        _running = os.getpid(), process
        atexit.register(_dismiss, process)
    assert _running[1].stdin is not None
    with contextlib.suppress(OSError):  # without it, all that is lost is the cleaning up after a SIGKILL
        _running[1].stdin.write(line + "\n")
        _running[1].stdin.flush()


def _dismiss(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write("exit\n")
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)


def main() -> None:
    """Read lines until the pipe ends, then clean up."""
    folders: list[str] = []
    for line in sys.stdin:
        what, _, value = line.rstrip("\n").partition(" ")
        if what == "folder":
            folders.append(value)
        elif what == "exit":
            folders.clear()
    for folder in folders:
        for path in Path(folder).glob(f"*/{GROUP_FILE}"):
            with contextlib.suppress(OSError, ValueError):
                kill_group(int(path.read_text()))
    deadline = time.monotonic() + SERVED_SECONDS
    for folder in folders:
        while is_served(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not is_served(folder):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for ignored in ("SIGINT", "SIGTERM", "SIGHUP"):  # it ends when the recorder does, and not before
        if hasattr(signal, ignored):
            signal.signal(getattr(signal, ignored), signal.SIG_IGN)
    main()
