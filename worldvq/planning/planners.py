"""Random shooting and the cross-entropy method: which plan is worth most, whoever says what a plan is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from worldvq.types import UNBOUNDED, ActionSpace

Score = Callable[[np.ndarray], np.ndarray]
"""From plans (P, H, ...) of stored actions to what each is worth (P,); more is better. A dream says so in
:mod:`worldvq.planning.rollout`; anything else may, a simulator too."""

KEPT = 0.5
"""Chance that a proposed plan keeps its action for another step: fresh choices every step only jitter."""
ELITES = 1 / 8
"""Share of the plans of an iteration that the next one is drawn like."""
SMOOTHING = 0.3
"""Weight of the distribution before: no choice is ruled out after one iteration."""
FRESH = 1 / 4
"""Share of every iteration that is random all the same: where rewards are rare, the first elites may know of none."""


class Plan(NamedTuple):
    """What a planner found.

    Attributes:
        actions: (H, ...) stored actions.
        value: What the plan is worth by the score that it was searched with.
    """

    actions: np.ndarray
    value: float


class Planner(Protocol):
    """:func:`random_shooting` or :func:`cross_entropy`."""

    def __call__(
        self,
        score: Score,
        space: ActionSpace,
        horizon: int,
        rng: np.random.Generator,
        *,
        candidates: int = 64,
        known: np.ndarray | None = None,
    ) -> Plan:
        """Search for a plan of ``horizon`` steps; see :func:`cross_entropy`."""
        ...


def bounds(space: ActionSpace) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high (dims,) of a box, -1 and 1 on a side that has no bound."""
    low, high = np.array(space.low, np.float64), np.array(space.high, np.float64)
    low = np.where(low > -UNBOUNDED, low, np.minimum(-1, high - 2))
    return low, np.where(high < UNBOUNDED, high, np.maximum(1, low + 2))


def propose(space: ActionSpace, count: int, horizon: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` random plans (count, H, ...) of stored actions, each action kept for two steps on average."""
    shape = (count, horizon, *space.shape)
    if space.kind == "box":
        fresh = rng.uniform(*bounds(space), size=shape)
    else:
        fresh = rng.integers(0, np.array(space.nvec).reshape(space.shape), size=shape)
    drawn = np.where(rng.random((count, horizon)) < KEPT, 0, np.arange(horizon))
    since = np.maximum.accumulate(drawn, axis=1)  # the step at which the action of a step was drawn
    return np.take_along_axis(fresh, since.reshape(count, horizon, *[1] * len(space.shape)), 1).astype(space.dtype)


def random_shooting(
    score: Score,
    space: ActionSpace,
    horizon: int,
    rng: np.random.Generator,
    *,
    candidates: int = 64,
    known: np.ndarray | None = None,
) -> Plan:
    """Return the best of ``candidates`` random plans, and of those ``known``; see :func:`cross_entropy`."""
    plans = _with(known, propose(space, candidates, horizon, rng))
    return _best(plans, np.asarray(score(plans), np.float64))


def cross_entropy(
    score: Score,
    space: ActionSpace,
    horizon: int,
    rng: np.random.Generator,
    *,
    candidates: int = 64,
    known: np.ndarray | None = None,
    iterations: int = 4,
) -> Plan:
    """Search by the cross-entropy method (Rubinstein 1999): draw plans, keep the best, draw others like these.

    The first plans are random ones (:func:`propose`). Those of every later iteration are drawn from a distribution of
    independent steps that was fitted to the elites: a categorical one for each factor of an action, a normal one for
    each number of a box; but for ``FRESH`` of them. Elites stay candidates, so that the best plan is never lost.

    Args:
        score: What plans are worth.
        space: What an action is.
        horizon: Steps H of a plan.
        rng: Source of all that is random.
        candidates: Plans that are scored in all, the ``known`` ones not counted.
        known: (n, H, ...) plans to begin with besides, such as what is left of the last one.
        iterations: In how many parts they are drawn.
    """
    each = max(1, candidates // iterations)
    count = max(2, round(each * ELITES))
    plans = _with(known, propose(space, each, horizon, rng))
    values, fitted = np.asarray(score(plans), np.float64), None
    for _ in range(iterations - 1):
        order = np.argsort(-values, kind="stable")[:count]
        elites, kept = plans[order], values[order]
        fitted = _fit(space, elites, fitted)
        fresh = propose(space, round(each * FRESH), horizon, rng)
        drawn = np.concatenate([fresh, _draw(space, fitted, each - len(fresh), rng)])
        plans = np.concatenate([elites, drawn])
        values = np.concatenate([kept, np.asarray(score(drawn), np.float64)])
    return _best(plans, values)


def _best(plans: np.ndarray, values: np.ndarray) -> Plan:
    best = int(np.argmax(values))
    return Plan(plans[best], float(values[best]))


def _with(known: np.ndarray | None, drawn: np.ndarray) -> np.ndarray:
    return drawn if known is None else np.concatenate([known.astype(drawn.dtype), drawn])


_Fitted = list[np.ndarray]
"""Of a box: mean and deviation, each (H, dims). Else: of each factor the probabilities (H, choices)."""


def _fit(space: ActionSpace, elites: np.ndarray, before: _Fitted | None) -> _Fitted:
    """Fit the distribution of steps to elites (E, H, ...), smoothed by the one before, at first the widest one."""
    if space.kind == "box":
        low, high = bounds(space)
        shape = elites.shape[1:]
        before = before or [np.broadcast_to((low + high) / 2, shape), np.broadcast_to((high - low) / 2, shape)]
        now = [elites.mean(0, dtype=np.float64), elites.std(0, dtype=np.float64)]
        return [SMOOTHING * old + (1 - SMOOTHING) * new for old, new in zip(before, now, strict=True)]
    factors = elites.reshape(*elites.shape[:2], len(space.nvec))
    now = [(factors[..., i, None] == np.arange(n)).mean(0) for i, n in enumerate(space.nvec)]
    before = before or [np.full_like(share, 1 / share.shape[1]) for share in now]
    return [SMOOTHING * old + (1 - SMOOTHING) * new for old, new in zip(before, now, strict=True)]


def _draw(space: ActionSpace, fitted: _Fitted, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw plans (count, H, ...) of independent steps."""
    if space.kind == "box":
        mean, deviation = fitted
        return np.clip(rng.normal(mean, deviation, (count, *mean.shape)), *bounds(space)).astype(space.dtype)
    horizon = len(fitted[0])
    noise = [rng.gumbel(size=(count, *share.shape)) for share in fitted]  # argmax of log p + Gumbel noise ~ p
    drawn = [(np.log(share) + extra).argmax(-1) for share, extra in zip(fitted, noise, strict=True)]
    return np.stack(drawn, -1).reshape(count, horizon, *space.shape).astype(space.dtype)
