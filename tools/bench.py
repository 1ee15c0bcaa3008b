"""Everything that costs time, beside what this machine could do at most: ``python tools/bench.py``.

One table and one JSON file. Each row is the median over repeats, with the fastest and the slowest. The ceilings are
measured in the same run: the fastest of a few matrix products in the precision of the row, and the copy of a large
tensor.
``of ceiling`` is, for what computes, the share of the matrix FLOP/s (model FLOPs as torch counts them: MFU); for what
reads, the share of the memory bandwidth; for recording, the share of the rate at which the bare environment steps.

Without ``--world`` the models have random weights. Their speed is that of trained ones, except for predictive sampling,
whose passes a frame depend on how well the model predicts: those rows need a trained world.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import worldvq
from worldvq.config.env import EnvConfig
from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.models.dynamics import Dynamics
from worldvq.models.losses import dynamics_loss, tokenizer_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import resolve_device, resolve_precision
from worldvq.nn.memory import keep_freed_memory
from worldvq.recording.config import RecordConfig
from worldvq.stages.experiment import ExperimentConfig, load_config
from worldvq.stages.record import record
from worldvq.training.optimizers import make_optimizer
from worldvq.types import ActionSpace, Clip, TokenClip
from worldvq.world.model import WorldModel

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAZE = EnvConfig(id="worldvq/Maze-v0", kwargs={"max_steps": 250})
CONTEXT = 6
COUNTED = 8
"""Steps of a dream over which its operations are counted: passes differ from frame to frame."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; ``share`` is of the ceiling named by ``ceiling``, None where there is none."""

    what: str
    unit: str
    median: float
    fastest: float
    slowest: float
    share: float | None
    ceiling: str
    note: str = ""


def rates(work: Callable[[], float], seconds: float, repeats: int) -> list[float]:
    """Units a second of ``work``, which returns how many units it did; one warm-up, then repeats of some seconds."""
    work()
    found = []
    for _ in range(repeats):
        begun, units = time.perf_counter(), 0.0
        while time.perf_counter() - begun < seconds:
            units += work()
        found.append(units / (time.perf_counter() - begun))
    return found


class Bench:
    """Measures row by row; every row is printed when it is there."""

    def __init__(self, device: torch.device, precision: str, seconds: float, repeats: int):
        self.device, self.precision, self.seconds, self.repeats = device, precision, seconds, repeats
        self.rows: list[Row] = []
        self.matmul = {name: self._matmul(PRECISIONS[name]) for name in dict.fromkeys(("no", precision))}
        self.bandwidth = self._bandwidth()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _matmul(self, dtype: torch.dtype) -> float:
        """FLOP/s of the fastest square product."""
        best = 0.0
        for size in (512, 1024, 2048) if self.device.type == "cpu" else (2048, 4096, 8192):
            a, b = torch.randn(2, size, size, device=self.device).to(dtype)

            def work(a: torch.Tensor = a, b: torch.Tensor = b, size: int = size) -> float:
                torch.mm(a, b)
                self.wait()
                return 2.0 * size**3

            best = max(best, *rates(work, self.seconds / 4, 3))
        return best

    def _bandwidth(self) -> float:
        """Bytes a second of a copy, read and written."""
        source = torch.empty(2**26 if self.device.type == "cpu" else 2**30, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)

        def work() -> float:
            target.copy_(source)
            self.wait()
            return 2.0 * source.numel()

        return max(rates(work, self.seconds / 4, 3))

    def row(self, what: str, unit: str, work: Callable[[], float], **ceiling: Any) -> None:
        """Measure; ``flops`` a unit and their ``precision``, or ``bytes`` a unit, make the share of a ceiling."""
        found = rates(work, self.seconds, self.repeats)
        median, share, name = statistics.median(found), None, ""
        if "flops" in ceiling:
            precision = ceiling.get("precision", "no")
            share, name = (
                median * ceiling["flops"] / self.matmul[precision],
                f"matmul {precision.replace('no', 'fp32')}",
            )
        elif "bytes" in ceiling:
            share, name = median * ceiling["bytes"] / self.bandwidth, "memory bandwidth"
        self.rows.append(Row(what, unit, median, max(found), min(found), share, name))
        print(f"{what}: {median:,.1f} {unit}", flush=True)


def flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of one call, as torch counts them: matrix products and convolutions.

    Attention is spelled out for the count, because the counter does not know that of a CPU.
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return float(counter.get_total_flops())


