"""From what an evaluation gathered to the numbers of its report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from worldvq.evaluation import metrics
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.parts import Part

YARDSTICKS = ("imagined", "reconstruction", "copy_last", "shuffled_actions")


def summarize(collected: Part, config: EvaluateConfig, horizons: list[int]) -> dict[str, Any]:
    """Turn what an evaluation collected into the numbers of the report.

    Args:
        collected: Arrays of all clips: ``error/NAME`` and ``ssim/NAME`` (n, N) of each yardstick, ``features/NAME``
            (n, horizons, 1280) of each and of ``real``, ``regions/NAME`` (n, N - 1) of each and of ``all``, ``nats``
            (frames, h, w), ``counts`` of codes (batches, K), rewards and endings by transition, and of each batch
            ``passes`` and ``imagine_seconds``.
        config: The protocol.
        horizons: Those of the Fréchet distance; none without the extra.
    """
    error = {name: collected[f"error/{name}"] for name in YARDSTICKS}
    ssim = {name: collected[f"ssim/{name}"] for name in YARDSTICKS}
    counts = collected["counts"].sum(axis=0)
    single = {name: np.minimum(metrics.psnr(values), metrics.PSNR_CAP) for name, values in error.items()}
    nats, imagine_seconds = collected["nats"], float(collected["imagine_seconds"].sum())
    report: dict[str, Any] = {
        "context": config.context,
        "horizon": config.horizon,
        "psnr": {name: _curve(values, metrics.psnr) for name, values in error.items()},
        "psnr_per_frame": {name: _curve(values) for name, values in single.items()},
        "psnr_cap": metrics.PSNR_CAP,
        "ssim": {name: _curve(values) for name, values in ssim.items()},
        "fd_efflite0": _frechet(collected, horizons),
        "regions": _regions(collected),
        "nats_per_token": float(nats.mean()),
        "bits_per_frame": float(nats.sum(axis=(1, 2)).mean() / math.log(2)),
        "nats_by_position": nats.mean(axis=0).tolist(),
        "perplexity": metrics.perplexity(counts),
        "codes_used": int(np.count_nonzero(counts)),
        "rewards": _rewards(collected),
        "termination": _termination(collected),
        "gains": {
            key: {f"over_{other}": _gain(values, other, scale) for other in ("copy_last", "shuffled_actions")}
            for key, values, scale in (("psnr", error, metrics.psnr), ("ssim", ssim, np.asarray))
        },
        "passes_per_frame": round(float(collected["passes"].mean()), 2),
        "imagined_frames_per_second": round(error["imagined"].size / max(imagine_seconds, 1e-9), 1),
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


def _frechet(collected: Part, horizons: list[int]) -> dict[str, Any] | None:
    """FD-EffLite0 of each yardstick at a few horizons, or None without the extra."""
    if not horizons:
        return None
    sets = {name: collected[f"features/{name}"] for name in ("real", *YARDSTICKS)}  # (n, horizons, 1280)
    result: dict[str, Any] = {
        "horizons": horizons,
        "num_frames": len(sets["real"]),
        "input_size": metrics.FD_INPUT,
    }
    for name in YARDSTICKS:
        distances = [metrics.frechet_distance(sets["real"][:, i], sets[name][:, i]) for i in range(len(horizons))]
        result[name] = {"mean": distances}
    return result


def _regions(collected: Part) -> dict[str, Any] | None:
    """Recall of small changing regions by each yardstick, or None without the extra."""
    if "regions/all" not in collected:
        return None
    counts = collected["regions/all"].sum(1)
    return {name: metrics.rate(collected[f"regions/{name}"].sum(1), counts) for name in YARDSTICKS}


def _rewards(collected: Part) -> dict[str, Any]:
    """Errors of the teacher-forced reward, beside those of always saying the mean."""
    predicted, true = collected["rewards"], collected["rewards_true"]
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


def _termination(collected: Part) -> dict[str, Any]:
    """How well the teacher-forced probability of termination ranks the transitions that did end the task."""
    predicted, true = collected["termination"], collected["termination_true"]
    return {
        "average_precision": metrics.average_precision(predicted, true),
        "auc": metrics.auc(predicted, true),
        "rate": float(true.mean()),
        "mean_probability": float(predicted.mean()),
        "num_transitions": len(true),
    }
