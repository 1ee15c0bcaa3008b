"""How the report shows whether a dream obeys, remembers and decides well: cards, tables, the picture of branches."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldvq.errors import plural
from worldvq.evaluation.decisions import verdict
from worldvq.evaluation.plots import table
from worldvq.media.tiles import FAINT, enlarge, fill, grid, scale_to, text

_SIDE, _MARGIN = 96, 150
_STEPS = (1, 2, 4, 8)


def branches_picture(plans: Sequence[str], real: np.ndarray, dream: np.ndarray) -> np.ndarray:
    """Draw a row a plan, real frames over imagined ones, at a few steps.

    Args:
        plans: Their P names.
        real: (P, H, height, width, 3) uint8, branches of one situation.
        dream: Likewise, imagined.
    """
    steps = [step for step in _STEPS if step <= real.shape[1]]
    scale = scale_to(_SIDE, real.shape[2:4])
    height, width = real.shape[2] * scale, real.shape[3] * scale
    rows = [[fill(20, _MARGIN), *(text(f"+{step}", width, 20) for step in steps)]]
    for name, true, imagined in zip(plans, real, dream, strict=True):
        for who, frames, color in ((name, true, None), ("imagined", imagined, FAINT)):
            words = text(who, _MARGIN, 24, color, "right") if color else text(who, _MARGIN, 24, align="right")
            label = np.concatenate([fill(max(height // 2 - 12, 0), _MARGIN), words])
            rows.append([label, *(enlarge(frames[step - 1], scale) for step in steps)])
    return grid(rows, gap=3)


def cards(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the first numbers of a report: retrieval, and how far below the ceiling a dream comes back."""
    shown = []
    if found := report.get("counterfactual"):
        retrieval, step = found["retrieval"], min(4, found["horizon"])
        value, chance = retrieval["mean"][step - 1], retrieval["chance"][step - 1]
        shown.append((f"{value:.2f}", f"of imagined branches are told apart at step {step}; by chance {chance:.2f}"))
    ways = [way for way in report.get("memory", {}).get("ways", []) if way["kind"] == "pair" and way["steps"] == 2]
    if ways:
        below = float(np.mean([way["ceiling"] - way["psnr"]["mean"] for way in ways]))
        shown.append((f"{below:.1f} dB", "below the ceiling after two steps there and two back"))
    if decided := report.get("decisions"):
        value, random = (decided["regret"][key]["mean"] for key in ("dream", "random"))
        shown.append(
            (f"{value:.2f}", f"regret of the dream's pick of five plans; that of a random pick is {random:.2f}")
        )
    if told := report.get("inverse"):
        means = [told[kind]["macro_f1"]["mean"] for kind in ("imagined", "reconstruction")]
        text = f"macro-F1 of actions told from imagined frames; from real ones through the tokenizer {means[1]:.2f}"
        shown.append((f"{means[0]:.2f}", f"{text}, by chance {told['chance']['random']:.2f}"))
    return shown


def section(report: dict[str, Any], picture: str | None) -> str:
    """Return HTML of the tests, or "" where none was made.

    Args:
        report: With ``counterfactual``, ``memory``, ``inverse`` or ``decisions``, as
            :func:`worldvq.stages.interventions.intervene` returns them.
        picture: Address of that of :func:`branches_picture`.
    """
    parts = []
    if found := report.get("counterfactual"):
        parts += ["<h2>Does it obey?</h2>", _obey_text(found), _obey_table(found)]
        if picture:
            parts.append(f'<figure><img src="{picture}" alt="Branches of one situation, real over imagined"></figure>')
    if memory := report.get("memory"):
        parts += ["<h2>Does it remember?</h2>", _memory_text(memory), _memory_table(memory)]
    if told := report.get("inverse"):
        parts += ["<h2>Can one tell what was done?</h2>", _told_text(told), _told_by_step(told), _told_by_action(told)]
    if decided := report.get("decisions"):
        parts += ["<h2>Does it decide well?</h2>", _decided_text(decided), _decided_table(decided)]
        parts += [f"<p>{html.escape(line)}.</p>" for line in verdicts(report)]
    return "\n".join(parts)


