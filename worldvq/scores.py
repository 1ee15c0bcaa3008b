"""From what an evaluation gathered to the numbers of its report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldvq import metrics
from worldvq.config import EvaluateConfig

YARDSTICKS = ("imagined", "reconstruction", "copy_last", "shuffled_actions")


@dataclass
class Collected:
    """What an evaluation gathers; one entry a batch, joined along the clips at the end."""

    error: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in YARDSTICKS})
    ssim: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in YARDSTICKS})
    features: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in ("real", *YARDSTICKS)})
    nats: list[np.ndarray] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    counts: np.ndarray | int = 0
    shown: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    passes: list[np.ndarray] = field(default_factory=list)
    imagine_seconds: float = 0.0


def summarize(collected: Collected, config: EvaluateConfig, horizons: list[int]) -> dict[str, Any]:
    """Turn what was collected into the numbers of the report."""
    error = {name: np.concatenate(parts) for name, parts in collected.error.items()}  # (n, N)
    ssim = {name: np.concatenate(parts) for name, parts in collected.ssim.items()}
    single = {name: np.minimum(metrics.psnr(values), metrics.PSNR_CAP) for name, values in error.items()}
    nats = np.concatenate(collected.nats)
    report: dict[str, Any] = {
        "context": config.context,
        "horizon": config.horizon,
        "psnr": {name: _curve(values, metrics.psnr) for name, values in error.items()},
        "psnr_per_frame": {name: _curve(values) for name, values in single.items()},
        "psnr_cap": metrics.PSNR_CAP,
        "ssim": {name: _curve(values) for name, values in ssim.items()},
        "fd_efflite0": _frechet(collected, horizons),
        "nats_per_token": float(nats.mean()),
        "bits_per_frame": float(nats.sum(axis=(1, 2)).mean() / math.log(2)),
        "nats_by_position": nats.mean(axis=0).tolist(),
        "perplexity": metrics.perplexity(collected.counts),
        "codes_used": int(np.count_nonzero(collected.counts)),
        "rewards": _rewards(collected),
        "termination": _termination(collected),
        "gains": {
            key: {f"over_{other}": _gain(values, other, scale) for other in ("copy_last", "shuffled_actions")}
            for key, values, scale in (("psnr", error, metrics.psnr), ("ssim", ssim, np.asarray))
        },
        "passes_per_frame": round(float(np.concatenate(collected.passes).mean()), 2),
        "imagined_frames_per_second": round(error["imagined"].size / max(collected.imagine_seconds, 1e-9), 1),
    }
    report["summary"] = {
        key: report[key] and {name: float(np.mean(report[key][name]["mean"])) for name in YARDSTICKS}
        for key in ("psnr", "psnr_per_frame", "ssim", "fd_efflite0")
    }
    return report


Scale = Callable[[np.ndarray], np.ndarray]
"""From means over clips to the unit of a report: for PSNR, from squared errors to dB."""


def _curve(values: np.ndarray, scale: Scale = np.asarray) -> dict[str, Any]:
    """Scaled mean over clips (n, N) for each horizon, with its 95 % interval."""
    resampled = scale(metrics.bootstrap_means(values))
    return {"mean": scale(values.mean(axis=0)).tolist(), "ci95": metrics.ci95(resampled).tolist()}


def _gain(values: dict[str, np.ndarray], other: str, scale: Scale) -> dict[str, Any]:
    """How far ``imagined`` stands above ``other``, over all horizons, with its 95 % interval."""
    mean = scale(values["imagined"].mean(axis=0)) - scale(values[other].mean(axis=0))  # (N,)
    resampled = [scale(metrics.bootstrap_means(values[name])) for name in ("imagined", other)]
    difference = (resampled[0] - resampled[1]).mean(axis=1)
    return {"mean": float(mean.mean()), "ci95": metrics.ci95(difference).tolist()}


def _frechet(collected: Collected, horizons: list[int]) -> dict[str, Any] | None:
    """FD-EffLite0 of each yardstick at a few horizons, or None without the extra."""
    if not horizons:
        return None
    sets = {name: np.concatenate(parts) for name, parts in collected.features.items()}  # (n, horizons, 1280)
    result: dict[str, Any] = {
        "horizons": horizons,
        "num_frames": len(sets["real"]),
        "input_size": metrics.FD_INPUT,
    }
    for name in YARDSTICKS:
        distances = [metrics.frechet_distance(sets["real"][:, i], sets[name][:, i]) for i in range(len(horizons))]
        result[name] = {"mean": distances}
    return result


def _rewards(collected: Collected) -> dict[str, Any]:
    """Errors of the teacher-forced reward, beside those of always saying the mean."""
    predicted, true = (np.concatenate(collected.scores[name]) for name in ("rewards", "rewards_true"))
    return {
        "mae": float(np.abs(predicted - true).mean()),
        "mae_of_mean": float(np.abs(true.mean() - true).mean()),
        "correlation": metrics.correlation(predicted, true),
        "positive_rate": float((true > 0).mean()),
        "average_precision_positive": metrics.average_precision(predicted, true > 0),
        "negative_rate": float((true < 0).mean()),
        "average_precision_negative": metrics.average_precision(-predicted, true < 0),
        "num_transitions": len(true),
    }


def _termination(collected: Collected) -> dict[str, Any]:
    """How well the teacher-forced probability of termination ranks the transitions that did end the task."""
    predicted, true = (np.concatenate(collected.scores[name]) for name in ("termination", "termination_true"))
    return {
        "average_precision": metrics.average_precision(predicted, true),
        "auc": metrics.auc(predicted, true),
        "rate": float(true.mean()),
        "mean_probability": float(predicted.mean()),
        "num_transitions": len(true),
    }
