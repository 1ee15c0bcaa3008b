"""Does a dream stay as fast and as small as it began? ``python tools/bench_stream.py --world DIR --data DIR``.

Streams thousands of frames on one thread and prints memory and seconds a frame at the beginning and at the end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import torch
from bench import dream, dream_inputs, random_world
from rich.progress import track

from worldvq.stages.experiment import load_config
from worldvq.world.model import WorldModel


def main() -> None:
    """Print one line a thousand frames, then the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="a trained world; without, random weights")
    parser.add_argument("--data", type=Path, help="its dataset")
    parser.add_argument("--config", default="doom", help="sizes of the random one")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--method", default="predictive")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = WorldModel.load(arguments.world, "cpu") if arguments.world else random_world(load_config(arguments.config))
    clip = dream_inputs(world, arguments.data, 1)
    sampling = world.sampling_with({"method": arguments.method})
    step, _ = dream(world, clip, sampling)
    process, part = psutil.Process(), max(arguments.frames // 10, 1)
    seconds: list[float] = []
    memory: list[int] = []
    for frame in track(range(arguments.frames)):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
        if (frame + 1) % part == 0:
            memory.append(process.memory_info().rss)
    first, last = statistics.median(seconds[:part]), statistics.median(seconds[-part:])
    print(
        f"memory after {part:,} frames {memory[0] / 2**20:.1f} MiB, after {arguments.frames:,}: "
        f"{memory[-1] / 2**20:.1f} MiB ({memory[-1] / memory[0] - 1:+.2%})"
    )
    print(
        f"median of the first {part:,} frames {first * 1e3:.2f} ms, of the last {last * 1e3:.2f} ms "
        f"({last / first - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
