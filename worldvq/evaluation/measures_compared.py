"""The numbers in which reports are compared: each a function of how often every clip, or situation, is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldvq.errors import plural
from worldvq.evaluation import metrics
from worldvq.evaluation.report_files import Evaluation

Statistic = Callable[[Evaluation, np.ndarray], np.ndarray]
"""From a report and counts (R, n), how often each of its n rows is drawn, to the number of each draw (R,)."""
SCALES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "psnr": ("error", metrics.psnr),
    "ssim": ("ssim", np.asarray),
}
"""What is kept of each clip, and how its mean becomes the number."""
_TESTS = {"counterfactual": "--counterfactual", "memory": "--memory", "decisions": "--decisions"}


@dataclass(frozen=True)
class Named:
    """What a number is called, whether higher is better, and how many digits are shown after the point."""

    name: str
    higher: bool
    digits: int

    def about(self) -> dict[str, Any]:
        """Return these, as a comparison holds them."""
        return {"name": self.name, "higher_is_better": self.higher, "digits": self.digits}


@dataclass(frozen=True)
class Measure(Named):
    """A number with a paired interval.

    Attributes:
        needs: An array that a report must have kept.
        statistic: How it comes about.
        over: What is drawn: ``clips``, or the situations of a test.
        of_tokens: Whether it says something only between worlds of one tokenizer.
    """

    needs: str
    statistic: Statistic
    over: str = "clips"
    of_tokens: bool = False


@dataclass(frozen=True)
class Plain(Named):
    """A number of ``report.json`` of which too little is kept for a paired interval.

    Attributes:
        value: How to get it; None where it was not measured.
    """

    value: Callable[[dict[str, Any]], float | None]


def curve(key: str, name: str = "imagined") -> Statistic:
    """PSNR or SSIM of a yardstick at every horizon, (R, N): of means over clips, as the report has it."""
    kept, scale = SCALES[key]
    return lambda side, counts: scale(counts @ side.clips[f"{kept}/{name}"] / counts.shape[1])


def _over_horizon(key: str, name: str, less: str | None = None) -> Statistic:
    def statistic(side: Evaluation, counts: np.ndarray) -> np.ndarray:
        values = curve(key, name)(side, counts).mean(1)
        return values if less is None else values - curve(key, less)(side, counts).mean(1)

    return statistic


def _mean(values: Callable[[Evaluation], np.ndarray]) -> Statistic:
    return lambda side, counts: counts @ values(side).mean(1) / counts.shape[1]


def _recall(name: str) -> Statistic:
    def statistic(side: Evaluation, counts: np.ndarray) -> np.ndarray:
        hits, there = (side.clips[f"regions/{key}"].sum(1) for key in (name, "all"))
        return _ratio(counts @ hits, counts @ there)

    return statistic


def _precision(predicted: str, sign: int) -> Statistic:
    """Average precision of finding transitions whose recorded value has a sign, by what was predicted of them."""

    def statistic(side: Evaluation, counts: np.ndarray) -> np.ndarray:
        scores, labels = sign * side.clips[predicted], sign * side.clips[f"{predicted}_true"] > 0
        draws = (np.repeat(np.arange(len(scores)), row) for row in counts)
        return np.array([metrics.average_precision(scores[rows], labels[rows]) for rows in draws])

    return statistic


def _retrieval(step: int) -> Statistic:
    return lambda side, counts: counts @ side.clips["counterfactual/retrieval"][:, step - 1] / counts.shape[1]


def _over_other_actions(step: int) -> Statistic:
    def statistic(side: Evaluation, counts: np.ndarray) -> np.ndarray:
        own, other = (counts @ side.clips[f"counterfactual/{key}"][:, step - 1] for key in ("own", "other"))
        return metrics.psnr(own / counts.shape[1]) - metrics.psnr(other / counts.shape[1])

    return statistic


def _under_ceiling(kind: str, steps: int | None) -> Statistic:
    """How far a dream that comes back is below the ceiling (dB), over all ways of a kind and the places they count in.

    Each PSNR is that of the mean squared error; situations are drawn, with all ways from them.
    """

    def statistic(side: Evaluation, counts: np.ndarray) -> np.ndarray:
        ways = side.report["memory"]["ways"]
        rows = [i for i, way in enumerate(ways) if way["kind"] == kind and steps in (None, way["steps"])]
        error, ceiling = (side.clips[f"memory/{key}"][rows] for key in ("error", "ceiling"))
        there = counts @ np.isfinite(error).sum(0)
        psnr = [metrics.psnr(_ratio(counts @ np.nansum(errors, axis=0), there)) for errors in (ceiling, error)]
        return psnr[0] - psnr[1]

    return statistic


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``, NaN where there is nothing to divide by."""
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def _returns(name: str, kind: str, steps: int | None = None) -> Measure:
    statistic = _under_ceiling(kind, steps)
    return Measure(f"There and back, {name}: dB under the ceiling", False, 2, "memory/error", statistic, "memory")


