"""How a comparison is shown: a table, a page that holds everything, and a video of all worlds in step."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from worldvq.errors import plural
from worldvq.evaluation.plots import INK, axes_of, embed, number, plot_bytes, save_page, table, video
from worldvq.evaluation.report_files import Evaluation, to_json
from worldvq.files.atomic import write_atomic
from worldvq.files.differences import printable, short
from worldvq.media.pictures import compared_frames
from worldvq.media.videos import write_video
from worldvq.types import ActionSpace

COMPARISON = "compare.json"
_COLORS = ("#f08a24", "#3b8fd6", "#4caf6d", "#a766c4", "#d6546a", "#8a919e")
_TITLES = {"psnr": "PSNR of imagined frames, dB", "ssim": "SSIM of imagined frames"}


def write_comparison(out: Path, comparison: dict[str, Any], evaluations: Sequence[Evaluation]) -> None:
    """Write ``compare.mp4``, ``index.html`` and ``compare.json``.

    Args:
        out: Folder, made if it is missing.
        comparison: As :func:`worldvq.evaluation.comparison.compare_reports` returns it.
        evaluations: The reports; what they show.

    Raises:
        RunError: Something cannot be written.
    """
    first = evaluations[0]
    real, context = first.clips["shown/real"], comparison["protocol"]["context"]
    labels = [report["label"] for report in comparison["reports"]]
    dreams = {f"world {name}": side.clips["shown/seen"] for name, side in zip(labels, evaluations, strict=True)}
    space = ActionSpace.from_json(first.report["world"]["action_space"])
    frames = compared_frames(real, dreams, first.clips["shown/actions"], space, context)
    movie = write_video(out / "compare.mp4", frames, fps=5, expected=real.shape[1])
    plots = [embed(plot_bytes(figure), "image/png") for figure in _figures(comparison)]
    header, rows = measure_rows(comparison)
    episodes, horizon = plural(comparison["num_episodes"], "episode"), comparison["protocol"]["horizon"]
    save_page(
        out / "index.html",
        f"{comparison['env_id']}: {len(labels)} worlds compared",
        f"The same {plural(comparison['num_clips'], 'held-out clip')} of {episodes} · "
        f"{plural(context, 'frame')} of context, {horizon} imagined · worldvq {comparison['versions']['worldvq']}",
        _cards(comparison),
        "comparison.html",
        legend="<br>".join(map(html.escape, legend(comparison))),
        claim=_claim(comparison),
        measures=table(header, [("", [_marked(cell) for cell in row]) for row in rows]),
        video=video(movie),
        plots="".join(f'<figure><img src="{plot}" alt="Worlds over the horizon"></figure>' for plot in plots),
        config=_config_table(comparison, labels),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in notes(comparison)),
    )
    write_atomic(out / COMPARISON, to_json(comparison))


def legend(comparison: dict[str, Any]) -> list[str]:
    """Return a line for every report: its letter, where it lies, and its world's hash."""
    return [
        f"{report['label']}: {printable(report['folder'])} (world {report['world'][:12]})"
        for report in comparison["reports"]
    ]


