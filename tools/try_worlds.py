"""The whole road on many environments, with no key edited but the id: ``python tools/try_worlds.py --out runs/worlds``.

For each id: record, verify, preview, train, tokenize, imagine, evaluate, with the smallest config; its pictures are
mush. Prints a line an environment: what was recorded, and where the road ended. What is not installed is passed over.
Give ids of your own: ``python tools/try_worlds.py --out runs/worlds CartPole-v1 my_module:My-v0``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

WORLDS = (
    *("worldvq/Maze-v0", "CartPole-v1", "CarRacing-v3", "ALE/Breakout-v5", "ALE/MontezumaRevenge-v5"),
    *("MiniWorld-OneRoom-v0", "MiniWorld-Maze-v0", "minigrid:MiniGrid-DoorKey-8x8-v0", "HalfCheetah-v5"),
    *("highway_env:highway-v0", "gymnasium_robotics:FetchPickAndPlace-v4", "dm_control/cartpole-swingup-v0"),
    *("VizdoomMyWayHome-v1", "VizdoomBasic-v1", "VizdoomDeadlyCorridor-v1", "VizdoomDefendCenter-v1"),
    *("VizdoomDefendLine-v1", "VizdoomHealthGathering-v1", "VizdoomHealthGatheringSupreme-v1"),
    *("VizdoomPredictPosition-v1", "VizdoomTakeCover-v1", "VizdoomDeathmatch-v1", "VizdoomMyWayHome-MultiBinary-v1"),
)
MISSING = ("pip install", "no environment", "No module named", "cannot be imported", "cannot be built")


def run(*words: object) -> tuple[int, str]:
    """Run a verb in a process of its own; returns its exit code and what it said."""
    command = [sys.executable, "-m", "worldvq", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def try_world(env_id: str, out: Path, frames: int) -> tuple[str, str]:
    """Walk the road; returns what was recorded, and how far it went."""
    where = out / env_id.replace("/", "-").replace(":", "-")
    settings = (f"env.id={env_id}", f"record.frames={frames}", "record.workers=2")
    code, text = run("demo", "--config", "tiny", "--out", where, *settings)
    said = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("recording '")]
    if code:
        last = text.strip().splitlines()[-1].removeprefix("worldvq: error: ")
        return " / ".join(said), f"{'not installed' if any(word in last for word in MISSING) else 'FAILED'}: {last}"
    for verb in ("verify", "preview"):
        code, text = run("data", verb, where / "data")
        if code:
            return " / ".join(said), f"FAILED in data {verb}: {text.strip().splitlines()[-1]}"
    return " / ".join(said), "whole road"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", default=WORLDS, help="environments; left out, a list of many families")
    parser.add_argument("--out", type=Path, default=Path("runs/worlds"), help="a folder each, with preview and rollout")
    parser.add_argument("--frames", type=int, default=600)
    arguments = parser.parse_args()
    table = Table("environment", "recorded", "seconds", "outcome")
    for env_id in arguments.ids:
        begun = time.monotonic()
        recorded, outcome = try_world(env_id, arguments.out, arguments.frames)
        row = (env_id, recorded, f"{time.monotonic() - begun:.0f}", outcome)
        print(" | ".join(row), flush=True)
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
