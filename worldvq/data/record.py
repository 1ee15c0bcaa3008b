"""Parallel recording: worker processes play whole episodes and write them, the parent lists them in order.

Episode n is a pure function of (seed, n), so the same seed gives the same dataset with any number of workers, and an
interrupted recording continues with the next number.
"""

from __future__ import annotations

import multiprocessing
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from worldvq.config import EnvConfig, RecordConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore, write_episode
from worldvq.data.files import IndexEntry, file_name, read_index
from worldvq.data.policies import Stream, check_action, check_policy, load_function, make_policy
from worldvq.data.shards import INDEX
from worldvq.errors import RunError, UsageError, WorldVQError
from worldvq.types import ActionSpace, Episode


def episode_seed(seed: int, number: int, use: int = 0) -> int:
    """Derive an independent 31-bit seed for one use in one episode."""
    return int(np.random.SeedSequence([seed, number, use]).generate_state(1)[0] >> 1)


def play(stream: Stream, config: RecordConfig, number: int) -> Episode:
    """Play one episode.

    Where the environment ends without showing a last frame, that transition is dropped; its reward and the way it
    ended move to the transition before it, the last one that can be seen.
    """
    seed = episode_seed(config.seed, number)
    frames, actions, rewards = [stream.reset(seed)], [], []
    policy = make_policy(config, stream, episode_seed(config.seed, number, 1))
    terminated = truncated = False
    while not (terminated or truncated):
        action = check_action(stream.action_space, policy(frames[-1]))
        frame, reward, terminated, truncated = stream.step(action)
        if stream.has_frame or not actions:
            frames.append(frame)
            actions.append(action)
            rewards.append(reward)
        else:
            rewards[-1] += reward
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=terminated,
        truncated=truncated,
        seed=seed,
    )


