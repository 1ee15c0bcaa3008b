"""Two or more evaluations on the same clips: what sets one world apart from another, and what of that is chance.

Every report is resampled with the same clips, so what is hard about a clip cancels: the interval of a difference is far
narrower than the intervals of its two sides suggest.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import worldvq
from worldvq.errors import UsageError, plural
from worldvq.evaluation import metrics
from worldvq.evaluation.comparison_page import write_comparison
from worldvq.evaluation.measures_compared import MEASURES, PLAIN, SCALES, curve, tests_compared
from worldvq.evaluation.report_files import Evaluation, finite, read_report
from worldvq.files.differences import difference, differences, join, require_same

PROTOCOL = ("context", "horizon", "seed")


def compare_reports(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Set reports side by side; writes ``compare.mp4``, ``index.html`` and ``compare.json``, the last one last.

    Args:
        paths: Folders that ``worldvq evaluate`` wrote, or their ``report.json``; all are compared with the first.
        out: Folder of the comparison; made if it is missing.

    Returns:
        ``reports`` (label, folder, world's hash); ``measures``: of each its ``name``, whether ``higher_is_better``, the
        ``values`` by report and, but for the first, ``differences`` to it (``mean``, ``ci95``, ``excludes_zero``);
        ``steps``: the same over the horizon; ``config``: what differs, by key; ``notes``.

    Raises:
        UsageError: There are fewer than two, one is of other clips, names how, or ``out`` is the folder of one.
        CorruptFileError: A file is damaged.
        RunError: Something cannot be written.
    """
    if not 2 <= len(paths) <= len(string.ascii_uppercase):
        raise UsageError(f"{plural(len(paths), 'report')} given: two are needed to compare, and 26 are the most")
    evaluations = [read_report(path) for path in paths]
    if out.resolve() in [evaluation.folder.resolve() for evaluation in evaluations]:
        raise UsageError(f"--out {out} is the folder of a report, whose page would be replaced: give another one")
    for other in evaluations[1:]:
        _require_same_clips(evaluations[0], other)
    comparison = finite(compare(evaluations))
    write_comparison(out, comparison, evaluations)
    return comparison


def _require_same_clips(first: Evaluation, other: Evaluation) -> None:
    """Raise a UsageError that names how protocol or dataset differ."""
    who = (f"{first.folder} has", f"{other.folder} has")
    here, there = (
        {**{key: side.report["protocol"].get(key) for key in PROTOCOL}, "clips": side.report.get("num_clips")}
        for side in (first, other)
    )
    way_out = "run `worldvq evaluate` again with the same settings"
    require_same(here, there, who, "the reports are of other protocols", way_out)
    (ids, files), (other_ids, other_files) = ((side.clips["ids"], side.clips["episodes"]) for side in (first, other))
    moved = (ids != other_ids).any(1)
    changed = (files != other_files).any(1) & ~moved
    lines = []
    if moved.any():
        one, another = (f"episode {rows[moved][0, 0]} from frame {rows[moved][0, 1]}" for rows in (ids, other_ids))
        lines.append(f"{moved.sum()} of {len(ids)} clips are others, {difference('the first', one, another, who)}")
    if changed.any():
        episode = f"episode {ids[changed][0, 0]}"
        lines.append(f"{changed.sum()} of {len(ids)} clips are of episodes that hold something else, as {episode}")
    if lines:
        lines = differences(first.report["dataset"], other.report["dataset"], who, key="dataset") + lines
        raise UsageError(
            f"the reports are of other datasets: {join(lines)}: run `worldvq evaluate` again with the same --data"
        )


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return what :func:`compare_reports` does, of evaluations on the same clips; may hold NaN."""
    labels = string.ascii_uppercase[: len(evaluations)]
    reports = [side.report for side in evaluations]
    tests, notes = tests_compared(evaluations)
    counts = {"clips": metrics.bootstrap_counts(reports[0]["num_clips"])}
    counts |= {test: metrics.bootstrap_counts(len(evaluations[0].clips[f"{test}/situations"])) for test in tests}
    one_tokenizer = len({report["world"]["tokenizer_hash"] for report in reports}) == 1
    found = []
    for measure in MEASURES:
        if measure.over not in counts or not all(measure.needs in side.clips for side in evaluations):
            continue
        same = one_tokenizer or not measure.of_tokens
        rows = _difference(evaluations, measure.statistic, counts[measure.over], same)
        over = plural(counts[measure.over].shape[1], "clip" if measure.over == "clips" else "situation")
        found.append({**measure.about(), "over": over, **rows})
        if not same:
            notes.append(f"{measure.name} is not compared: worlds with other tokenizers predict other tokens.")
    for plain in PLAIN:
        values = [value for report in reports if (value := plain.value(report)) is not None]
        if len(values) == len(reports):
            rows = [{"mean": value - values[0], "ci95": None, "excludes_zero": False} for value in values[1:]]
            found.append({**plain.about(), "over": None, "values": values, "differences": rows})
    config, more = config_differences(evaluations)
    return {
        "reports": [
            {"label": label, "folder": str(side.folder), "world": side.report["world"]["hash"]}
            for label, side in zip(labels, evaluations, strict=True)
        ],
        "env_id": reports[0]["env_id"],
        "protocol": {key: reports[0]["protocol"][key] for key in PROTOCOL},
        "num_clips": reports[0]["num_clips"],
        "num_episodes": reports[0]["num_episodes"],
        "copy_last": {key: reports[0]["summary"][key]["copy_last"] for key in ("psnr", "ssim")},
        "dataset": reports[0]["dataset"],
        "measures": [row for row in found if np.isfinite(np.array(row["values"], float)).any()],
        "steps": {key: _difference(evaluations, curve(key), counts["clips"]) for key in SCALES},
        "config": config,
        "notes": [*notes, *more],
        "versions": {"worldvq": worldvq.__version__},
    }


def _difference(
    evaluations: Sequence[Evaluation],
    statistic: Callable[[Evaluation, np.ndarray], np.ndarray],
    counts: np.ndarray,
    comparable: bool = True,
) -> dict[str, Any]:
    """Return values and paired differences to the first, each with its 95 % percentile bootstrap.

    Args:
        evaluations: The reports.
        statistic: From a report and how often each row is drawn (R, n) to (R, ...).
        counts: (R, n) of the resamples, the same for all reports.
        comparable: Whether differences mean anything; without, there are none.
    """
    once = np.ones((1, counts.shape[1]), np.int64)
    values = [statistic(side, once)[0] for side in evaluations]
    found: dict[str, Any] = {"values": [value.tolist() for value in values], "differences": []}
    if not comparable:
        return found
    drawn = [statistic(side, counts) for side in evaluations]
    for value, resampled in zip(values[1:], drawn[1:], strict=True):
        interval = metrics.ci95(resampled - drawn[0])
        excludes = (interval[..., 0] > 0) | (interval[..., 1] < 0)
        found["differences"].append(
            {"mean": (value - values[0]).tolist(), "ci95": interval.tolist(), "excludes_zero": excludes.tolist()}
        )
    return found


def config_differences(evaluations: Sequence[Evaluation]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the keys on which worlds, training, sampling and versions differ, with all values; and notes."""
    found, notes = [], []
    worlds = [side.report["world"] for side in evaluations]
    trained = [world["meta"].get("training") for world in worlds]
    if None in trained:
        silent = ", ".join(str(s.folder) for s, training in zip(evaluations, trained, strict=True) if training is None)
        notes.append(f"How the worlds were trained is left out, as an older one does not say it: {silent}.")
        trained = [{} for _ in worlds]
    for side, world, training in zip(evaluations, worlds, trained, strict=True):
        about = {"tokenizer": world["tokenizer"], "dynamics": world["dynamics"], **training}
        about |= {"trained_on": world["meta"].get("dataset"), "weights": world["hash"][:12]}
        about |= {"sampling": side.report["protocol"]["sampling"], "versions": side.report["versions"]}
        found.append(_flat(about))
    keys = list(dict.fromkeys(key for flat in found for key in flat))
    rows = {key: [flat.get(key) for flat in found] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}, notes


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested records by their path of keys."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{path}.{key}" if path else str(key))
    return found
