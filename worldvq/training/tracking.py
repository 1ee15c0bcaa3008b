"""What a training run reports: metrics.jsonl always, trackers when asked, and a progress bar."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from worldvq.errors import UsageError, did_you_mean
from worldvq.files.atomic import disk_errors, write_atomic
from worldvq.files.reading import is_utf8

TRACKERS = {
    "tensorboard": "pip install 'worldvq[track]'",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
}
PROJECT = "worldvq"


def check_trackers(names: Sequence[str], out: Path) -> None:
    """Refuse trackers that Accelerate could not start, or that cannot write to the run folder.

    Raises:
        UsageError: An unknown name, a package that is not installed, or a path that TensorBoard does not take.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"no tracker '{name}'{did_you_mean(name, TRACKERS)}: give one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"the tracker {name} is not installed: {TRACKERS[name]}")
        if name == "tensorboard" and not is_utf8(out):
            raise UsageError(f"{out}: TensorBoard takes paths in UTF-8 only: give another --out or tracker")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a line that a crash cut short is left out."""
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class Log:
    """metrics.jsonl, trackers, and a progress bar on a terminal or a line now and then elsewhere; for one process."""

    def __init__(self, path: Path, start: int, total: int, accelerator: Accelerator, config: dict[str, Any]):
        """Drop the lines of steps that a resumed run is about to repeat, and start the trackers.

        Args:
            path: metrics.jsonl; trackers that write files do so beside it.
            start: Steps that are done.
            total: Steps in all.
            accelerator: Made with ``log_with``.
            config: What trackers show as the settings of the run.
        """
        self.path, self.total = path, total
        kept = [row for row in read_metrics(path) if row["step"] <= start]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if path.is_file() and path.read_bytes() != text.encode():
            write_atomic(path, text.encode())
        self._begun = time.monotonic() - (kept[-1].get("seconds", 0) if kept else 0)
        self._start_trackers(accelerator, start, config)
        self.console = Console(stderr=True)
        self._last_line = time.monotonic()
        # The numbers take what the rest leaves: on a narrow terminal it is them that are cut.
        numbers = TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        columns = (BarColumn(bar_width=12), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn(), numbers)
        self.bar = Progress(*columns, console=self.console, expand=True)
        self.task = self.bar.add_task("train", total=total, completed=start, text="")
        if self.console.is_terminal:
            self.bar.start()

    def _start_trackers(self, accelerator: Accelerator, start: int, config: dict[str, Any]) -> None:
        # TensorBoard hides what the run before logged of the steps that are repeated now.
        options = {"tensorboard": {"purge_step": start + 1}, "wandb": {"dir": str(self.path.parent)}}
        accelerator.init_trackers(PROJECT, init_kwargs=options)
        self.trackers = accelerator.trackers
        for tracker in self.trackers:
            if tracker.name != "tensorboard":  # which would start a second run to show it
                tracker.store_init_configuration(config)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step)

    def write(self, row: dict[str, Any], seconds_left: float) -> None:
        """Log numbers of a step; adds ``seconds`` of training so far, those before a resume included.

        Raises:
            RunError: The disk is full.
        """
        row = {**row, "seconds": time.monotonic() - self._begun}
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {key: value for key, value in row.items() if key != "step"}
        for tracker in self.trackers:
            tracker.log(numbers, step=row["step"])
        heldout = f" held out {row['heldout_loss']:.3g}" if "heldout_loss" in row else ""
        rate = row["clips_per_second"]
        text = f"loss {row['loss']:.3g}{heldout} {rate:,.{int(rate < 10)}f} clips/s"  # all else is in the file
        self.bar.update(self.task, text=text)
        if not self.console.is_terminal and time.monotonic() - self._last_line > 20:
            self._last_line = time.monotonic()
            print(f"step {row['step']}/{self.total} {text} ETA {seconds_left:.0f} s", flush=True)

    def show(self, picture: np.ndarray, step: int) -> None:
        """Give a picture (H, W, 3) to the trackers that take some."""
        for tracker in self.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"picture": picture[None]}, step=step, **layout)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Stop the bar and finish the trackers."""
        if self.bar.live.is_started:
            self.bar.stop()
        for tracker in self.trackers:
            tracker.finish()
