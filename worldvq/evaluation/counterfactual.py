"""Does a dream obey? One situation, several ways to go on, for real and imagined; who lies nearest to whom.

Retrieval asks what PSNR over a yardstick cannot: a third of a turning frame was never seen, and nobody can know it, but
which of the real branches a dream is of can be told from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from worldvq.errors import UsageError
from worldvq.evaluation import metrics
from worldvq.evaluation.branches import Player, Situation, plans_of, play_on
from worldvq.evaluation.report_files import BY_SITUATION

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

MATRIX_HORIZON = 4


def counterfactual(
    world: WorldModel,
    player: Player,
    situations: Sequence[Situation],
    horizon: int,
    seed: int,
    sampling: dict[str, Any],
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[dict[str, Any], np.ndarray]:
    """Fork situations, hold every plan in each, for real and in the dream, and compare.

    The branches of one situation are imagined with the same noise: what differs is what the actions did.

    Args:
        world: The world.
        player: The environment.
        situations: Where branches begin; those in which a branch ends before its time are left out.
        horizon: Steps of a branch.
        seed: Of the sampling.
        sampling: How the world is sampled.
        batch_size: Branches imagined at a time.
        progress: Show a progress bar on stderr.

    Returns:
        The numbers of :func:`score_branches`, with the names of the plans and the places of the situations; and frames
        (2, P, horizon, H, W, 3) of the first situation, real and imagined.

    Raises:
        UsageError: Every situation has a branch that ends before its time.
    """
    names, actions = plans_of(world.action_space)
    kept, real = [], []
    console = Console(stderr=True, quiet=not progress)
    for situation in track(situations, "branches", console=console):
        branches = [play_on(player, situation, np.stack([action] * horizon)) for action in actions]
        if all(branch is not None for branch in branches):
            kept.append(situation)
            real.append(np.stack([branch for branch in branches if branch is not None]))
    if not kept:
        raise UsageError(f"in every situation some branch ends within {horizon} steps: lower the horizon")
    plans = [np.stack([action] * horizon) for _ in kept for action in actions]
    begun = [situation for situation in kept for _ in actions]
    rows = np.repeat(np.arange(len(kept)), len(actions))
    dreamt = imagine_branches(world, begun, plans, rows, seed, sampling, batch_size)
    true = np.stack(real)  # (S, P, H, height, width, 3)
    dream = dreamt.reshape(true.shape)
    rebuilt = world.render(world.tokenize(true.reshape(-1, *true.shape[2:]))).numpy().reshape(true.shape)
    report = {"plans": names, "situations": len(kept), "left_out": len(situations) - len(kept), "horizon": horizon}
    report |= score_branches(true, dream, rebuilt)
    report[BY_SITUATION]["situations"] = np.stack([situation.place for situation in kept])
    return report, np.stack([true[0], dream[0]])


def imagine_branches(
    world: WorldModel,
    situations: Sequence[Situation],
    plans: Sequence[np.ndarray],
    rows: np.ndarray,
    seed: int,
    sampling: dict[str, Any],
    batch_size: int,
    shown: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Imagine what follows situations under plans (N, ...), (n, N, H, W, 3) uint8.

    With the frames ``shown`` (K, H, W, 3) that really follow under the first K actions, only the rest is imagined; a
    world with sound sees these in silence.
    """
    parts = []
    for first in range(0, len(plans), batch_size):
        part = slice(first, first + batch_size)
        frames = np.stack([situation.frames for situation in situations[part]])
        sounds = [situation.sounds for situation in situations[part] if situation.sounds is not None]
        heard = np.stack(sounds) if sounds else None
        if shown is not None:
            more = np.stack(shown[part])
            frames = np.concatenate([frames, more], 1)
            if heard is not None:
                heard = np.pad(heard, ((0, 0), (0, more.shape[1]), (0, 0)))
        actions = [np.concatenate([s.between, plan]) for s, plan in zip(situations[part], plans[part], strict=True)]
        drawn = world.imagine(frames, np.stack(actions), seed=seed, row_seeds=rows[part], sounds=heard, **sampling)
        parts.append(drawn.numpy())
    return np.concatenate(parts)


