"""What more training brings: ``python tools/ladder.py runs/demo runs/maze_hour --out runs/ladder.png``.

Each folder is one rung, as ``worldvq demo --out`` leaves it, whose report was made with the same settings:
``worldvq evaluate --counterfactual --memory --objects --long --world F/world --data DATA --out F/report``. Give all
rungs the same DATA, of another seed than any was trained on. Prints a table and draws a plot against training time.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from worldvq.evaluation.measures_compared import objects_kept

Report = dict[str, Any]


class Row(NamedTuple):
    """One number of a report: its name, whether higher is better, and how to get it (None where it is not there)."""

    name: str
    higher: bool
    value: Callable[[Report], float | None]


def minutes(folder: Path) -> float:
    """Return how long tokenizer and dynamics of a rung have trained, those seconds before a resume included."""
    rows = [(folder / part / "metrics.jsonl").read_text().splitlines()[-1] for part in ("tokenizer", "dynamics")]
    return sum(json.loads(row)["seconds"] for row in rows) / 60


def below_ceiling(report: Report, dream: str) -> dict[tuple[str, int], float]:
    """Return by pair of actions and k how far, dB, a dream is below the ceiling that came back.

    ``psnr`` went there by itself, ``shown`` was shown the way there.
    """
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for way in report.get("memory", {}).get("ways", []):
        if way["kind"] == "pair" and dream in way and way[dream]["mean"] is not None:
            pair = " and ".join(sorted(leg.rsplit(" × ", 1)[0] for leg in way["name"].split(", ")))
            found[pair, way["steps"]].append(way["ceiling"] - way[dream]["mean"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def rows_of(reports: list[Report]) -> list[Row]:
    """Return what is compared, those numbers that every report has."""
    rows = [
        Row("nats a token", False, lambda r: r["nats_per_token"]),
        Row("PSNR over copying the last frame, dB", True, lambda r: r["gains"]["psnr"]["over_copy_last"]["mean"]),
        Row("PSNR over shuffled actions, dB", True, lambda r: r["gains"]["psnr"]["over_shuffled_actions"]["mean"]),
        Row("tokenizer, PSNR, dB", True, lambda r: r["summary"]["psnr"]["reconstruction"]),
    ]
    for step in (1, 4, 8):
        rows.append(
            Row(
                f"retrieval, step {step}",
                True,
                lambda r, s=step: r["counterfactual"]["retrieval"]["mean"][s - 1] if "counterfactual" in r else None,
            )
        )
    for dream, title in (("psnr", "there and back"), ("shown", "back, the way there shown")):
        for pair, steps in sorted(set.intersection(*(set(below_ceiling(report, dream)) for report in reports))):
            if steps in (1, 2, 4, 8):
                name = f"{title}, {pair}, k = {steps}: dB under the ceiling"
                rows.append(Row(name, False, lambda r, d=dream, key=(pair, steps): below_ceiling(r, d)[key]))
    for step, where in ((0, "in reconstructions"), (4, "in dreams, step 4")):
        rows.append(Row(f"objects kept {where}", True, lambda r, s=step: objects_kept(r, s)))
    rows += [
        Row("drift over 300 frames", False, lambda r: r["long"]["drift"]["mean"] if "long" in r else None),
        Row("reward, average precision", True, lambda r: r["rewards"]["average_precision_positive"]),
    ]
    return [row for row in rows if all(row.value(report) is not None for report in reports)]


def table(folders: list[Path], reports: list[Report]) -> str:
    """Return the numbers as Markdown, and whether each is better on the last rung than on the first."""
    times = [f"{minutes(folder):.0f} min" for folder in folders]
    lines = [f"| | {' | '.join(times)} | last against first |", "|---" * (len(folders) + 2) + "|"]
    for row in rows_of(reports):
        values = [float(row.value(report)) for report in reports]  # type: ignore[arg-type] (None is left out)
        gain = (values[-1] - values[0]) * (1 if row.higher else -1)
        verdict = "better" if gain > 0 else "worse" if gain < 0 else "the same"
        lines.append(f"| {row.name} | {' | '.join(f'{value:.3f}' for value in values)} | {verdict} |")
    return "\n".join(lines)


def draw(folders: list[Path], reports: list[Report], out: Path) -> None:
    """Draw each number against minutes of training."""
    rows, times = rows_of(reports), [minutes(folder) for folder in folders]
    columns = 4
    figure = Figure(figsize=(3.2 * columns, 2.3 * -(-len(rows) // columns)), dpi=110, layout="constrained")
    for place, row in enumerate(rows):
        axes = figure.add_subplot(-(-len(rows) // columns), columns, place + 1)
        axes.plot(times, [row.value(report) for report in reports], "o-")  # type: ignore[arg-type]
        axes.set_xscale("log")
        axes.set_xticks(times, [f"{time:.0f}" for time in times])
        axes.minorticks_off()
        axes.set_title(row.name.replace(": ", ":\n") + (" ↑" if row.higher else " ↓"), fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
    figure.supxlabel("minutes of training", fontsize=8)
    figure.savefig(out)


def main() -> None:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rungs", nargs="+", type=Path, help="folders, from the shortest training to the longest")
    parser.add_argument("--out", type=Path, help="PNG")
    arguments = parser.parse_args()
    reports = [json.loads((folder / "report" / "report.json").read_text()) for folder in arguments.rungs]
    if len({report["data"] for report in reports}) > 1:
        parser.error(f"reports of different data: {', '.join(report['data'] for report in reports)}")
    print(table(arguments.rungs, reports))
    if arguments.out:
        draw(arguments.rungs, reports, arguments.out)
        print(arguments.out)


if __name__ == "__main__":
    main()