def _obey_text(found: dict[str, Any]) -> str:
    plans = ", ".join(html.escape(name) for name in found["plans"])
    left = f" {found['left_out']} more were left out, as a branch ended early." if found["left_out"] else ""
    return (
        f"<p>{plural(found['situations'], 'held-out situation')} were forked: in each, every one of "
        f"{len(found['plans'])} actions ({plans}) was held, for real and in the dream.{left} Retrieval is how often an "
        "imagined branch lies nearest to its own real one. The PSNR over copying the last frame, further down, cannot "
        "see this: much of a turning frame was never shown, and nobody can know it.</p>"
    )


def _obey_table(found: dict[str, Any]) -> str:
    header = ["step", *map(str, range(1, found["horizon"] + 1))]
    retrieval = found["retrieval"]
    rows = [
        ("retrieval", retrieval["mean"], "{:.2f}", True),
        ("95 % interval", retrieval["ci95"], "{0[0]:.2f}–{0[1]:.2f}", False),
        ("chance", retrieval["chance"], "{:.2f}", False),
        ("ceiling: the tokenizer", retrieval["ceiling"], "{:.2f}", False),
        ("PSNR over that under other actions, dB", found["delta_psnr"]["mean"], "{:+.2f}", False),
        ("correlation of differences", found["correlation"]["mean"], "{:.2f}", False),
    ]
    rows += [
        (f"retrieval of {html.escape(name)}", values, "{:.2f}", False)
        for name, values in zip(found["plans"], retrieval["by_plan"], strict=True)
    ]
    return _table(header, rows)


def _memory_text(memory: dict[str, Any]) -> str:
    if not memory["ways"]:
        return "<p>No action was found that another one undoes, and none that closes a circle: nothing to measure.</p>"
    return (
        "<p>There and back: the last frame is one that the context has shown, so a dream that remembers reaches the "
        "tokenizer's ceiling. Only situations count in which the environment itself comes back to the same frame. "
        "<i>Not returned</i> is what the real frame at the turning point would score. A dream that does not move comes "
        "back too: <i>at the turn</i>, the frame that it imagined there against the real one, has to be above that. "
        "And a dream that goes elsewhere than the environment, where it slides along a wall for example, is right not "
        "to come back: <i>way shown</i> is the dream that was shown the way there, and imagined the way back alone. "
        "PSNR in dB, with 95 % intervals. <i>Came back</i> is the share of these dreams that end within 3 dB of the "
        "tokenizer; the few that do not make most of a mean of squared errors.</p>"
    )


def _memory_table(memory: dict[str, Any]) -> str:
    header = ["way", "under the ceiling", "dream", "came back", "way shown", "came back"]
    header += ["ceiling", "not returned", "at the turn", "counts"]
    rows = [
        (
            "",
            [
                html.escape(way["name"]).replace(" × ", "\u00a0×\u00a0"),  # a line ends after a comma
                f"<b>{way['ceiling'] - way['psnr']['mean']:.1f}</b>",
                _with_interval(way["psnr"]),
                f"{way['returned']['mean']:.2f}",
                _with_interval(way["shown"]),
                f"{way['returned_shown']['mean']:.2f}",
                *(f"{way[name]:.1f}" for name in ("ceiling", "not_returned", "turning_point")),
                str(way["situations"]),
            ],
        )
        for way in memory["ways"]
    ]
    return f'<div class="scroll broken">{table(header, rows)}</div>' if rows else ""


def _with_interval(found: dict[str, Any]) -> str:
    return f"{found['mean']:.1f} ({found['ci95'][0]:.1f}–{found['ci95'][1]:.1f})"


_TOLD = (
    ("imagined", "imagined frames"),
    ("reconstruction", "real frames through the tokenizer"),
    ("real", "real frames"),
)


