"""How long a step of the bare environment takes, and whether waking up another core is what it waits for.

    python tools/bench_step.py --env VizdoomMyWayHome-v1

One process steps it three times over: on all cores; on one core, which an engine in a process of its own has to share;
and on all cores while other processes keep them awake. An engine that is handed every step by a message costs a wake-up
each way, and that of a core which has gone to sleep takes longest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time

import numpy as np
from bench_record import bare

from worldvq.config.env import EnvConfig


def measure(config: EnvConfig, seconds: float, core: int | None, queue) -> None:
    """Body of a process: puts the microseconds of its steps into ``queue``."""
    if core is not None:
        os.sched_setaffinity(0, {core})  # what it starts stays there too
    with bare(config, seed=0) as (env, _):
        env.action_space.seed(0)
        found, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            action, begun = env.action_space.sample(), time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            found.append(1e6 * (time.perf_counter() - begun))
            if terminated or truncated:
                env.reset()
    queue.put(np.percentile(found, [10, 50, 90]).tolist())


def keep_awake(core: int) -> None:
    """Body of a process that takes what nobody else wants of a core."""
    os.sched_setaffinity(0, {core})
    os.nice(19)
    while True:
        pass


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="VizdoomMyWayHome-v1", help="id of the environment")
    parser.add_argument("--frame-skip", type=int, default=4, help="for ViZDoom, which skips frames itself")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured, in turns")
    arguments = parser.parse_args()
    config = EnvConfig(id=arguments.env, frame_skip=arguments.frame_skip)
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0))
    for _ in range(arguments.rounds):
        for name in ("all cores", "one core", "all cores, awake"):
            awake = cores if name.endswith("awake") else []
            busy = [context.Process(target=keep_awake, args=(core,), daemon=True) for core in awake]
            queue, core = context.SimpleQueue(), cores[0] if name == "one core" else None
            process = context.Process(target=measure, args=(config, arguments.seconds, core, queue))
            for one in (*busy, process):
                one.start()
            process.join()
            for one in busy:
                one.terminate()
            low, middle, high = queue.get()
            print(f"{name:<17} 10 % {low:6,.0f} us, median {middle:6,.0f} us, 90 % {high:6,.0f} us", flush=True)


if __name__ == "__main__":
    main()
