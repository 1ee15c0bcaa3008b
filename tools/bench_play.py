"""Frames a second and milliseconds from key to picture of `worldvq play`, from end to end through a websocket.

``python tools/bench_play.py --world runs/doom/world --data runs/doom/data``

The server has one CPU core to itself, or shares it with what else runs there. The client does as the page does: one
step is on its way at a time; a key that is pressed is sent at once, or as soon as the picture before has come. Drawing
is not measured: it takes the page a millisecond.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from worldvq.play.messages import unpack


class Player:
    """A page without a browser."""

    def __init__(self, address: str):
        where, origin = address.replace("http", "ws") + "play", Origin(address.rstrip("/"))
        self._stack = contextlib.ExitStack()
        self.socket: ClientConnection = self._stack.enter_context(connect(where, origin=origin, compression=None))
        self.hello = self.receive()[0]
        self.receive("frame")

    def close(self) -> None:
        """Leave."""
        self._stack.close()

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.socket.send(json.dumps(message))

    def receive(self, kind: str | None = None) -> tuple[dict[str, Any], bytes]:
        """Return the next message, which has to be of a kind."""
        data = self.socket.recv(timeout=60)
        assert isinstance(data, bytes)
        header, pictures = unpack(data)
        assert kind in (None, header["kind"]), header
        return header, pictures

    def act(self, action: Any) -> tuple[dict[str, Any], bytes]:
        """Take a step and wait for its picture."""
        self.send(kind="act", action=action)
        return self.receive("frame")

    def actions(self, rng: np.random.Generator) -> Iterator[Any]:
        """Yield actions as a person holds them, for about eight steps each."""
        plans = [plan["action"] for plan in self.hello["plans"]]
        while True:
            action = plans[rng.integers(len(plans))]
            for _ in range(int(rng.integers(1, 16))):
                yield action


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """Run `worldvq play` on one core while the block runs; yields its address and process."""
    command = [sys.executable, "-m", "worldvq", "play", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        assert process.stdout is not None
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line))), process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int, thread: str | None = None) -> float:
    """Return the CPU time that a process, or one of its threads, has taken, in seconds (Linux)."""
    path = Path(f"/proc/{pid}/task/{thread}/stat" if thread else f"/proc/{pid}/stat")
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def frames_a_second(players: list[Player], seconds: float) -> list[float]:
    """Have players ask for the next step as soon as a picture has come; returns frames/s of each."""
    streams = [player.actions(np.random.default_rng(seed)) for seed, player in enumerate(players)]
    counts, end = [0] * len(players), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for player, stream in zip(players, streams, strict=True):
            player.send(kind="act", action=next(stream))
        for index, player in enumerate(players):
            player.receive("frame")
            counts[index] += 1
    return [count / seconds for count in counts]


def latencies(player: Player, presses: int, fps: float) -> list[float]:
    """Press keys at random moments of a game that runs at ``fps``; returns milliseconds until each is seen."""
    rng, seen = np.random.default_rng(0), []
    plans = [plan["action"] for plan in player.hello["plans"]]
    idle, due = plans[0], time.perf_counter()
    for _ in range(presses):
        pressed = time.perf_counter() + rng.uniform(0.1, 0.4)
        while True:
            now = time.perf_counter()
            if now >= pressed:
                player.act(plans[rng.integers(len(plans))])
                seen.append(1000 * (time.perf_counter() - pressed))
                break
            if now >= due:
                due = now + 1 / fps
                player.act(idle)
            else:
                time.sleep(min(due, pressed) - now)
    return seen


def main() -> None:
    """Print frames a second of one and of four players, and latency of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--real", action="store_true", help="the environment beside the dream")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--presses", type=int, default=100)
    arguments = parser.parse_args()
    real = ["--real"] if arguments.real else []
    with serving("--world", arguments.world, "--data", arguments.data, *real) as (address, pid):
        player = Player(address)
        frames_a_second([player], 2)  # warm, and past the first measurements of which way of drawing is faster
        before = cpu_seconds(pid)
        rate = frames_a_second([player], arguments.seconds)[0]
        spent = 1000 * (cpu_seconds(pid) - before) / (rate * arguments.seconds)
        print(f"1 player: {rate:.1f} frames/s, {spent:.1f} ms of CPU time a frame", flush=True)
        times = latencies(player, arguments.presses, 15)
        half, most = np.percentile(times, [50, 95])
        print(f"key to picture at 15 frames/s: median {half:.0f} ms, 95th percentile {most:.0f} ms", flush=True)
        player.send(kind="overlay", on=True)
        print(f"with the overlay: {frames_a_second([player], arguments.seconds)[0]:.1f} frames/s", flush=True)
        player.send(kind="overlay", on=False)
        players = [player, *(Player(address) for _ in range(3))]
        rates = frames_a_second(players, arguments.seconds)
        print(f"4 players: {min(rates):.1f} frames/s each, {sum(rates):.1f} in all", flush=True)


if __name__ == "__main__":
    main()
