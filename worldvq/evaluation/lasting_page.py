"""How the report shows whether a dream lasts and keeps what is there: cards, tables, plots and a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from worldvq.errors import plural
from worldvq.evaluation.long_dreams import SHOWN
from worldvq.evaluation.plots import INK, axes_of, number, table
from worldvq.media.tiles import draw_label, enlarge, grid, scale_to

_SIDE = 128
_LARGE = "25 and more"
_MEASURES = {
    "ssim": ("SSIM to the nearest real frame", 3),
    "fd_efflite0": ("FD-EffLite0 to real frames", 0),
    "entropy": ("Entropy of tokens (bits)", 2),
    "nats": ("Surprise (nats per token)", 2),
    "motion": ("Change from frame to frame (of 255)", 1),
}
_REGIONS = {
    "imagined": "world model",
    "reconstruction": "tokenizer (ceiling)",
    "copy_last": "copy last frame",
    "shuffled_actions": "shuffled actions",
}


def dreams_picture(frames: np.ndarray) -> np.ndarray:
    """Draw a row a dream: the last context frame, and what it became.

    Args:
        frames: (D, 1 + n, H, W, 3) uint8, as :func:`worldvq.evaluation.long_dreams.long_dreams` returns them.
    """
    scale = scale_to(_SIDE, frames.shape[2:4])
    names = ["last real", *(f"+{step}" for step in SHOWN)]
    rows = [[enlarge(frame, scale) for frame in row] for row in frames]
    rows[0] = [draw_label(frame, name) for frame, name in zip(rows[0], names, strict=True)]
    return grid(rows, gap=3)


def cards(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the first numbers of a report: drift, and recall of objects that are not tiny."""
    shown = []
    if found := report.get("long"):
        first, last = found["steps"][0], found["steps"][-1]
        shown.append(
            (f"{found['drift']['mean']:.1%}", f"drift: SSIM to the nearest real frame, {first} to {last} frames")
        )
    if found := report.get("objects"):
        step = found["steps"].index(4)
        kept, dreamt = found["reconstruction"][_LARGE], found["dream"][step]["seen"]["dream"][_LARGE]
        told = (
            f"of objects of {_LARGE} pixels are kept in reconstructions, {number(dreamt['mean'])} in dreams at step 4"
        )
        shown.append((number(kept["mean"]), told))
    return shown


def figures(report: dict[str, Any]) -> dict[str, Figure]:
    """Name to figure: each measure of long dreams over their length, beside that of real frames."""
    drawn: dict[str, Figure] = {}
    if not (found := report.get("long")):
        return drawn
    for key in ("ssim", "fd_efflite0", "entropy", "nats"):
        if found["real"][key]:
            drawn[f"long_{key}"] = _curve(found, key)
    return drawn