def _told_text(told: dict[str, Any]) -> str:
    training, chance = told["training"], told["chance"]
    left = f" {plural(told['left_out'], 'more pair')} of real frames did not differ and were left out of all rows."
    cuts = f" Numbers were cut into three classes: {html.escape('; '.join(told['cuts']))}." if told["cuts"] else ""
    reached = "–" if training["macro_f1"] is None else f"{training['macro_f1']:.2f}"
    return (
        f"<p>A small network learned from {plural(training['pairs'], 'pair')} of real frames which action led from one "
        f"to the other (macro-F1 {reached} on training episodes kept apart). Then it was shown "
        f"{plural(told['pairs'], 'pair')} of {plural(told['clips'], 'held-out clip')}, and the same steps imagined."
        f"{left if told['left_out'] else ''}{cuts} Macro-F1 is the mean over actions, with 95 % intervals; guessing "
        f"blindly reaches {chance['random']:.2f} at most, always one action {chance['constant']:.2f}. Far below the "
        "tokenizer's row, a dream does not show what was done; above it, it draws an action's effect more plainly than "
        "reality does.</p>"
    )


def _told_by_step(told: dict[str, Any]) -> str:
    header = ["macro-F1, step", "all", *map(str, range(1, len(told["real"]["by_step"]["mean"]) + 1))]
    rows = []
    for kind, name in _TOLD:
        total, steps = told[kind]["macro_f1"], told[kind]["by_step"]
        intervals = [None if None in ends else ends for ends in (total["ci95"], *steps["ci95"])]
        rows.append((name, [total["mean"], *steps["mean"]], "{:.2f}", kind == "imagined"))
        rows.append(("95 % interval", intervals, "{0[0]:.2f}–{0[1]:.2f}", False))
    return _table(header, rows)


def _told_by_action(told: dict[str, Any]) -> str:
    rows = [
        (
            html.escape(f"{action['factor']} {action['action']}".strip()),
            [told[kind]["by_action"][index] for kind, _ in _TOLD] + [action["pairs"]],
            "{:.4g}",
            False,
        )
        for index, action in enumerate(told["actions"])
    ]
    return _table(["F1 of", *(name for _, name in _TOLD), "pairs"], rows)


def verdicts(report: dict[str, Any]) -> list[str]:
    """Return what the decisions say, a sentence each; none where they were not tested."""
    if not (found := report.get("decisions")):
        return []
    return [
        verdict("the dream's pick of five plans", "a random pick", found["gain"]["dream"]),
        verdict("planning in the dream", "a random plan", found["planner"]["gain"]),
        verdict("planning with the real environment as model", "planning in the dream", found["planner"]["gap"]),
    ]


def _decided_text(found: dict[str, Any]) -> str:
    return (
        f"<p>In each of {plural(found['situations'], 'held-out situation')} {found['plans']} random plans of "
        f"{found['horizon']} steps were played for real; in {found['differ']} of these situations they do not all pay "
        "the same, and only there anything is decided. The dream picks the plan of which it predicts the highest "
        f"return. Then a planner (cross-entropy method, {found['candidates']} plans) searches with the dream as its "
        "model, and the same planner with the real environment, which knows what will happen: what the second finds "
        "more is the counterfactual planning gap. Means over situations, with 95 % intervals.</p>"
    )


def _decided_table(found: dict[str, Any]) -> str:
    names = {
        "best": "best of the five",
        "dream": "the dream's pick, drawn with the prior",
        "forecast": "the dream's pick, drawn with the forecast head",
        "random": "a random pick",
    }

    def cell(value: dict[str, Any] | None) -> str:
        return "–" if value is None else f"{value['mean']:.2f} ({value['ci95'][0]:.2f}–{value['ci95'][1]:.2f})"

    rows = [
        ("ours" if key == "dream" else "", [name, cell(found["returns"][key]), cell(found["regret"].get(key))])
        for key, name in names.items()
    ]
    planned, gap = found["planner"], found["planner"]["gap"]
    rows.append(("", ["planner, the real environment as its model", cell(planned["simulator"]), "–"]))
    rows.append(("ours", ["planner, the dream as its model", cell(planned["dream"]), f"{cell(gap)}, the gap"]))
    return f'<div class="scroll">{table(["", "real return", "regret"], rows)}</div>'


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[Any], str, bool]]) -> str:
    """A table of a number a step; each row is its name, values, format, and whether it is the first one to look at."""
    cells = [
        ("ours" if ours else "", [name, *("–" if value is None else form.format(value) for value in values)])
        for name, values, form, ours in rows
    ]
    return f'<div class="scroll">{table(header, cells)}</div>'
