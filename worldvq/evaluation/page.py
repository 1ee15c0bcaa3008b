"""The pictures and the page of an evaluation: one HTML file that holds everything and loads nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from worldvq.errors import plural
from worldvq.evaluation import interventions_page, lasting_page
from worldvq.evaluation.plots import INK, axes_of, embed, number, save_page, save_plot, table, video
from worldvq.media.pictures import rollout_frames, save_png, strip
from worldvq.media.videos import write_video
from worldvq.types import ActionSpace

NAMES = {
    "imagined": ("World model", "Frames imagined from the context and the recorded actions."),
    "reconstruction": (
        "Tokenizer (ceiling)",
        "The real frame through the tokenizer: nothing made of its tokens can do much better.",
    ),
    "copy_last": ("Copy last frame", "The last context frame held still: what a model has to beat."),
    "shuffled_actions": (
        "Shuffled actions",
        "Imagined with another clip's actions: the gap to the world model is what actions control.",
    ),
}
_STYLES = {
    "imagined": ("#f08a24", "-", "o"),
    "reconstruction": ("#3b8fd6", "--", None),
    "copy_last": ("#8a919e", "-", "s"),
    "shuffled_actions": ("#a766c4", "-", "^"),
}


@dataclass(frozen=True)
class Rollouts:
    """Clips to show, that in which most changes first.

    Shapes are as :func:`worldvq.media.pictures.rollout_frames` takes them.
    """

    real: np.ndarray
    reconstruction: np.ndarray
    imagined: np.ndarray
    actions: np.ndarray
    action_space: ActionSpace
    context: int


def write_page(out: Path, report: dict[str, Any], rollouts: Rollouts) -> Path:
    """Write ``rollout.mp4``, ``strip.png``, the plots, and ``index.html`` that embeds them all.

    Args:
        out: Folder, made if it is missing.
        report: As :func:`worldvq.evaluation.protocol.evaluate` returns it.
        rollouts: What the video shows.

    Returns:
        The path of the page.

    Raises:
        RunError: Something cannot be written.
    """
    clips = (rollouts.real, rollouts.reconstruction, rollouts.imagined, rollouts.actions)
    frames = rollout_frames(*clips, rollouts.action_space, rollouts.context)
    movie = write_video(out / "rollout.mp4", frames, fps=5, expected=rollouts.real.shape[1])
    real, rebuilt, imagined, actions = (array[0] for array in clips)  # in which most changes
    drawn = strip(real, rebuilt, imagined, actions, rollouts.action_space, rollouts.context)
    picture = save_png(out / "strip.png", drawn)
    plots = [save_plot(out / f"{name}.png", figure) for name, figure in _figures(report).items()]
    long = [save_plot(out / f"{name}.png", figure) for name, figure in lasting_page.figures(report).items()]
    context, horizon = report["context"], report["horizon"]
    sections = (
        interventions_page.section(report, _picture(out / "branches.png")),
        lasting_page.section(report, [_embed(plot, "image/png") for plot in long], _picture(out / "long_dreams.png")),
    )
    return save_page(
        out / "index.html",
        f"{report['env_id']}: imagined futures",
        f"{plural(report['num_clips'], 'held-out clip')} of {plural(report['num_episodes'], 'episode')} · "
        f"{plural(context, 'frame')} of context, {horizon} imagined · "
        f"worldvq {html.escape(report['versions']['worldvq'])}",
        _cards(report),
        "report.html",
        interventions="\n".join(sections),
        video=video(movie),
        num_shown=len(rollouts.real),
        strip=_embed(picture, "image/png"),
        claim=_claim(report),
        plots="".join(
            f'<figure><img src="{_embed(plot, "image/png")}" alt="{plot.stem} plot"></figure>' for plot in plots
        ),
        summary_table=_summary_table(report),
        scores_table=_scores_table(report),
        horizon_table=_horizon_table(report),
        notes=_notes(report),
    )


def _picture(path: Path) -> str | None:
    return _embed(path, "image/png") if path.is_file() else None


def _embed(path: Path, kind: str) -> str:
    return embed(path.read_bytes(), kind)


def _figures(report: dict[str, Any]) -> dict[str, Figure]:
    """Name to figure: PSNR, SSIM and FD over the horizon, and nats by position."""
    steps = list(range(1, report["horizon"] + 1))
    figures = {
        "psnr": _curves(report["psnr"], steps, "PSNR (dB), higher is better"),
        "ssim": _curves(report["ssim"], steps, "SSIM, higher is better"),
    }
    if report["fd_efflite0"]:
        figures["fd"] = _curves(
            report["fd_efflite0"], report["fd_efflite0"]["horizons"], "FD-EffLite0, lower is better"
        )
    figure, axes = axes_of("Where in the frame the surprise is (nats per token)")
    image = axes.imshow(np.array(report["nats_by_position"], float), cmap="magma", vmin=0)
    figure.set_size_inches(4.2, 3.5)
    axes.set_xticks([])
    axes.set_yticks([])
    bar = figure.colorbar(image, ax=axes, fraction=0.045)
    bar.ax.tick_params(colors=INK, labelsize=8)
    figures["nats"] = figure
    return figures


def _curves(scores: dict[str, Any], steps: Sequence[int], title: str) -> Figure:
    """One curve a yardstick over the horizon, with its 95 % interval shaded where there is one."""
    figure, axes = axes_of(title)
    for name, (color, line, marker) in _STYLES.items():
        curve = scores[name]
        axes.plot(steps, curve["mean"], line, color=color, marker=marker, ms=4, lw=1.8, label=NAMES[name][0])
        if "ci95" in curve:
            low, high = np.array(curve["ci95"], float).T
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    axes.set_xlabel("imagined frame", fontsize=9, color=INK)
    axes.set_xticks(steps if len(steps) <= 12 else steps[:: len(steps) // 10])
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def _gain_text(gain: dict[str, Any]) -> str:
    low, high = gain["ci95"]
    return f"{gain['mean']:+.2f} dB (95 % interval {low:+.2f} to {high:+.2f})"


def _claim(report: dict[str, Any]) -> str:
    """One sentence on what the differences say."""
    gains = report["gains"]["psnr"]
    return (
        f"On the mean of the {report['horizon']} imagined frames, the world model stands "
        f"{_gain_text(gains['over_copy_last'])} against copying the last frame, and "
        f"{_gain_text(gains['over_shuffled_actions'])} against itself with another clip's actions."
    )


def _cards(report: dict[str, Any]) -> list[tuple[str, str]]:
    gains, summary = report["gains"]["psnr"], report["summary"]["psnr"]
    return [
        *interventions_page.cards(report),
        *lasting_page.cards(report),
        (f"{number(summary['imagined'])} dB", f"PSNR of imagined frames 1–{report['horizon']}"),
        (f"{gains['over_copy_last']['mean']:+.2f} dB", "over copying the last frame"),
        (f"{gains['over_shuffled_actions']['mean']:+.2f} dB", "over shuffled actions: control"),
        (f"{number(summary['reconstruction'])} dB", "ceiling: the tokenizer"),
        (number(report["nats_per_token"]), f"nats per token, {number(report['bits_per_frame'], 0)} bits per frame"),
    ]


def _summary_table(report: dict[str, Any]) -> str:
    summary, distances = report["summary"], report["summary"]["fd_efflite0"] or {}
    rows = [
        (
            "ours" if name == "imagined" else "",
            [
                title,
                number(summary["psnr"][name]),
                number(summary["ssim"][name], 3),
                number(distances.get(name)),
                f"~{meaning}",
            ],
        )
        for name, (title, meaning) in NAMES.items()
    ]
    return table(["mean over the horizon", "PSNR (dB)", "SSIM", "FD-EffLite0", ""], rows)


def _chance(rate: float, num_transitions: int) -> str:
    return f"~average precision; chance is {rate:.4f}, {rate * num_transitions:.0f} of {num_transitions} transitions"


def _scores_table(report: dict[str, Any]) -> str:
    rewards, ends = report["rewards"], report["termination"]
    bits = f"{number(report['bits_per_frame'], 0)} bits"
    share = f"{ends['rate']:.2%} of {ends['num_transitions']} transitions ended the task"
    codes = f"~{report['codes_used']} of {report['world']['num_codes']} codes used"
    blind = f"~mean absolute; always saying the mean: {number(rewards['mae_of_mean'], 4)}"
    cells = [
        ["Cross-entropy", f"{number(report['nats_per_token'], 3)} nats per token", f"~{bits} for a whole frame"],
        ["Codebook perplexity", number(report["perplexity"], 1), codes],
        ["Reward error", number(rewards["mae"], 4), blind],
        ["Reward correlation", number(rewards["correlation"], 3), "~– where the recorded reward never changes"],
        [
            "Finding rewards above 0",
            number(rewards["average_precision_positive"], 3),
            _chance(rewards["positive_rate"], rewards["num_transitions"]),
        ],
        [
            "Finding rewards below 0",
            number(rewards["average_precision_negative"], 3),
            _chance(rewards["negative_rate"], rewards["num_transitions"]),
        ],
        ["Finding endings", number(ends["average_precision"], 3), f"~average precision; {share}"],
    ]
    return table(["", "", ""], [("", row) for row in cells])


def _horizon_table(report: dict[str, Any]) -> str:
    header = ["PSNR (dB)", *(str(step) for step in range(1, report["horizon"] + 1))]
    rows = []
    for key, digits in (("psnr", 2), ("ssim", 3)):
        if rows:
            rows.append(("", ["<b>SSIM</b>", *[""] * report["horizon"]]))
        for name, (title, _) in NAMES.items():
            cells = [number(value, digits) for value in report[key][name]["mean"]]
            rows.append(("ours" if name == "imagined" else "", [title, *cells]))
    return table(header, rows)


def _notes(report: dict[str, Any]) -> str:
    notes = [
        "Intervals are 95 % percentile bootstraps over clips.",
        "PSNR is that of the mean squared error over all clips. The mean of the PSNR of single frames, "
        f"<code>psnr_per_frame</code> in report.json, has to cap the infinite one of identical frames (here at "
        f"{report['psnr_cap']:g} dB), and so flatters whatever stands still: "
        + ", ".join(
            f"{NAMES[name][0].lower()} {value:.2f}" for name, value in report["summary"]["psnr_per_frame"].items()
        )
        + ".",
        "Shuffled actions: after the context, each clip takes the actions of another one "
        f"(seed {report['seeds']['shuffle']}); the sampling noise is the same.",
        *(html.escape(note) for note in report["notes"]),
        f"Sampling: {html.escape(str(report['protocol']['sampling']))}; "
        f"versions: {html.escape(str(report['versions']))}; "
        f"{report['seconds']:.0f} s in all, {report['imagined_frames_per_second']:g} imagined frames a second, "
        f"{report['passes_per_frame']:g} passes through the prior a frame.",
    ]
    if report["fd_efflite0"]:
        fd = report["fd_efflite0"]
        notes.insert(
            3,
            "FD-EffLite0 is the Fréchet distance on the pooled features of EfficientNet-Lite0 (ImageNet), frames at "
            f"{fd['input_size']}×{fd['input_size']}, {fd['num_frames']} frames a set, imagined frames "
            f"{', '.join(map(str, fd['horizons']))}. It is not the FID; with so few frames, compare only within "
            "this report.",
        )
    return "".join(f"<p>{note}</p>" for note in notes)