def score_branches(real: np.ndarray, dream: np.ndarray, rebuilt: np.ndarray) -> dict[str, Any]:
    """Compare branches (S, P, H, height, width, 3) uint8 of S situations, P plans and H steps.

    - ``retrieval``: how often an imagined branch lies nearest (squared error) to its own real one, or to one that shows
      the very same frame. ``chance`` is that of a branch drawn blindly, ``ceiling`` that of the real branch through the
      tokenizer.
    - ``delta_psnr``: PSNR under the true plan less that under another one; Genie (Bruce et al. 2024) reports it against
      random actions.
    - ``correlation``: of what sets imagined branches apart with what sets the real ones apart: Pearson's, of the pixels
      less their mean over plans.
    - ``psnr_matrix``: of real plan (row) against imagined plan (column).

    Every number is one a step, with a 95 % bootstrap over situations. ``by_situation`` holds ``retrieval`` and the
    squared errors ``own`` and ``other`` behind ``delta_psnr``, arrays (S, H).
    """
    shape = real.shape[:3]
    flat = [array.reshape(*shape, -1).astype(np.float32) / 255 for array in (real, dream, rebuilt)]
    error, ceiling_error, same = (np.empty((*shape[:2], shape[1], shape[2])) for _ in range(3))  # (S, P, P, H)
    moments = np.empty((shape[0], shape[2], 3))
    for s in range(shape[0]):
        for h in range(shape[2]):
            true, imagined, copied = (array[s, :, h] for array in flat)  # (P, D)
            error[s, :, :, h] = _squared(imagined, true)
            ceiling_error[s, :, :, h] = _squared(copied, true)
            same[s, :, :, h] = (true[:, None] == true[None]).all(-1)
            x, y = imagined - imagined.mean(0), true - true.mean(0)
            moments[s, h] = (x * y).sum(dtype=np.float64), (x * x).sum(dtype=np.float64), (y * y).sum(dtype=np.float64)
    hit, best = (_found(errors, same) for errors in (error, ceiling_error))  # (S, P, H)
    own = np.einsum("spph->sph", error).mean(1)  # (S, H)
    other = (error.sum((1, 2)) - np.einsum("spph->sh", error)) / max(1, shape[1] * (shape[1] - 1))
    resampled = [metrics.psnr(metrics.bootstrap_means(values)) for values in (own, other)]
    drawn = metrics.bootstrap_means(moments.reshape(shape[0], -1)).reshape(-1, shape[2], 3)
    step = min(MATRIX_HORIZON, shape[2]) - 1
    return {
        "retrieval": {
            **metrics.mean_over_rows(hit.mean(1)),
            "chance": same.mean((0, 1, 2)).tolist(),
            "ceiling": best.mean((0, 1)).tolist(),
            "by_plan": hit.mean(0).tolist(),
        },
        "delta_psnr": {
            "mean": (metrics.psnr(own.mean(0)) - metrics.psnr(other.mean(0))).tolist(),
            "ci95": metrics.ci95(resampled[0] - resampled[1]).tolist(),
        },
        "correlation": {
            "mean": _pearson(moments.mean(0)).tolist(),
            "ci95": metrics.ci95(_pearson(drawn)).tolist(),
        },
        "psnr_matrix": {"step": step + 1, "values": metrics.psnr(error.mean(0)[:, :, step]).T.tolist()},
        BY_SITUATION: {"retrieval": hit.mean(1), "own": own, "other": other},
    }


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared errors (P, P) of every row of ``a`` (P, D) with every row of ``b``."""
    return np.stack([np.square(row - b).mean(-1, dtype=np.float64) for row in a])


def _found(error: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Whether the real branch nearest to a branch shows what its own does, (S, P, H), from (S, P, P, H)."""
    nearest = error.argmin(2)
    return np.take_along_axis(same, nearest[:, :, None], axis=2)[:, :, 0]


def _pearson(moments: np.ndarray) -> np.ndarray:
    """Correlation from sums (..., 3) of xy, xx and yy; NaN where one never changes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return moments[..., 0] / np.sqrt(moments[..., 1] * moments[..., 2])