def bench_data(bench: Bench, folder: Path) -> EpisodeStore:
    """Recording the maze with one worker beside stepping it, and reading clips of what was recorded."""
    env = gymnasium.make(MAZE.id, disable_env_checker=True, **MAZE.kwargs)
    env.reset(seed=0)

    def step() -> float:
        for _ in range(100):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        return 100.0

    bare = statistics.median(rates(step, bench.seconds, bench.repeats))
    store = record(MAZE, RecordConfig(frames=6000, workers=1, policy="held"), folder / "data")
    done = sorted(((store.path / entry.file).stat().st_mtime, entry.num_frames) for entry in store.entries)
    gaps = np.diff([when for when, _ in done])  # from one finished episode to the next
    found = sorted(float(frames / gap) for gap, (_, frames) in zip(gaps, done[1:], strict=True))
    median = statistics.median(found)
    bench.rows.append(
        Row("record, one worker", "frames/s", median, found[-1], found[0], median / bare, "bare environment", MAZE.id)
    )
    sampler, steps = ClipSampler(store, "all", 16, 64, 0), iter(range(10**9))

    def read() -> float:
        return float(len(sampler.batch(next(steps)).mask))

    size = 16 * 3 * store.meta.frame_size[0] * store.meta.frame_size[1]
    bench.row("read clips of 16 frames", "clips/s", read, bytes=2 * size)
    return store


def training_step(
    bench: Bench, model: nn.Module, loss_function: Callable[..., Any], clip: Any, config: Any, units: int
) -> tuple[Callable[[], float], float]:
    """Return a training step as ``fit`` takes it, and its model FLOPs a unit."""
    keep_freed_memory()
    optimizer = make_optimizer(model, config.optimizer)
    clip, dtype = clip.to(bench.device), PRECISIONS[bench.precision]

    def passes() -> None:
        with torch.autocast(bench.device.type, dtype, enabled=bench.precision != "no"):
            loss, _ = loss_function(model, clip)
        loss.backward()

    def work() -> float:
        passes()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        bench.wait()
        return float(units)

    return work, flops(passes) / units


def random_clip(kind: type, items: torch.Tensor) -> Any:
    """A clip of given items (B, T, ...), discrete actions and nothing masked."""
    shape = items.shape[:2]
    yes = torch.ones(shape, dtype=torch.bool)
    return kind(items, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), ~yes, yes, yes)


def bench_training(bench: Bench, config: ExperimentConfig) -> None:
    """Training steps of tokenizer and dynamics at the config's sizes, encoding and decoding."""
    tokenizer = Tokenizer(config.tokenizer).to(bench.device)
    batch = config.tokenizer_training.batch_size
    frames = torch.randint(256, (batch, 1, *config.tokenizer.frame_size, 3), dtype=torch.uint8)
    clip = random_clip(Clip, frames)
    step, cost = training_step(bench, tokenizer.train(), tokenizer_loss, clip, config.tokenizer_training, batch)
    bench.row(f"train tokenizer, batch {batch}", "images/s", step, flops=cost, precision=bench.precision)
    tokenizer.eval()
    grid, pixels = tokenizer.grid, torch.rand(64, 3, *config.tokenizer.frame_size, device=bench.device)
    tokens = torch.randint(tokenizer.num_codes, (64, *grid), device=bench.device)
    for name, function, given in (("encode", tokenizer.encode, pixels), ("decode", tokenizer.decode, tokens)):

        def work(function: Callable[..., Any] = function, given: torch.Tensor = given) -> float:
            with torch.no_grad():
                function(given)
            bench.wait()
            return 64.0

        bench.row(f"{name}, batch 64", "images/s", work, flops=flops(work) / 64)
    training, space = config.dynamics_training, ActionSpace("discrete", nvec=(5,))
    dynamics = Dynamics(config.dynamics, grid, tokenizer.num_codes, space).to(bench.device).train()
    shape = (training.batch_size, training.clip_frames, *grid)
    clip = random_clip(TokenClip, torch.randint(tokenizer.num_codes, shape))
    step, cost = training_step(bench, dynamics, dynamics_loss, clip, training, shape[0] * shape[1])
    bench.row(
        f"train dynamics, {shape[0]} clips of {shape[1]}", "frames/s", step, flops=cost, precision=bench.precision
    )


def dream_inputs(world: WorldModel, data: Path | None, batch: int) -> Clip:
    """Held-out clips of a dataset, over and over if there are too few; without one, noise."""
    length = CONTEXT + 64
    if data is None:
        return random_clip(Clip, torch.randint(256, (batch, length, *world.frame_size, 3), dtype=torch.uint8))
    with EpisodeStore.open(data) as store:
        ids = heldout_clips(store, batch, length)
        return read_clips(store, ids[np.arange(batch) % len(ids)], length)


