"""Are decisions that are made in a dream good ones? Several plans, of which the dream picks; what each really pays.

A picture can be wrong where it does not matter, and right where nothing is decided. So plans are played for real, and a
dream is judged by what the plan that it picked pays there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from worldvq.evaluation import metrics
from worldvq.evaluation.branches import Player, Situation, return_of
from worldvq.evaluation.parts import Part, Parts
from worldvq.evaluation.report_files import BY_SITUATION
from worldvq.planning.planners import Score, cross_entropy, propose
from worldvq.planning.rollout import dream_plans, reward_score

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

SITUATIONS = 100
PLANS = 5
"""Ways to go on from a situation, of which one is picked."""
HORIZON = 12
"""Steps of a plan."""
CANDIDATES = 32
"""Plans of a planner's search: each is also played for real, from the start of its episode."""


def decisions(
    world: WorldModel,
    player: Player,
    situations: Sequence[Situation],
    seed: int,
    sampling: dict[str, Any],
    progress: bool = True,
    parts: Parts | None = None,
) -> dict[str, Any]:
    """Let a dream decide in every situation, and see what its decisions really pay.

    - *Five plans*: random ones (:func:`worldvq.planning.planners.propose`). The dream picks the one of which it
      predicts the highest return, drawn with the prior (``dream``) and with the forecast head (``forecast``); beside
      them the best of the five, and the mean of them, which is what picking at random pays.
    - *A planner*: the cross-entropy method, with the dream (its forecast head) as its model and, the same planner with
      the same random numbers, with the real environment as its model, which knows what will happen. The difference of
      what their plans really pay is the counterfactual planning gap.

    Args:
        world: The world.
        player: The environment.
        situations: Where plans begin.
        seed: Of plans and sampling.
        sampling: How the world is sampled.
        progress: Show a progress bar on stderr.
        parts: Keeps what was found in each situation, so that whoever was interrupted goes on.

    Returns:
        ``returns`` (mean, ci95) of ``best``, ``dream``, ``forecast`` and ``random``; ``regret`` against the best and
        ``gain`` over random of the dream and the forecast; ``planner`` with ``simulator``, ``dream`` and their ``gap``;
        ``differ``, in how many situations the five plans do not all pay the same; all intervals are bootstraps over
        situations. ``by_situation`` holds what each way of deciding paid, (S, 1).
    """
    console = Console(stderr=True, quiet=not progress)
    rows = []
    for number, situation in enumerate(track(situations, "decisions", console=console)):
        make = partial(_decide, world, player, situation, seed, number, sampling)
        rows.append(parts.ensure(number, make) if parts else make())
    paid = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}  # (S,) each
    about = {"situations": len(rows), "plans": PLANS, "horizon": HORIZON, "candidates": CANDIDATES}
    kept = {key: values[:, None] for key, values in paid.items()}
    kept["situations"] = np.stack([situation.place for situation in situations])
    return {**about, **summary(paid), BY_SITUATION: kept}


def summary(paid: dict[str, np.ndarray]) -> dict[str, Any]:
    """Turn what each way of deciding paid (S,) into the numbers of :func:`decisions`."""
    pickers, mean = ("dream", "forecast"), metrics.mean_over_rows
    planned = {key: paid[f"planner_{key}"] for key in ("simulator", "dream")}
    return {
        "differ": int(paid["differ"].sum()),
        "returns": {key: mean(paid[key]) for key in ("best", *pickers, "random")},
        "regret": {key: mean(paid["best"] - paid[key]) for key in (*pickers, "random")},
        "gain": {key: mean(paid[key] - paid["random"]) for key in pickers},
        "planner": {
            **{key: mean(values) for key, values in planned.items()},
            "gap": mean(planned["simulator"] - planned["dream"]),
            "gain": mean(planned["dream"] - paid["random"]),
        },
    }


def verdict(name: str, other: str, difference: dict[str, Any]) -> str:
    """Say which of the two pays more, if the 95 % interval of their difference allows it."""
    low, high = difference["ci95"]
    interval = f"{difference['mean']:+.2f} ({low:+.2f} to {high:+.2f})"
    if low > 0:
        return f"{name} pays more than {other}: {interval}"
    if high < 0:
        return f"{name} pays less than {other}: {interval}"
    return f"no verdict on {name} against {other}: {interval}"


def _decide(
    world: WorldModel,
    player: Player,
    situation: Situation,
    seed: int,
    number: int,
    sampling: dict[str, Any],
) -> Part:
    """Return what each way of deciding really pays in one situation, (1,) each."""
    space, rng = world.action_space, np.random.default_rng([seed, number])
    heard = None if situation.sounds is None else situation.sounds[None]
    dream = world.start(situation.frames[None], situation.between[None], seed, [number], heard, **sampling)

    def real(plans: np.ndarray) -> np.ndarray:
        return np.array([return_of(player, situation, plan) for plan in plans])

    plans = propose(space, PLANS, HORIZON, rng)
    paid = real(plans)
    scores: dict[str, Score] = {"dream": reward_score(dream, dream_plans), "forecast": reward_score(dream)}
    found = {key: float(paid[np.argmax(score(plans))]) for key, score in scores.items()}
    searched = {
        key: cross_entropy(score, space, HORIZON, np.random.default_rng([seed, number]), candidates=CANDIDATES)
        for key, score in (("simulator", real), ("dream", scores["forecast"]))
    }
    pays = {
        **found,
        "best": paid.max(),
        "random": paid.mean(),
        "differ": np.ptp(paid) > 0,
        "planner_simulator": searched["simulator"].value,
        "planner_dream": real(searched["dream"].actions[None])[0],
    }
    return {key: np.array([value], np.float64) for key, value in pays.items()}
