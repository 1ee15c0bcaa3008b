"""A thousand hostile connections to `worldvq play`, while one player plays: does it keep its frames?

``python tools/attack_play.py --world runs/doom/world --data runs/doom/data``

Each connection is one of the kinds in ``tests/support/hostile.py``, 100 at a time. Prints how each kind ended, and the
player's frames/s.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_play import Player, cpu_seconds, serving

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.hostile import attack


def run_attack(address: str, count: int, at_once: int, results: multiprocessing.Queue) -> None:
    """Body of the process that attacks."""
    results.put(asyncio.run(attack(address, count, at_once)))


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Print frames/s of a player alone and under attack, and how the attackers ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=100)
    arguments = parser.parse_args()
    with serving("--world", arguments.world, "--data", arguments.data) as (address, pid):
        player, results = Player(address), multiprocessing.Queue()
        stream = player.actions(np.random.default_rng(0))

        def play_until(over: Callable[[], bool]) -> tuple[float, float]:
            """Return frames/s, and those of the worst second."""
            times = [time.perf_counter()]
            while not over():
                player.act(next(stream))
                times.append(time.perf_counter())
            seconds = np.array(times) - times[0]
            counts = np.bincount(seconds[1:].astype(int))[:-1]
            return (len(times) - 1) / seconds[-1], float(counts.min()) if len(counts) else float("nan")

        until = time.perf_counter() + 10
        rate, worst = play_until(lambda: time.perf_counter() > until)
        before, cpu = memory(pid), cpu_seconds(pid)
        print(f"alone: {rate:.1f} frames/s, {worst:.0f} in the worst second; {before:.0f} MiB", flush=True)
        process = multiprocessing.Process(
            target=run_attack, args=(address, arguments.connections, arguments.at_once, results)
        )
        begun = time.perf_counter()
        process.start()
        rate, worst = play_until(lambda: not results.empty())
        took = time.perf_counter() - begun
        print(f"under attack: {rate:.1f} frames/s, {worst:.0f} in the worst second; {memory(pid):.0f} MiB")
        print(f"{took:.0f} s, CPU time of the server: {100 * (cpu_seconds(pid) - cpu) / took:.0f} % of a core")
        for (kind, how), count in sorted(results.get().items()):
            print(f"{count:5d} {kind}: {how}")
        process.join()
        Player(address).close()  # and there is room for another one
        print("another player was let in")


if __name__ == "__main__":
    main()