def dream(world: WorldModel, clip: Clip, sampling: dict[str, Any]) -> tuple[Callable[[], float], list[float]]:
    """Return a step of a dream, with its picture, and a list that gets the passes that each step took."""
    dream = world.start(clip.frames[:, :CONTEXT], clip.actions[:, : CONTEXT - 1], **sampling)
    actions = itertools.cycle(clip.actions[:, CONTEXT - 1 :].unbind(1))
    passes: list[float] = []

    def work() -> float:
        dream.step(next(actions))
        passes.append(dream.passes.float().mean().item())
        return float(len(dream.passes))

    return work, passes


def steps(work: Callable[[], float], count: int) -> None:
    """Work several times."""
    for _ in range(count):
        work()


def bench_imagination(bench: Bench, world: WorldModel, data: Path | None, batches: list[int], compiled: bool) -> None:
    """Steps of a dream: what a user waits for. Frames of all rows count."""
    own = world.sampling_with({}) | {"compile": compiled}
    for batch in batches:
        clip = dream_inputs(world, data, batch)
        for method in ("sequential", "predictive") if data else ("sequential",):
            work, passes = dream(world, clip, own | {"method": method})
            ceiling = {} if compiled else {"flops": flops(partial(steps, work, COUNTED)) / (COUNTED * batch)}
            bench.row(f"imagine, batch {batch}, {method}", "frames/s", work, **ceiling)
            note = f"{statistics.mean(passes):.1f} passes a frame"
            bench.rows[-1] = dataclasses.replace(bench.rows[-1], note=note)


def random_world(config: ExperimentConfig) -> WorldModel:
    """A world of a config's sizes, with random weights and five actions."""
    tokenizer = Tokenizer(config.tokenizer)
    space = ActionSpace("discrete", nvec=(5,))
    dynamics = Dynamics(config.dynamics, tokenizer.grid, tokenizer.num_codes, space)
    return WorldModel(tokenizer, dynamics, {})


def show(bench: Bench, about: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("what", "median", "slowest to fastest", "unit", "of ceiling", "note", title=about["title"])
    for row in bench.rows:
        share = "" if row.share is None else f"{row.share:.1%} of {row.ceiling}"
        spread = f"{row.slowest:,.1f} to {row.fastest:,.1f}"
        table.add_row(row.what, f"{row.median:,.1f}", spread, row.unit, share, row.note)
    Console(width=150).print(table)
    for name, value in about["ceilings"].items():
        print(f"ceiling: {name} {value:,.1f}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="doom", help="sizes of what is trained")
    parser.add_argument("--world", type=Path, help="a trained world, for imagining")
    parser.add_argument("--data", type=Path, help="its dataset, whose held-out clips start the dreams")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], help="dreams at once")
    parser.add_argument("--seconds", type=float, default=2.0, help="a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the steps of a dream")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    arguments = parser.parse_args()
    if bool(arguments.world) != bool(arguments.data):
        parser.error("--world and --data go together: how fast a world dreams depends on what it is shown")
    torch.set_num_threads(arguments.threads)
    begun, config = time.perf_counter(), load_config(arguments.config, arguments.overrides)
    device = resolve_device(arguments.device)
    bench = Bench(device, resolve_precision("auto", device), arguments.seconds, arguments.repeats)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(bench_data(bench, Path(folder))):
        bench_training(bench, config)
        world = WorldModel.load(arguments.world, str(device)) if arguments.world else random_world(config)
        bench_imagination(bench, world, arguments.data, arguments.batch, arguments.compile)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    ceilings = {f"matmul {key.replace('no', 'fp32')}, GFLOP/s": rate / 1e9 for key, rate in bench.matmul.items()}
    ceilings["memory bandwidth, GB/s"] = bench.bandwidth / 1e9
    height, width = world.tokenizer.grid
    about = {
        "title": f"{name}; {arguments.config}; {height}x{width} tokens; world {arguments.world or 'random'}",
        "ceilings": ceilings,
        "versions": {"worldvq": worldvq.__version__, "torch": torch.__version__},
        "seconds": round(time.perf_counter() - begun, 1),
    }
    show(bench, about)
    arguments.out.write_text(json.dumps(about | {"rows": [dataclasses.asdict(row) for row in bench.rows]}, indent=1))
    print(f"{about['seconds']:.0f} s; written to {arguments.out}")


if __name__ == "__main__":
    main()
