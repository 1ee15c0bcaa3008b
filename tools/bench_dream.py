"""Frames a second of ``worldvq/Dream-v0``, one dream against a batch: ``python tools/bench_dream.py``.

Everything takes turns, so that what else the machine does hits all alike. Frames per second of processor time are
given too, which on one thread depend little on what else runs; on a CPU the last column is of those. A step shows its
picture; a forecast shows none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from bench import CONTEXT, random_world
from rich.console import Console
from rich.table import Table
from worldvq_envs.dream import DreamEnv, DreamVectorEnv

from worldvq.nn.devices import resolve_device, resolve_precision
from worldvq.stages.experiment import load_config
from worldvq.world.model import WorldModel


def untrained(config: str, device: torch.device) -> WorldModel:
    """A world of a config's sizes and sampling, with random weights, whose episodes do not terminate."""
    experiment = load_config(config)
    world = random_world(experiment)
    with torch.no_grad():
        world.dynamics.termination.weight.zero_()
        world.dynamics.termination.bias.fill_(-30)
    meta = {"sampling": experiment.evaluate.sampling.model_dump()}
    return WorldModel(world.tokenizer.to(device), world.dynamics.to(device), meta)


def options(world: WorldModel, data: Path | None) -> dict[str, Any]:
    """How to reset: a context of noise where there is no data to take one from."""
    frames = np.random.default_rng(0).integers(256, size=(CONTEXT, *world.frame_size, 3), dtype=np.uint8)
    actions = np.zeros((CONTEXT - 1, *world.action_space.shape), world.action_space.dtype)
    return {} if data else {"frames": frames, "actions": actions}


def one(kwargs: dict[str, Any], begin: dict[str, Any]) -> Callable[[], float]:
    """Return a step of one dream; it counts its frames."""
    env = DreamEnv(**kwargs)
    env.reset(seed=0, options=begin)

    def work() -> float:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset(options=begin)
        return 1.0

    return work


def many(kwargs: dict[str, Any], begin: dict[str, Any], num_envs: int, forecast: bool) -> Callable[[], float]:
    """Return a step, or a forecast, of a batch."""
    env = DreamVectorEnv(num_envs=num_envs, **kwargs)
    env.reset(seed=0, options=begin)

    def work() -> float:
        if forecast:
            env.forecast(env.action_space.sample())
        else:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if begin and (terminated | truncated).any():
                env.reset(options=begin | {"reset_mask": terminated | truncated})
        return float(num_envs)

    return work


def main() -> None:
    """Measure in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="a trained world; without, random weights")
    parser.add_argument("--data", type=Path, help="its dataset")
    parser.add_argument("--config", default="doom", help="sizes of the random one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64, help="dreams at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    if bool(arguments.world) != bool(arguments.data):
        parser.error("--world and --data go together: how fast a world dreams depends on what it is shown")
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    loaded = (
        WorldModel.load(arguments.world, arguments.device) if arguments.world else untrained(arguments.config, device)
    )
    begin = options(loaded, arguments.data)
    works: dict[str, Callable[[], float]] = {}
    for precision in dict.fromkeys(("no", resolve_precision("auto", device))):
        kwargs: dict[str, Any] = {"world": loaded, "data": arguments.data, "context": CONTEXT}
        kwargs |= {"sampling": {"precision": precision}, "horizon": 100 if arguments.data else 10**9}
        name = precision.replace("no", "fp32")
        works[f"one dream, {name}"] = one(kwargs, begin)
        works[f"{arguments.batch} dreams, {name}"] = many(kwargs, begin, arguments.batch, forecast=False)
        works[f"{arguments.batch} forecasts, {name}"] = many(kwargs, begin, arguments.batch, forecast=True)
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
    for work in works.values():  # ``auto`` tries both ways of drawing twice
        for _ in range(6):
            work()
    for _ in range(arguments.rounds):
        for what, work in works.items():
            begun, used, frames = time.perf_counter(), time.process_time(), 0.0
            while time.perf_counter() - begun < arguments.seconds:
                frames += work()
            found[what].append((frames / (time.perf_counter() - begun), frames / (time.process_time() - used)))
    title = f"{device}; world {arguments.world or f'random, {arguments.config}'}; load {os.getloadavg()[0]:.1f}"
    table = Table("what", "frames/s", "slowest to fastest", "per CPU second", "of one dream in fp32", title=title)
    base = found["one dream, fp32"]
    for what, rates in found.items():
        wall, cpu = zip(*rates, strict=True)
        column = 0 if device.type != "cpu" else 1
        times = statistics.median(rate[column] / other[column] for rate, other in zip(rates, base, strict=True))
        spread = f"{min(wall):,.1f} to {max(wall):,.1f}"
        table.add_row(
            what, f"{statistics.median(wall):,.1f}", spread, f"{statistics.median(cpu):,.1f}", f"{times:.2f} x"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