def _retrieved(step: int) -> Measure:
    name = f"Retrieval of branches, step {step}"
    return Measure(name, True, 3, "counterfactual/own", _retrieval(step), "counterfactual")


def _pays(name: str, key: str, less: str | None = None, higher: bool = True) -> Measure:
    """What a way of deciding really pays, less what another one does."""

    def statistic(side: Evaluation, counts: np.ndarray) -> np.ndarray:
        paid = side.clips[f"decisions/{key}"] - (side.clips[f"decisions/{less}"] if less else 0)
        return counts @ paid.mean(1) / counts.shape[1]

    return Measure(f"Decisions, {name}", higher, 3, f"decisions/{key}", statistic, "decisions")


def _reward_errors(side: Evaluation) -> np.ndarray:
    return np.abs(side.clips["rewards"] - side.clips["rewards_true"])


_PSNR, _SSIM = "psnr", "ssim"
MEASURES = (
    Measure("PSNR of imagined frames, dB", True, 2, "ids", _over_horizon(_PSNR, "imagined")),
    Measure("SSIM of imagined frames", True, 3, "ids", _over_horizon(_SSIM, "imagined")),
    Measure("PSNR over shuffled actions, dB", True, 2, "ids", _over_horizon(_PSNR, "imagined", "shuffled_actions")),
    Measure("PSNR of the tokenizer, dB", True, 2, "ids", _over_horizon(_PSNR, "reconstruction")),
    Measure("SSIM of the tokenizer", True, 3, "ids", _over_horizon(_SSIM, "reconstruction")),
    Measure("Nats a token", False, 3, "nats", _mean(lambda side: side.clips["nats"]), of_tokens=True),
    Measure("Small regions recalled, imagined", True, 3, "regions/all", _recall("imagined")),
    Measure("Small regions recalled, tokenizer", True, 3, "regions/all", _recall("reconstruction")),
    Measure("Reward error", False, 4, "rewards", _mean(_reward_errors)),
    Measure("Finding rewards above 0, average precision", True, 3, "rewards", _precision("rewards", 1)),
    Measure("Finding rewards below 0, average precision", True, 3, "rewards", _precision("rewards", -1)),
    Measure("Finding endings, average precision", True, 3, "termination", _precision("termination", 1)),
    *map(_retrieved, (1, 4, 8)),
    Measure(
        "PSNR over that under other actions, step 4, dB",
        True,
        2,
        "counterfactual/own",
        _over_other_actions(4),
        "counterfactual",
    ),
    *(_returns(f"{plural(steps, 'step')} each way", "pair", steps) for steps in (1, 2, 4, 8)),
    _returns("the way one came", "nested"),
    _returns("another way", "around"),
    _returns("a full turn", "turn"),
    _pays("return of the dream's pick of five plans", "dream"),
    _pays("return of planning in the dream", "planner_dream"),
    _pays("counterfactual planning gap", "planner_simulator", "planner_dream", higher=False),
)


def objects_kept(report: dict[str, Any], step: int) -> float | None:
    """Share of objects of 25 pixels and more that are kept, of seen ones in a dream's frame; at 0, in reconstructions.

    As in :func:`worldvq.evaluation.objects.object_recall`.
    """
    if "objects" not in report:
        return None
    found = report["objects"]
    scores = found["dream"][found["steps"].index(step)]["seen"]["dream"] if step else found["reconstruction"]
    return scores["25 and more"]["mean"]


PLAIN = (
    Plain("FD-EffLite0 of imagined frames", False, 1, lambda r: (r["summary"]["fd_efflite0"] or {}).get("imagined")),
    Plain("Actions told from imagined frames, macro-F1", True, 3, lambda r: _at(r, "inverse", "imagined", "macro_f1")),
    Plain("Objects kept in reconstructions", True, 3, lambda r: objects_kept(r, 0)),
    Plain("Objects kept in dreams, step 4", True, 3, lambda r: objects_kept(r, 4)),
    Plain("Drift over 300 frames", False, 3, lambda r: _at(r, "long", "drift")),
)


def _at(report: dict[str, Any], test: str, *path: str) -> float | None:
    """Return the mean that lies at a path below a test, None where the test was not made."""
    if test not in report:
        return None
    found = report[test]
    for key in path:
        found = found[key]
    return found["mean"]


def tests_compared(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[str]]:
    """Return the tests that were played in the same situations by all; and why others are left out."""
    tests, notes = [], []
    for test, option in _TESTS.items():
        name = f"{test}/situations"
        without = [str(side.folder) for side in evaluations if name not in side.clips]
        if len(without) == len(evaluations):
            continue
        if without:
            notes.append(f"{option} is left out: it was not measured in {', '.join(without)}.")
            continue
        places = [side.clips[name] for side in evaluations]
        if all(np.array_equal(place, places[0]) for place in places):
            tests.append(test)
        else:
            sizes = ", ".join(f"{side.folder} {len(place)}" for side, place in zip(evaluations, places, strict=True))
            notes.append(f"{option} is left out: the situations differ ({sizes}); give the same --situations.")
    return tests, notes
