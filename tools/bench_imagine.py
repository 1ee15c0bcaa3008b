"""Imagined frames a second, streaming, on one thread: ``python tools/bench_imagine.py --world runs/doom/world``.

Without ``--world``, a model of ``--config``'s size with random weights: the rate does not depend on them. A frame is
what a user waits for: context network, 64 tokens drawn one after the other, and the picture decoded from them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from worldvq.config import load_config
from worldvq.models.dynamics import Dynamics
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.world import WorldModel
from worldvq.types import ActionSpace


def random_world(name: str) -> WorldModel:
    """A world with a config's sizes, random weights and five actions."""
    config = load_config(name)
    tokenizer = Tokenizer(config.tokenizer)
    space = ActionSpace("discrete", nvec=(5,))
    return WorldModel(tokenizer, Dynamics(config.dynamics, tokenizer.grid, tokenizer.num_codes, space), {})


def frames_per_second(world: WorldModel, batch: int, context: int, num_frames: int, rounds: int) -> list[float]:
    """Rate of every round; frames of all rows count."""
    low = torch.zeros(batch, context, *world.frame_size, 3, dtype=torch.uint8)
    shape = world.action_space.shape
    kind = torch.float32 if world.action_space.kind == "box" else torch.int64
    session = world.start(low, torch.zeros(batch, context - 1, *shape, dtype=kind))
    action = torch.zeros(batch, *shape, dtype=kind)
    for _ in range(2):
        session.step(action)
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(num_frames):
            session.step(action)
        rates.append(batch * num_frames / (time.perf_counter() - begun))
    return rates


def main() -> None:
    """Print one line a batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="a trained world")
    parser.add_argument("--config", default="doom", help="sizes of a random one")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--frames", type=int, default=20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = WorldModel.load(arguments.world, "cpu") if arguments.world else random_world(arguments.config)
    height, width = world.tokenizer.grid
    print(f"{arguments.world or arguments.config}: {height}x{width} tokens, {world.frame_size} pixels, one thread")
    for batch in arguments.batch:
        rates = frames_per_second(world, batch, 6, arguments.frames, arguments.rounds)
        spread = f"{min(rates):.1f} to {max(rates):.1f}"
        print(f"batch {batch}: {statistics.median(rates):.1f} frames/s (median of {len(rates)}; {spread})")


if __name__ == "__main__":
    main()
