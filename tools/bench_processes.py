"""Training on two single-threaded CPU processes beside one: ``python tools/bench_processes.py``.

The same run (a config's model, batch size, precision and optimizer; random frames or tokens) goes through
:func:`worldvq.training.fit.fit` on one process and on several, in turns, so that whatever else the machine does meets
both. Rates are those that ``metrics.jsonl`` logs, without the first window; the ratio is that of the medians over
rounds, and next to it stand the ratios of the rounds. ``by CPU time`` is the ratio of the CPU seconds that a process
takes for a step (of several processes, the one that takes most): what the ratio would be if no process ever waited, for
another one or for the rest of the machine. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WINDOWS = 4


class Random:
    """Batches of random frames or tokens, drawn once: their content costs nothing and changes nothing."""

    def __init__(self, kind: str, config: Any):
        import torch

        from worldvq.types import Clip, TokenClip

        training = config.tokenizer_training if kind == "tokenizer" else config.dynamics_training
        shape = (training.batch_size, training.clip_frames)
        yes = torch.ones(shape, dtype=torch.bool)
        rest = (torch.zeros(shape, dtype=torch.int64), yes.float(), ~yes, yes, yes)
        if kind == "tokenizer":
            frames = torch.randint(256, (*shape, *config.tokenizer.frame_size, 3), dtype=torch.uint8)
            self.whole: Any = Clip(frames, *rest)
        else:
            tokens = torch.randint(config.tokenizer.quantizer.num_codes, (*shape, *config.tokenizer.grid))
            self.whole = TokenClip(tokens, *rest)
        self.began: list[float] = []  # CPU seconds of this process when a step began

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        self.began.append(time.process_time())
        share = len(self.whole.actions) // world
        mine = slice(rank * share, (rank + 1) * share)
        items = self.whole.frames if hasattr(self.whole, "frames") else self.whole.tokens
        rest = (self.whole.actions, self.whole.rewards, self.whole.terminated, self.whole.mask, self.whole.action_mask)
        return type(self.whole)(items[mine], *(tensor[mine] for tensor in rest))

    def ids(self, step: int) -> np.ndarray:
        return np.zeros((len(self.whole.actions), 2), np.int64)


def train(kind: str, name: str, steps: int, out: Path) -> None:
    """One run, on however many processes the environment says."""
    import torch

    from worldvq.models.dynamics import Dynamics
    from worldvq.models.losses import dynamics_loss, tokenizer_loss
    from worldvq.models.tokenizer import Tokenizer
    from worldvq.stages.experiment import load_config
    from worldvq.training.fit import fit
    from worldvq.types import ActionSpace

    torch.set_num_threads(1)
    config = load_config(name)
    torch.manual_seed(0)
    training = config.tokenizer_training if kind == "tokenizer" else config.dynamics_training
    training = training.model_copy(update={"steps": steps, "log_every": steps // WINDOWS, "save_every": steps})
    if kind == "tokenizer":
        model, loss = Tokenizer(config.tokenizer), tokenizer_loss
    else:
        codes = config.tokenizer.quantizer.num_codes
        model = Dynamics(config.dynamics, config.tokenizer.grid, codes, ActionSpace("discrete", (5,)))
        loss = dynamics_loss
    batches = Random(kind, config)
    fit(model, loss, batches, training, out, summary=f"{kind} of {name}")
    taken = statistics.median(np.diff(batches.began)[steps // WINDOWS :].tolist())
    (out / f"cpu.{os.environ.get('RANK', '0')}").write_text(str(taken))


def rate(kind: str, config: str, steps: int, count: int) -> tuple[float, float]:
    """Clips a second of a run on so many processes of one thread each, and the CPU seconds that a step takes most."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if count > 1:
        common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", folder, "--kind", kind]
        command += ["--config", config, "--steps", str(steps)]
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **common, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})},
                stdout=subprocess.DEVNULL,
            )
            for rank in range(count)
        ]
        if any([process.wait() for process in processes]):
            raise SystemExit("a process failed: its error stands above")
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        seconds = max(float(path.read_text()) for path in Path(folder).glob("cpu.*"))
    return statistics.median(row["clips_per_second"] for row in rows[1:]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="maze", help="whose models and batches: a YAML file or a shipped name")
    parser.add_argument("--kind", choices=["tokenizer", "dynamics", "both"], default="both")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help=f"updates a run, in {WINDOWS} windows of which 3 count")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        train(given.kind, given.config, given.steps, given.worker)
        return
    report: dict[str, Any] = {"config": given.config, "processes": given.processes, "rounds": given.rounds}
    for kind in ("tokenizer", "dynamics") if given.kind == "both" else (given.kind,):
        one, several, by_cpu = [], [], []
        for _ in range(given.rounds):
            alone, seconds = rate(kind, given.config, given.steps, 1)
            together, shared = rate(kind, given.config, given.steps, given.processes)
            one.append(alone)
            several.append(together)
            by_cpu.append(seconds / shared)
        ratios = [b / a for a, b in zip(one, several, strict=True)]
        ratio = statistics.median(several) / statistics.median(one)
        report[kind] = {"one": one, "several": several, "ratio": ratio, "ratios": ratios, "by_cpu": by_cpu}
        print(
            f"{kind:10} {statistics.median(one):8.2f} clips/s on one, {statistics.median(several):8.2f} on "
            f"{given.processes}: {ratio:.2f} times (rounds: {', '.join(f'{r:.2f}' for r in ratios)}), "
            f"by CPU time {statistics.median(by_cpu):.2f}",
            flush=True,
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
