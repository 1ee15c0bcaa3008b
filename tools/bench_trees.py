"""What a change is worth where other programs run too: checkouts take turns, and CPU seconds count.

    python tools/bench_trees.py ../before . --what dynamics --config doom

Each checkout works in a process of one thread with its own code and its own ``tools/bench.py``; while one takes a turn
the others wait. ``of bf16`` is the share of the fastest of a few products of bf16 matrices, measured between the turns.
The ratio to the first checkout is the median over turns. Models have random weights, so dreams draw one token after the
other: how many passes predictive sampling takes would mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES = (512, 1024)


def make_work(what: str, name: str, batch: int, precision: str) -> tuple[Any, float]:
    """Return a step, which returns how many units it did, and its FLOPs a unit; with the code of this process."""
    import bench
    import torch

    from worldvq.models.dynamics import Dynamics
    from worldvq.models.losses import dynamics_loss, tokenizer_loss
    from worldvq.models.tokenizer import Tokenizer
    from worldvq.stages.experiment import load_config
    from worldvq.types import ActionSpace, Clip, TokenClip

    torch.manual_seed(0)
    config = load_config(name)
    grid, codes = config.tokenizer.grid, config.tokenizer.quantizer.num_codes
    like = argparse.Namespace(device=torch.device("cpu"), precision="bf16", wait=lambda: None)
    if what == "dream":
        world = bench.random_world(config)
        sampling = {"method": "sequential"} | ({"precision": precision} if precision != "no" else {})
        work, _ = bench.dream(world, bench.dream_inputs(world, None, batch), world.sampling_with({}) | sampling)
        return work, bench.flops(work) / batch
    if what == "tokenizer":
        training, model, loss = config.tokenizer_training, Tokenizer(config.tokenizer), tokenizer_loss
        frames = torch.randint(256, (training.batch_size, 1, *config.tokenizer.frame_size, 3), dtype=torch.uint8)
        clip, units = bench.random_clip(Clip, frames), training.batch_size
    else:
        training, loss = config.dynamics_training, dynamics_loss
        model = Dynamics(config.dynamics, grid, codes, ActionSpace("discrete", (5,)))
        shape = (training.batch_size, training.clip_frames, *grid)
        clip, units = bench.random_clip(TokenClip, torch.randint(codes, shape)), shape[0] * shape[1]
    return bench.training_step(like, model.train(), loss, clip, training, units)  # type: ignore[arg-type]


def take_turns(given: argparse.Namespace) -> None:
    """Body of a process: a line of its input is a number of steps, a line of its output what they took."""
    import torch

    torch.set_num_threads(1)
    work, flops = make_work(given.what, given.config, given.batch, given.precision)
    squares = {size: torch.randn(2, size, size).bfloat16() for size in SIZES}
    for _ in range(3):
        work()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        units = sum(work() for _ in range(int(line)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        ceiling = 0.0
        for size, (a, b) in squares.items():
            begun = time.process_time()
            for _ in range(3):
                torch.mm(a, b)
            ceiling = max(ceiling, 3 * 2 * size**3 / (time.process_time() - begun))
        print(json.dumps({"units": units, "wall": wall, "cpu": cpu, "ceiling": ceiling, "flops": flops}), flush=True)


def start(given: argparse.Namespace, tree: Path) -> subprocess.Popen[str]:
    """Start the process of a checkout."""
    command = [sys.executable, "-P", __file__, str(tree), "--worker", "--what", given.what, "--config", given.config]
    command += ["--batch", str(given.batch), "--precision", given.precision]
    paths = os.pathsep.join(str(tree / part) for part in (".", "envs", "tools"))
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def main() -> None:
    """Print a line for each checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="+", help="checkouts, the first to compare with")
    parser.add_argument("--what", choices=["dynamics", "tokenizer", "dream"], default="dynamics")
    parser.add_argument("--config", default="doom", help="whose sizes")
    parser.add_argument("--batch", type=int, default=1, help="dreams at once")
    parser.add_argument("--precision", default="no", help="of dreams, in checkouts that know it")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        take_turns(given)
        return
    trees = [tree.resolve() for tree in given.trees]
    processes = [start(given, tree) for tree in trees]
    found: list[list[dict[str, float]]] = [[] for _ in trees]
    for process in processes:
        process.stdout.readline()  # type: ignore[union-attr]
    for _ in range(given.turns):
        for process, rows in zip(processes, found, strict=True):
            print(given.steps, file=process.stdin, flush=True)
            rows.append(json.loads(process.stdout.readline()))  # type: ignore[union-attr]
    for process, rows, tree in zip(processes, found, trees, strict=True):
        process.communicate()
        rates = [row["units"] / row["cpu"] for row in rows]
        share = statistics.median(
            row["flops"] * rate / max(row["ceiling"] for row in rows) for row, rate in zip(rows, rates, strict=True)
        )
        ratio, wall = (
            statistics.median(first[key] / row[key] for first, row in zip(found[0], rows, strict=True))
            for key in ("cpu", "wall")
        )
        print(
            f"{tree}: {statistics.median(rates):.1f} a CPU second ({min(rates):.1f} to {max(rates):.1f}), "
            f"{share:.1%} of bf16; {ratio:.2f} times the first (wall {wall:.2f})"
        )


if __name__ == "__main__":
    main()