def measure_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table: name, value by report, and the differences to the first.

    ``better`` or ``worse`` stands behind a difference whose 95 % interval excludes 0.
    """
    first, *others = [report["label"] for report in comparison["reports"]]
    header = ["", first]
    for label in others:
        header += [label, f"{label} − {first} (95 % interval)"]
    rows = []
    for measure in comparison["measures"]:
        digits, values = measure["digits"], measure["values"]
        row = [measure["name"] + (" ↑" if measure["higher_is_better"] else " ↓"), number(values[0], digits)]
        differences = measure["differences"] or [None] * len(others)
        for value, found in zip(values[1:], differences, strict=True):
            row += [number(value, digits), _difference(found, digits, measure["higher_is_better"])]
        rows.append(row)
    return header, rows


def _difference(found: dict[str, Any] | None, digits: int, higher: bool) -> str:
    if found is None or found["mean"] is None:
        return "–"
    text = f"{found['mean']:+.{digits}f}"
    if found["ci95"] is None or None in found["ci95"]:
        return text
    low, high = found["ci95"]
    return f"{text} ({low:+.{digits}f} to {high:+.{digits}f}) {verdict(found, higher)}".rstrip()


def _marked(cell: str) -> str:
    return f"<b>{cell}</b>" if cell.endswith(("better", "worse")) else html.escape(cell)


def verdict(found: dict[str, Any], higher: bool) -> str:
    """Return ``better`` or ``worse`` where the interval of a difference excludes 0, else ""."""
    if not found["excludes_zero"]:
        return ""
    return "better" if (found["mean"] > 0) == higher else "worse"


def config_lines(comparison: dict[str, Any]) -> list[str]:
    """Return a line for every key that differs: ``dynamics.width: 128 → 256``."""
    return [
        f"{printable(key)}: {' → '.join('–' if value is None else short(value) for value in values)}"
        for key, values in comparison["config"].items()
    ]


def notes(comparison: dict[str, Any]) -> list[str]:
    """Return what one has to know to read the numbers."""
    still = comparison["copy_last"]
    return [
        "Differences are to the first report, with 95 % percentile bootstraps in which the same clips, or situations, "
        "are drawn for all reports. Better and worse stand where the interval excludes 0; about one interval in "
        "twenty does so by chance.",
        "No interval stands where too little is kept to draw from, or where some draws hold nothing to find.",
        "Intervals speak of these clips and these trained worlds: another seed of the same training is another world.",
        f"Copying the last frame scores {number(still['psnr'])} dB and an SSIM of {number(still['ssim'], 3)} on these "
        "clips, whatever the world.",
        *comparison["notes"],
    ]


def _cards(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    first, *others = [report["label"] for report in comparison["reports"]]
    shown = []
    for index, label in enumerate(others):
        psnr = comparison["measures"][0]["differences"][index]
        low, high = psnr["ci95"]
        told = f"PSNR of imagined frames, {label} against {first} (95 % interval {low:+.2f} to {high:+.2f})"
        shown.append((f"{psnr['mean']:+.2f} dB", told))
    return shown


def _claim(comparison: dict[str, Any]) -> str:
    """A sentence for every report but the first: how many numbers it is better and worse in."""
    first, *others = [report["label"] for report in comparison["reports"]]
    sentences = []
    for index, label in enumerate(others):
        found = [
            verdict(measure["differences"][index], measure["higher_is_better"])
            for measure in comparison["measures"]
            if measure["differences"] and measure["differences"][index]["ci95"] is not None
        ]
        sentences.append(
            f"{label} is better than {first} in {found.count('better')} of {plural(len(found), 'number')} with an "
            f"interval, worse in {found.count('worse')}; of the rest these clips cannot tell."
        )
    return " ".join(sentences)


def _config_table(comparison: dict[str, Any], labels: Sequence[str]) -> str:
    if not comparison["config"]:
        return "<p>Nothing: the same weights, sampled the same way.</p>"
    rows = [
        ("", [html.escape(printable(key)), *("–" if value is None else html.escape(short(value)) for value in values)])
        for key, values in comparison["config"].items()
    ]
    return f'<div class="scroll">{table(["key", *labels], rows)}</div>'


def _figures(comparison: dict[str, Any]) -> list[Figure]:
    """PSNR and SSIM over the horizon, and how far the other worlds stand above the first."""
    labels = [report["label"] for report in comparison["reports"]]
    steps = np.arange(1, comparison["protocol"]["horizon"] + 1)
    figures = []
    for key, found in comparison["steps"].items():
        figure, axes = axes_of(_TITLES[key])
        for index, (label, values) in enumerate(zip(labels, found["values"], strict=True)):
            axes.plot(steps, values, "-o", color=_COLORS[index % len(_COLORS)], ms=4, lw=1.8, label=label)
        figures.append(_finish(figure, axes, steps))
        figure, axes = axes_of(f"{_TITLES[key]}: difference to {labels[0]}")
        axes.axhline(0, color=INK, lw=1)
        for index, (label, row) in enumerate(zip(labels[1:], found["differences"], strict=True), start=1):
            color, (low, high) = _COLORS[index % len(_COLORS)], np.array(row["ci95"], float).T
            axes.plot(steps, row["mean"], "-o", color=color, ms=4, lw=1.8, label=f"{label} − {labels[0]}")
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        figures.append(_finish(figure, axes, steps))
    return figures


def _finish(figure: Figure, axes: Any, steps: np.ndarray) -> Figure:
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    axes.set_xlabel("imagined frame", fontsize=9, color=INK)
    axes.set_xticks(steps if len(steps) <= 12 else steps[:: len(steps) // 10])
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure
