"""Recording against stepping the bare environment, in as many processes, in turns: ``python tools/bench_record.py``.

Bare: every process makes the environment with gymnasium, steps it with the same kind of random actions and throws
the observations away. Recording: ``worldvq record`` with as many workers; its first half is left out, as workers start
one after the other. Rounds alternate, so that a busy machine hits both.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
from worldvq_envs.families import find_family

from worldvq.config.env import EnvConfig
from worldvq.recording.config import RecordConfig
from worldvq.stages.record import record


@contextlib.contextmanager
def bare(config: EnvConfig, seed: int) -> Iterator[tuple[gymnasium.Env, int]]:
    """Make an environment without adapter and reset it; yields it, and how often each action is to be repeated."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # ViZDoom writes where it starts
        family = find_family(config.id)
        family.prepare(config)
        kwargs, repeat = family.kwargs(config)
        env = gymnasium.make(config.id, disable_env_checker=True, **kwargs)
        env.reset(seed=seed)
        yield env, repeat
        env.close()


def step_bare(config: EnvConfig, hold: int, seed: int, start, seconds: float, queue) -> None:
    """Body of a bare process: puts its steps a second into ``queue``."""
    with bare(config, seed) as (env, repeat):
        rng = np.random.default_rng(seed)
        start.wait()
        begun, count, left, action = time.perf_counter(), 0, 0, env.action_space.sample()
        while time.perf_counter() - begun < seconds:
            if left == 0:
                action, left = env.action_space.sample(), int(rng.integers(1, hold + 1))
            left -= 1
            for _ in range(repeat):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
                    break
            count += 1
        queue.put(count / (time.perf_counter() - begun))


def bare_rate(config: EnvConfig, record_config: RecordConfig, seconds: float) -> float:
    """Steps a second of all bare processes together."""
    context = multiprocessing.get_context("spawn")
    start, queue = context.Barrier(record_config.workers), context.Queue()
    arguments = [(config, record_config.hold, seed, start, seconds, queue) for seed in range(record_config.workers)]
    processes = [context.Process(target=step_bare, args=given) for given in arguments]
    for process in processes:
        process.start()
    rate = sum(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return rate


def record_rate(config: EnvConfig, record_config: RecordConfig) -> float:
    """Frames a second that reach the disk, in the second half of the episodes."""
    with tempfile.TemporaryDirectory() as folder, record(config, record_config, Path(folder) / "data") as store:
        done = sorted(((store.path / entry.file).stat().st_mtime, entry.num_frames) for entry in store.entries)
    done = done[len(done) // 2 :]
    return sum(frames for _, frames in done[1:]) / (done[-1][0] - done[0][0])


def main() -> None:
    """Print both rates a round and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="VizdoomMyWayHome-v1")
    parser.add_argument("--frame-skip", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=30_000, help="recorded a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    config = EnvConfig(id=arguments.env, size=(arguments.size,) * 2, frame_skip=arguments.frame_skip)
    record_config = RecordConfig(frames=arguments.frames, workers=arguments.workers, policy="held")
    ratios = []
    for number in range(1, arguments.rounds + 1):
        recorded = record_rate(config, record_config)
        bare = bare_rate(config, record_config, seconds=max(3.0, arguments.frames / recorded))
        ratios.append(recorded / bare)
        print(f"round {number}: recorded {recorded:,.0f} frames/s, bare {bare:,.0f} steps/s, {ratios[-1]:.1%}")
    print(f"{arguments.env}, {arguments.workers} processes: median {statistics.median(ratios):.1%} of the bare rate")


if __name__ == "__main__":
    main()