def _work(pipe: Connection, stream: str, env: EnvConfig, config: RecordConfig, out: Path) -> None:
    """Body of a worker process: episode numbers in, index entries or error texts out."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the way through ``finally``, which a bare SIGTERM skips
    number, world = -1, None
    try:
        world = load_function(stream)(env)
        while True:
            number = pipe.recv()
            pipe.send(write_episode(out, number, play(world, config, number), config.compression))
    except (EOFError, KeyboardInterrupt, BrokenPipeError, SystemExit):
        return
    except BaseException as error:
        text = f"'{env.id}', episode {number}, seed {episode_seed(config.seed, max(number, 0))}: {_line(error)}"
        kind = "" if isinstance(error, WorldVQError) else f" ({type(error).__name__})"
        with suppress(OSError):  # the parent may have heard enough from another worker
            pipe.send((isinstance(error, UsageError), text + kind))
    finally:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        finally:
            if world is not None:  # an engine of its own, as ViZDoom's, would outlive this process
                world.close()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _probe(env: EnvConfig, config: RecordConfig, stream: str) -> ActionSpace:
    """See one frame and ask the policy once, so that what cannot work is refused before anything is written.

    Raises:
        UsageError: The environment cannot be built, reset or seen, or the policy returns no action of it.
    """
    world = load_function(stream)(env)
    try:
        frame = world.reset(episode_seed(config.seed, 0))
        check_action(world.action_space, make_policy(config, world, episode_seed(config.seed, 0, 1))(frame))
        return world.action_space
    except WorldVQError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {_line(error)}"
        raise UsageError(f"'{env.id}' with the policy {config.policy} cannot begin an episode: {problem}") from error
    finally:
        world.close()


class _Pool:
    """Worker processes with a pipe each. Frames never pass through it: workers write their own files."""

    def __init__(self, num_workers: int, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.workers: dict[Connection, Any] = {}
        self.numbers: dict[Connection, list[int]] = {}
        for _ in range(num_workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, *arguments), daemon=True)
            process.start()
            there.close()
            self.workers[here], self.numbers[here] = process, []

    def give(self, pipe: Connection, number: int) -> None:
        self.numbers[pipe].append(number)
        try:
            pipe.send(number)
        except OSError as error:
            raise self._died(pipe) from error

    def results(self, timeout: float) -> Iterator[tuple[Connection, IndexEntry]]:
        """Yield what finished; raises the error of a worker that failed or died."""
        for pipe in wait(list(self.workers), timeout):
            assert isinstance(pipe, Connection)
            try:
                result = pipe.recv()
            except (EOFError, OSError) as error:
                raise self._died(pipe) from error
            if isinstance(result, tuple):
                is_usage, text = result
                raise UsageError(text) if is_usage else RunError(text)
            self.numbers[pipe].remove(result.number)
            yield pipe, result

    def _died(self, pipe: Connection) -> RunError:
        self.workers[pipe].join(1)
        return RunError(
            f"a recording worker died (exit code {self.workers[pipe].exitcode}) in episode "
            f"{' or '.join(map(str, self.numbers[pipe]))}; "
            "committed episodes are safe, run the same command to continue"
        )

    def close(self) -> None:
        for process in self.workers.values():
            process.terminate()
        for pipe, process in self.workers.items():
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()  # last: a worker that sees its pipe end begins to close, and SIGTERM would cut that short


def record(
    env: EnvConfig,
    config: RecordConfig,
    out: Path,
    *,
    stream: str = "envs.adapters:make_stream",
    progress: bool = True,
) -> EpisodeStore:
    """Record a dataset, or continue one.

    Args:
        env: What to play.
        config: How much, by whom. With ``frames``, the first episode that reaches the count is the last.
        out: Folder of the dataset.
        stream: ``module:function`` that builds a stream of frames from ``env``.
        progress: Show a progress bar.

    Returns:
        The store, open for reading and writing.

    Raises:
        UsageError: The environment or policy cannot be used, or ``out`` holds another dataset; nothing was written.
        RunError: The environment failed while playing, a worker died, or the disk is full. Committed episodes stay.
    """
    check_policy(config.policy)
    if config.frames is None and config.episodes is None:
        raise UsageError("nothing to record: set record.frames or record.episodes")
    action_space = _probe(env, config, stream)
    names = ("worldvq", "gymnasium", "numpy", *(("vizdoom",) if "izdoom" in env.id else ()))
    meta = DatasetMeta(
        env=env,
        action_space=action_space.to_json(),
        frame_size=env.size,
        seed=config.seed,
        policy=config.policy if config.policy != "held" else f"held {config.hold}",
        heldout_every=config.heldout_every,
        compression=config.compression,
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
    )
    store = EpisodeStore.create(out, meta)
    try:
        if not _done(store, config):
            with _progress(config, store, progress) as advance:
                _fill(store, env, config, stream, advance)
    except BaseException:
        store.close()
        raise
    return store


def _done(store: EpisodeStore, config: RecordConfig) -> bool:
    if config.episodes is not None:
        return len(store) >= config.episodes
    assert config.frames is not None
    return store.num_frames >= config.frames


def _fill(store: EpisodeStore, env: EnvConfig, config: RecordConfig, stream: str, advance: Any) -> None:
    """Hand out numbers, commit results in order of number until the target is reached, throw away what is over."""
    first_number = next_number = turn = len(store)
    waiting: dict[int, IndexEntry] = {}
    pool = _Pool(min(config.workers, config.episodes or config.workers), stream, env, config, store.path)
    try:
        for pipe in [*pool.workers, *pool.workers]:  # two each, so that none waits for the next number
            next_number = _give(pool, pipe, next_number, config)
        while not _done(store, config):
            for pipe, entry in pool.results(timeout=0.2):
                waiting[entry.number] = entry
                while turn in waiting and not _done(store, config):
                    store.append(waiting.pop(turn))
                    turn += 1
                next_number = _give(pool, pipe, next_number, config)
            advance(store)
    finally:
        pool.close()
        # What is committed stands on disk; the store in memory may not know, as Ctrl-C can come right after.
        listed = {entry.number for entry in read_index(store.path / INDEX)[0]}
        for number in range(first_number, next_number):  # finished or half-written, but not committed
            if number not in listed:
                (store.path / file_name(number)).unlink(missing_ok=True)
        for stale in (store.path / "episodes").glob(".*.tmp"):
            stale.unlink(missing_ok=True)


def _give(pool: _Pool, pipe: Connection, number: int, config: RecordConfig) -> int:
    """Give a worker an episode, unless all that are asked for are given; returns the number of the next one."""
    if config.episodes is not None and number >= config.episodes:
        return number
    pool.give(pipe, number)
    return number + 1


@contextmanager
def _progress(config: RecordConfig, store: EpisodeStore, show: bool) -> Iterator[Any]:
    """Yield a function that shows how far the store is: a bar on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    unit, total = ("episodes", config.episodes) if config.episodes is not None else ("frames", config.frames)
    columns = (TextColumn("recording"), BarColumn(), TextColumn("{task.fields[text]}"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("record", total=total, text="starting workers")
    begun, before, last = time.monotonic(), store.num_frames, time.monotonic()

    def advance(store: EpisodeStore) -> None:
        nonlocal last
        rate = (store.num_frames - before) / (time.monotonic() - begun)
        text = f"{len(store)} episodes, {store.num_frames} frames, {rate:.0f} frames/s"
        bar.update(task, completed=len(store) if unit == "episodes" else store.num_frames, text=text)
        if show and not console.is_terminal and time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"recording: {text}", flush=True)

    if show and console.is_terminal:
        bar.start()
    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
