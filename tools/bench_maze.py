"""Frames a second of the maze, batched and one at a time, on one thread: ``python tools/bench_maze.py``."""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from worldvq_envs.maze.env import MazeEnv, MazeVectorEnv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", type=int, default=64, help="environments in the batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is measured")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()

    vector = MazeVectorEnv(args.envs, size=tuple(args.size))
    vector.reset(seed=0)
    actions = np.random.default_rng(0).integers(7, size=(1000, args.envs))
    rate = measure(lambda step: vector.step(actions[step % 1000]), args.seconds) * args.envs
    print(f"vector, {args.envs} envs: {rate:,.0f} frames/s at {args.size[0]}x{args.size[1]}")

    scalar = MazeEnv(size=tuple(args.size))
    scalar.reset(seed=0)

    def step_scalar(step: int) -> None:
        _, _, terminated, truncated, _ = scalar.step(actions[step % 1000, 0])
        if terminated or truncated:
            scalar.reset()

    print(f"scalar: {measure(step_scalar, args.seconds):,.0f} frames/s at {args.size[0]}x{args.size[1]}")


def measure(step, seconds: float) -> float:
    """Return steps a second."""
    for warm_up in range(3):
        step(warm_up)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step(count)
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
