"""What the fault tests share: what must not be left behind, and processes that are killed for real."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import programs

SMALL = [
    *("record.frames=600", "env.max_steps=20", "env.size=[16,16]", "tokenizer.frame_size=[16,16]"),
    *("tokenizer_training.steps=4", "tokenizer_training.batch_size=4", "dynamics_training.steps=4"),
    *("tokenizer_training.save_every=2", "dynamics_training.save_every=2"),
    *("evaluate.clips=24", "evaluate.context=2", "evaluate.horizon=3", "evaluate.batch_size=1"),
]
"""Settings of the smallest road there is."""

SHARED_MEMORY = Path("/dev/shm")


def shared_memory() -> set[str]:
    """Names of the shared memory segments of this machine."""
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which somebody else has yet to reap."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Processes, however they were started, whose environment has ``variable=value``, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_until(condition, seconds: float = 120.0, every: float = 0.02) -> bool:
    """Wait for a condition; False when the time is over, which is long enough for any machine that is busy."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


MARKER = "WORLDVQ_TEST_RUN"


class Watch:
    """What a command leaves behind: its processes carry a mark, and have a folder of their own for temporary files.

    ``environment`` is for processes of their own; inside the ``with`` block it holds for this process too.
    """

    def __init__(self, temporary: Path):
        multiprocessing.util.get_temp_dir()  # so that it lies elsewhere
        temporary.mkdir(parents=True, exist_ok=True)
        self.temporary = temporary
        self.mark = {MARKER: str(temporary), "TMPDIR": str(temporary)}
        self.environment = programs.environment(**self.mark)

    def __enter__(self) -> Watch:
        self._memory = shared_memory()
        self._before = {name: os.environ.get(name) for name in self.mark}
        os.environ.update(self.mark)
        tempfile.tempdir = None  # or Python goes on with the folder that it found first
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        tempfile.tempdir = None

    def left(self, *folders: Path) -> list[str]:
        """Processes, shared memory and temporary files, there and in these folders, that are still there after a while.

        Shared memory may be that of other programs, so only what PyTorch, Python and semaphores leave counts.
        """
        found: list[str] = []

        def gone() -> bool:
            memory = {name for name in shared_memory() - self._memory if name.startswith(("torch_", "psm_", "sem."))}
            files = [*self.temporary.iterdir(), *(path for folder in folders for path in folder.rglob("*.tmp"))]
            files = [path for path in files if not path.name.startswith("torchinductor_")]  # PyTorch's cache is to stay
            running = processes_with(MARKER, str(self.temporary))
            found[:] = [*(f"{p.pid} {p.cmdline()}" for p in running), *memory, *map(str, files)]
            return not found

        wait_until(gone, every=0.05)
        return found


class Command:
    """A command line in a process of its own, which signals hit for real.

    It is forked from a server that has imported everything, for that takes seconds; ``spawn`` starts a true process.
    Recording needs one: what it starts ends with Python, which a fork leaves without ceremony.
    """

    def __init__(self, log: Path, *arguments: object, watch: Watch, spawn: bool = False, **environment: object):
        self.log, words = log, [str(argument) for argument in arguments]
        log.touch()
        given = {**watch.mark, **{name: str(value) for name, value in environment.items()}}
        self._process: Any
        if spawn:
            with log.open("wb") as file:
                command = [sys.executable, "-m", "worldvq", *words]
                self._process = subprocess.Popen(command, stdout=file, stderr=file, env=programs.environment(**given))
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["worldvq.stages.road", "scipy.linalg"])
            marks = {name: os.environ.pop(name) for name in watch.mark if name in os.environ}
            multiprocessing.forkserver.ensure_running()  # unmarked: it stays
            os.environ.update(marks)
            self._process = context.Process(target=_run_command, args=(words, given, str(log)))
            self._process.start()
        self.pid = self._process.pid

    def is_running(self) -> bool:
        return self._code() is None

    def _code(self) -> int | None:
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def wait(self) -> int:
        """Exit code; minus the number of a signal that ended it."""
        if not wait_until(lambda: self._code() is not None):
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running: {self.log.read_text()}")
        code = self._code()
        assert code is not None
        return code


def hear_ctrl_c() -> None:
    """Undo what a process has from the fork server, which a recorder may have started: it never hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run_command(arguments: list[str], environment: dict[str, str], log: str) -> None:
    hear_ctrl_c()
    os.environ.update(environment)
    tempfile.tempdir = None
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from support.hold import install
    from worldvq.cli.main import main

    install()
    main(arguments)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(log: Path, count: int, *arguments: object, watch: Watch, **environment: object) -> list[Command]:
    """The same command in processes that know each other, as torchrun starts them."""
    where = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **environment}
    return [
        Command(log.with_suffix(f".{rank}"), *arguments, watch=watch, RANK=rank, LOCAL_RANK=rank, **where)
        for rank in range(count)
    ]


def launch(log: Path, *words: object, watch: Watch, **environment: object) -> subprocess.Popen:
    """A command line on two processes, as people start it, unless its environment says where to hold it."""
    module = "support.hold" if environment else "worldvq"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"]
    command += ["--multi_gpu", "--num_processes=2", "--num_cpu_threads_per_process=1", "--dynamo_backend=no"]
    command += [f"--main_process_port={free_port()}", "-m", module, *map(str, words)]
    given = programs.environment(ACCELERATE_USE_CPU="true", **watch.mark, **environment)
    with log.open("wb") as file:
        return subprocess.Popen(command, env=given, stdout=file, stderr=file)


def forget_what_the_launcher_leaves(watch: Watch) -> None:
    """Torchrun leaves a folder for logs when it does not end well."""
    for folder in watch.temporary.glob("torchelastic_*"):
        assert not [path for path in folder.rglob("*") if path.is_file() and path.name != "error.json"]
        shutil.rmtree(folder)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but for locks, by its path there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def numbers_of_report(out: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What two evaluations have in common: the report without its timings and paths, and what was drawn from it."""
    report = json.loads((out / "report.json").read_text())
    for name in ("seconds", "imagined_frames_per_second", "data"):
        del report[name]
    drawn = ("rollout.mp4", "strip.png", "psnr.png", "ssim.png", "nats.png")
    return report, {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in drawn}


def only_slow(*values: object):
    """A parameter of a test that is tried with ``--slow`` only."""
    return pytest.param(*values, marks=pytest.mark.only_slow)
