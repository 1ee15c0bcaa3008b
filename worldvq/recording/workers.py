"""The recorder's pool of worker processes: deadlines, sequence numbers, and a clean end for whatever they do.

Gymnasium's AsyncVectorEnv waits for ever on an environment that hangs or dies, and can hand out a reply that belongs to
an earlier request. Here every job has a number of its own, a worker that does not move within its deadline is killed
with all that it started, and what it had played so far is read from its spool.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.data.episode_files import IndexEntry
from worldvq.errors import RunError, UsageError
from worldvq.recording import janitor
from worldvq.recording.config import RecordConfig
from worldvq.recording.playing import PROBE, UNDO_PROBE, work
from worldvq.recording.spool import Phase, Spool
from worldvq.recording.undo import Undo
from worldvq.types import ActionSpace, Episode

START_SECONDS = 120.0
"""How long a process may take to come up and import what it needs, before it touches an environment."""
CLOSE_SECONDS = 3.0
"""How long environments have to close at the end."""
POLL_SECONDS = 0.1
LONGEST_FOLDER = 85
"""Bytes of a folder in which a socket can still have a name of its own: paths of sockets end at 104 to 108."""
FAILED_STARTS = 3
"""After how many workers in a row that did not come up there is no point in another one."""


@dataclass(frozen=True)
class Job:
    """An episode to play, for the first, second or third time."""

    number: int
    attempt: int = 0


@dataclass(frozen=True)
class Failure:
    """What became of a job whose worker failed.

    Attributes:
        job: The job.
        seed: The seed of its episode.
        error: The environment's own error, or how its process ended, in one line.
        episode: What was played, or None where there was not one transition.
    """

    job: Job
    seed: int
    error: str
    episode: Episode | None


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    spool: Spool
    scratch: Path
    jobs: dict[int, Job] = field(default_factory=dict)
    action_space: ActionSpace | None = None
    segments: set[str] = field(default_factory=set)
    touched: int = -1
    moved: float = field(default_factory=time.monotonic)


class Pool:
    """Worker processes that play episodes. Frames never pass through pipes: workers write their own files.

    A job ends in an :class:`~worldvq.data.episode_files.IndexEntry` or a :class:`Failure`, whose worker is replaced.
    """

    def __init__(self, stream: str, env: EnvConfig, config: RecordConfig, out: Path):
        """Start nothing yet but what cleans up; arguments as of :func:`worldvq.recording.record.record`."""
        self._arguments = (stream, env, config, out)
        self._config, self._env = config, env
        self._workers: dict[Connection, _Worker] = {}
        self._sequence = 0
        self._failed_starts = 0
        self.lines: list[str] = []
        """What the probe says of the recording."""
        self.undo: Undo | None = config.undo
        """Which action undoes which, as every job that is given from now on is told."""
        self.sound_format: SoundFormat | None = None
        """What a step sounds like, once the probe has found it."""
        self._scratch = Path(tempfile.gettempdir()) / f"worldvq-{uuid.uuid4().hex[:12]}"
        janitor.tell(f"folder {self._scratch}")  # before it exists: this process can be killed at any moment
        self._scratch.mkdir(0o700)
        janitor.tell(f"folder {multiprocessing.util.get_temp_dir()}")  # of the fork server's socket
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        # The server listens to a socket in the folder for temporary files, whose path may not be long.
        short = len(os.fsencode(multiprocessing.util.get_temp_dir())) < LONGEST_FOLDER
        method = "forkserver" if can_fork and short else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":  # a worker is then replaced at once: what it imports is there
            self._context.set_forkserver_preload(["worldvq.recording.playing"])
            resource_tracker.ensure_running()  # first: starting it would undo what comes next
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for this process alone
            try:
                multiprocessing.forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self) -> None:
        """Start one more worker."""
        self._sequence += 1
        scratch = self._scratch / str(self._sequence)
        scratch.mkdir()
        here, there = self._context.Pipe()
        process = self._context.Process(target=work, args=(there, str(scratch), *self._arguments), daemon=True)
        process.start()
        there.close()
        self._workers[here] = _Worker(process, here, Spool(scratch / "spool"), scratch)

    def probe(self) -> ActionSpace:
        """Start the first worker and let it begin an episode, so that what cannot work is refused before all else.

        Raises:
            UsageError: The environment cannot be built, reset or seen, or the policy returns no action of it.
        """
        self.start()
        (worker,) = self._workers.values()
        self._send(worker, Job(PROBE))
        while worker.jobs:
            for result in self.results():
                assert isinstance(result, Failure)
                problem = f"with the policy {self._config.policy} cannot begin an episode: {result.error}"
                raise UsageError(f"'{self._env.id}' {problem}")
        assert worker.action_space is not None
        return worker.action_space

    def find_undo(self) -> None:
        """Let the first worker find which action undoes which; nothing, where it fails at that, and it is replaced."""
        jobs = [Job(UNDO_PROBE)]
        while jobs or any(worker.jobs for worker in self._workers.values()):
            if jobs:
                self.give(jobs.pop())
            for result in self.results():
                if isinstance(result, Job):
                    jobs.append(result)
                elif isinstance(result, Failure):
                    self.undo = {}
                    problem = f"trying which action undoes which, seed {result.seed}, failed: {result.error}"
                    print(f"worldvq: '{self._env.id}': {problem}", file=sys.stderr, flush=True)

    @property
    def idle(self) -> int:
        """How many more jobs the pool takes: each worker one to play and one in hand, so that none waits for work."""
        return sum(2 - len(worker.jobs) for worker in self._workers.values())

    def give(self, job: Job) -> None:
        """Hand a job to the worker with the fewest."""
        self._send(min(self._workers.values(), key=lambda worker: len(worker.jobs)), job)

    def in_play(self) -> dict[int, Spool]:
        """Return what is being played, by number of the episode."""
        found = {}
        for worker in self._workers.values():
            header = worker.spool.header()
            if header.sequence in worker.jobs and header.phase == Phase.STEPPING and header.number >= 0:
                found[header.number] = worker.spool
        return found

    def cut(self, number: int, most: int) -> Episode | None:
        """End the worker that plays an episode, and return its first ``most`` frames, truncated.

        It is dead before anything is read, so that it cannot write the whole episode over what is written of it. None
        where it was done in the meantime: then :meth:`results` has the entry.
        """
        for worker in list(self._workers.values()):
            if worker.spool.header().number != number:
                continue
            self._end(worker)
            header = worker.spool.header()
            if header.number == number and header.sequence in worker.jobs and worker.spool.num_frames() > most:
                episode = worker.spool.episode(most=most)
                self._forget(worker)
                return episode
        return None

    def _send(self, worker: _Worker, job: Job) -> None:
        self._sequence += 1
        worker.jobs[self._sequence] = job
        message = {"sequence": self._sequence, "number": job.number, "attempt": job.attempt, "undo": self.undo}
        with suppress(OSError):  # it died: `results` sees that, and gives the job back
            worker.pipe.send_bytes(json.dumps(message).encode())

    def results(self) -> Iterator[IndexEntry | Failure | Job]:
        """Yield what ended since the last call, after a short wait: entries, failures, and jobs to be given again.

        Raises:
            UsageError: The policy or the settings are at fault.
            RunError: The disk is full, or no worker comes up any more.
        """
        for pipe in wait(list(self._workers), POLL_SECONDS):
            worker = self._workers[pipe]  # type: ignore[index]
            try:
                message = json.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                yield from self._failed(worker, _how_it_ended(worker.process))
                continue
            worker.segments |= janitor.shared_memory(janitor.group_members(worker.process.pid))
            if "error" in message:
                yield from self._failed(worker, message["error"], message)
            elif "action_space" in message:
                worker.action_space = ActionSpace.from_json(message["action_space"])
                self.sound_format = message["sound"] and SoundFormat(**message["sound"])
                worker.spool.set_layout(worker.action_space, self._env.size, self.sound_format)
                self._failed_starts = 0
            elif worker.jobs.pop(message["sequence"], None):
                self.lines = message.get("lines", self.lines)
                self.undo = message.get("undo", self.undo)
                if "entry" in message:
                    yield IndexEntry.model_validate(message["entry"])
        for worker in list(self._workers.values()):
            if late := self._late(worker):
                yield from self._failed(worker, late)

    def _late(self, worker: _Worker) -> str:
        """Say for how long a worker has not moved, if that is longer than it may."""
        touched, now = worker.spool.touched(), time.monotonic()
        if touched != worker.touched:
            worker.touched, worker.moved = touched, now
            return ""
        phase = worker.spool.header().phase
        if phase in (Phase.IDLE, Phase.WRITING):  # a slow disk is nothing that another worker would mend
            return ""
        if phase == Phase.STARTING:
            return f"it did not start within {START_SECONDS:g} s" if now - worker.moved > START_SECONDS else ""
        if now - worker.moved <= self._config.timeout:
            return ""
        missed = {Phase.BUILDING: "was not built", Phase.RESETTING: "did not reset"}.get(phase, "did not step")
        return f"it {missed} within {self._config.timeout:g} s (record.timeout)"

    def _failed(self, worker: _Worker, error: str, message: dict[str, Any] | None = None) -> Iterator[Failure | Job]:
        """Kill and replace a worker; yield what became of its jobs."""
        message = message or {}
        self._end(worker)
        header = worker.spool.header()
        job = worker.jobs.pop(header.sequence, None)
        episode = None
        if job and job.number >= 0 and worker.action_space is not None:
            episode = worker.spool.episode({"error": error})
        self._forget(worker)
        probing = job == Job(PROBE) or Job(PROBE) in worker.jobs.values()
        if message.get("fatal") and job != Job(UNDO_PROBE) and (probing or header.phase != Phase.BUILDING):
            where = f", episode {job.number}, seed {header.seed}" if job and job.number >= 0 else ""
            where = "" if self._env.id in error else f"'{self._env.id}'{where}: "
            raise (UsageError if message["usage"] else RunError)(where + error)
        if probing:
            yield Failure(Job(PROBE), header.seed, error, None)
            return
        if job is None:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise RunError(f"'{self._env.id}' did not come up {FAILED_STARTS} times in a row: {error}")
        self.start()
        yield from worker.jobs.values()
        if job is not None:
            yield Failure(job, header.seed, error, episode)

    def _end(self, worker: _Worker) -> None:
        """Kill a worker and all that it started."""
        janitor.kill_group(worker.process.pid, worker.segments)
        worker.process.kill()
        worker.process.join(1)

    def _forget(self, worker: _Worker) -> None:
        del self._workers[worker.pipe]
        worker.pipe.close()
        worker.spool.close()
        shutil.rmtree(worker.scratch, ignore_errors=True)

    def close(self) -> None:
        """Let environments close, end every process, and remove what they left."""
        workers = list(self._workers.values())
        try:
            for worker in workers:
                worker.process.terminate()
            deadline = time.monotonic() + CLOSE_SECONDS
            for worker in workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # pipes last: a worker whose pipe ends begins to close, and SIGTERM would cut that short
            for worker in workers:
                self._end(worker)
                self._forget(worker)
            for path in self._scratch.glob(f"*/{janitor.GROUP_FILE}"):  # started when a signal came
                janitor.kill_group(int(path.read_text()))
            shutil.rmtree(self._scratch, ignore_errors=True)


def _how_it_ended(process: Any) -> str:
    """Say how a process died."""
    process.join(1)
    code = process.exitcode
    if code is None or code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