def _curve(found: dict[str, Any], key: str) -> Figure:
    figure, axes = axes_of(_MEASURES[key][0])
    steps, values = found["steps"], [dream[key] for dream in found["dream"]]
    low, high = np.array([value["ci95"] for value in values], float).T
    color = "#f08a24"
    axes.plot(steps, [value["mean"] for value in values], "-o", color=color, ms=4, lw=1.8, label="dreams")
    axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    for name, line, shade, label in (
        ("reconstruction", "--", "#3b8fd6", "real frames, through the tokenizer"),
        ("real", ":", "#8a919e", "real frames"),
    ):
        if name == "reconstruction" and key in ("entropy", "nats"):
            continue  # of the same tokens
        axes.axhline(found[name][key]["mean"], color=shade, linestyle=line, lw=1.8, label=label)
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    axes.set_xlabel("imagined frame", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def section(report: dict[str, Any], plots: list[str], picture: str | None) -> str:
    """Return HTML of long dreams, objects and small changing regions; "" where none was measured.

    Args:
        report: With ``long``, ``objects`` or ``regions``.
        plots: Addresses of those of :func:`figures`.
        picture: Address of that of :func:`dreams_picture`.
    """
    parts = []
    if found := report.get("long"):
        parts += ["<h2>Does it last?</h2>", _long_text(found)]
        if picture:
            parts.append(f'<figure><img src="{picture}" alt="Dreams as rows, and what they become"></figure>')
        images = "".join(f'<figure><img src="{plot}" alt="A measure of long dreams"></figure>' for plot in plots)
        parts += [f'<div class="pair">{images}</div>', f'<div class="scroll">{_long_table(found)}</div>']
    if found := report.get("objects"):
        parts += ["<h2>Does it keep what is there?</h2>", _objects_text(found)]
        parts.append(f'<div class="scroll">{_objects_table(found)}</div>')
    if (found := report.get("regions")) and found["imagined"]["count"]:
        parts += ["<h2>Small things that move</h2>", _regions_text(found["imagined"]["count"], report["num_clips"])]
        rows = [("ours" if key == "imagined" else "", [name, _rate(found[key])]) for key, name in _REGIONS.items()]
        parts.append(table(["", "recall (95 % interval)"], rows))
    return "\n".join(parts)


def _long_text(found: dict[str, Any]) -> str:
    drift, (low, high), last = found["drift"]["mean"], found["drift"]["ci95"], found["steps"][-1]
    return (
        f"<p>{plural(found['dreams'], 'dream')} of {last} frames from held-out contexts, under the actions that were "
        f"recorded; where an episode ended, another held-out one went on ({found['borrowed_actions']:.0%} of all "
        f"actions). Each number is of the {found['window']} frames that end at a step. Nobody can know what is to be "
        f"seen there, so a frame is compared with the nearest of {found['pool_frames']} real frames of other episodes "
        f"(by FD-EffLite0 with {found['reference_frames']} of them), and what really followed the contexts likewise. "
        f"Drift, 1 − SSIM at {last} / SSIM at {found['steps'][0]}, is {drift:.1%} (95 % interval {low:.1%} to "
        f"{high:.1%}). SSIM forgives blur and favours plain pictures: a dream that ends before a blank wall gains, and "
        "its entropy falls. "
        "Intervals are over dreams; those of FD-EffLite0 leave out one at a time.</p>"
    )


def _interval(value: dict[str, Any] | None, digits: int) -> str:
    if value is None or value["mean"] is None:
        return "–"
    low, high = (number(side, digits) for side in value["ci95"])
    return f"{number(value['mean'], digits)} ({low}–{high})"


def _long_table(found: dict[str, Any]) -> str:
    header = ["", *(f"frame {step}" for step in found["steps"]), "real, tokenizer", "real"]
    columns = [*found["dream"], found["reconstruction"], found["real"]]
    rows = [
        ("ours" if key == "ssim" else "", [name, *(_interval(column[key], digits) for column in columns)])
        for key, (name, digits) in _MEASURES.items()
    ]
    return table(header, rows)


def _objects_text(found: dict[str, Any]) -> str:
    return (
        f"<p>{plural(found['situations'], 'held-out situation')} were played again, and the environment drew its "
        "frames with and without each object. An object is as large as the number of pixels that differ, and kept "
        "where over these pixels a frame is nearer to the one with it than to the one without. In dreams, what a frame "
        "of the context shows is told apart from what was never seen, which cannot be dreamt. Recall with 95 % "
        "intervals over situations, and of how many.</p>"
    )


def _rate(value: dict[str, Any]) -> str:
    return f"{_interval(value, 2)} of {value['count']}" if value["count"] else "–"


def _objects_table(found: dict[str, Any]) -> str:
    sizes = list(found["reconstruction"])
    rows = [("", ["reconstructions, all frames", *(_rate(found["reconstruction"][size]) for size in sizes)])]
    names = {"dream": "dreamt", "reconstruction": "through the tokenizer (ceiling)", "copy_last": "last context frame"}
    for step, scores in zip(found["steps"], found["dream"], strict=True):
        for key, name in names.items():
            cells = [_rate(scores["seen"][key][size]) for size in sizes]
            rows.append(("ours" if key == "dream" else "", [f"frame {step}, seen before: {name}", *cells]))
        cells = [_rate(scores["unseen"]["dream"][size]) for size in sizes]
        rows.append(("", [f"frame {step}, never seen: dreamt", *cells]))
    return table(["objects of so many pixels", *sizes], rows)


def _regions_text(count: int, clips: int) -> str:
    return (
        f"<p>{count} small regions of the recorded frames of {clips} clips differ from both the frame before and the "
        "one after; recalled are those where a frame is nearer to the real one than to the one before. Under a camera "
        "that moves nearly everything changes, and what is small may be an edge of anything: this speaks where the "
        "camera stands still. Zero is not the floor, so compare the rows.</p>"
    )
