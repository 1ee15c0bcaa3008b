"""Many plans in one dream, as one batch, and what each of them is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.errors import UsageError, plural
from worldvq.planning.planners import Score
from worldvq.types import as_tensor
from worldvq.world.actions import stored_actions
from worldvq.world.dream import Dream, Step
from worldvq.world.engine import Engine

BATCH = 128
"""Plans that are dreamt at a time: each takes the memory of a whole dream."""


class Outcome(NamedTuple):
    """What a dream says comes of P plans of H steps, on the CPU.

    Attributes:
        tokens: (P, H, h, w) int64 of the frames that follow.
        rewards: (P, H) predicted reward of each transition.
        termination: (P, H) probability that it ends the task.
    """

    tokens: Tensor
    rewards: Tensor
    termination: Tensor


Rollout = Callable[[Dream, ArrayLike | Tensor], Outcome]
""":func:`dream_plans` or :func:`forecast_plans`."""


def dream_plans(dream: Dream, plans: ArrayLike | Tensor) -> Outcome:
    """Dream plans (P, H, ...) with the prior, all with the same noise: what differs is what the actions did.

    Raises:
        UsageError: The dream has more than one row, or an action is none.
    """
    return _roll(dream, plans, Dream.step_tokens)


def forecast_plans(dream: Dream, plans: ArrayLike | Tensor) -> Outcome:
    """Dream plans (P, H, ...) with the parallel forecast head: one pass a frame, each token the most probable one.

    Raises:
        UsageError: The dream has more than one row, or an action is none.
    """
    return _roll(dream, plans, Dream.forecast, temperature=0.0)


def _roll(dream: Dream, plans: ArrayLike | Tensor, step: Callable[[Dream, Tensor], Step], **sampling: Any) -> Outcome:
    taken = _checked(dream, plans)
    fork = dream.fork(np.zeros(len(taken), np.int64))
    fork.sampling = fork.sampling.model_copy(update=sampling)
    steps = [step(fork, taken[:, index]) for index in range(taken.shape[1])]
    columns = zip(*((one.tokens, one.rewards, one.termination) for one in steps), strict=True)
    return Outcome(*(torch.stack(column, 1) for column in columns))


def survived_return(rewards: Tensor, termination: Tensor) -> Tensor:
    """Return the expected sums (P,) of rewards (P, H), each weighted by the chance that the task has not ended before.

    Σ_t r_t Π_{s<t} (1 - p_s), p_s the probability (P, H) that transition s ends it; what that one pays still counts.
    """
    alive = (1 - termination).cumprod(-1)
    return (rewards * torch.cat([torch.ones_like(alive[:, :1]), alive[:, :-1]], -1)).sum(-1)


@torch.no_grad()
def code_distance(engine: Engine, tokens: Tensor, goal: Tensor) -> Tensor:
    """Return mean squared distances (P,) of the codes of tokens (P, h, w) to those of a goal (h, w), as it is seen."""
    both = engine.layout.seen(torch.cat([tokens, goal[None]]))
    codes = engine.tokenizer.quantizer.lookup(both.to(engine.device)).float()
    return (codes[:-1] - codes[-1:]).square().mean((1, 2, 3)).cpu()


def reward_score(dream: Dream, rollout: Rollout = forecast_plans) -> Score:
    """Return the score of plans by the rewards that a dream of one row predicts: :func:`survived_return`."""
    return lambda plans: _in_batches(
        dream, plans, rollout, lambda outcome: survived_return(outcome.rewards, outcome.termination)
    )


def goal_score(dream: Dream, goal: ArrayLike | Tensor, rollout: Rollout = forecast_plans) -> Score:
    """Return the score of plans by how near their last frame comes to a goal: minus :func:`code_distance`.

    Args:
        dream: Of one row.
        goal: (H, W, 3) uint8.
        rollout: How plans are dreamt.
    """
    wanted = dream.engine.tokenize(as_tensor(goal)[None, None])[0, 0]
    return lambda plans: _in_batches(
        dream, plans, rollout, lambda outcome: -code_distance(dream.engine, outcome.tokens[:, -1], wanted)
    )


def _in_batches(dream: Dream, plans: np.ndarray, rollout: Rollout, worth: Callable[[Outcome], Tensor]) -> np.ndarray:
    parts = [worth(rollout(dream, plans[first : first + BATCH])) for first in range(0, len(plans), BATCH)]
    return torch.cat(parts).double().numpy()


def _checked(dream: Dream, plans: ArrayLike | Tensor) -> Tensor:
    """Return plans (P, H, ...) as they are stored."""
    space, given = dream.engine.action_space, as_tensor(plans)
    if len(dream) != 1:
        raise UsageError(f"plans begin in one dream, this one has {plural(len(dream), 'row')}: fork the one you mean")
    if given.ndim != 2 + len(space.shape) or 0 in given.shape:
        raise UsageError(f"plans {list(given.shape)}, this world takes (plans, steps{', …' if space.shape else ''})")
    return stored_actions(given, space, tuple(given.shape[:2]), "plans")
