"""A world as the solvers of stable-worldmodel take one: candidates of actions in, costs out.

Their protocol is structural (``stable_worldmodel.protocols.Costable``, version 0.1): nothing is imported from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldvq.errors import UsageError
from worldvq.nn.symlog import expected_reward
from worldvq.planning.rollout import forecast_plans, survived_return
from worldvq.world.dream import Dream

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel


class CostModel:
    """What CEM, MPPI, gradient and categorical solvers of stable-worldmodel ask of a world model.

    ``info_dict`` holds ``pixels`` (B, S, T, H, W, 3) uint8, the same for all S candidates; where T > 1,
    ``past_actions`` (B, S, T - 1, ...), the stored actions between; and, if a frame is to be reached, ``goal``
    (B, S, 1, H, W, 3) uint8. Candidates are (B, S, H, D): of a box the numbers themselves, clipped to its bounds; else
    D is the number of choices of all factors together, and the largest entry of a factor's is the choice, as one-hot
    rows and points of a simplex have it. D may be several steps in a row (``action_block``).

    Plans are dreamt with the forecast head. Costs have a gradient where candidates ask for one: clipping, choices and
    tokens are passed straight through. The world's dynamics is frozen, so that solvers leave no gradients in it.
    """

    def __init__(self, world: WorldModel):
        self.world = world
        world.dynamics.requires_grad_(False)

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """Return the costs (B, S): minus the predicted return, or the distance to the goal in code space.

        Raises:
            UsageError: Pixels or candidates are not as the class says.
        """
        return self.criterion(self.rollout(info_dict, action_candidates))

    def rollout(self, info_dict: dict[str, Any], action_candidates: Tensor) -> dict[str, Any]:
        """Dream the candidates.

        Returns:
            ``info_dict``, with ``predicted_return`` (B, S) and ``predicted_codes`` (B, S, D, h, w) of the last frames.
        """
        pixels = info_dict["pixels"]
        if pixels.dtype != torch.uint8 or pixels.ndim != 6:
            dtype = str(pixels.dtype).removeprefix("torch.")
            raise UsageError(f"pixels are {dtype}{list(pixels.shape)}, uint8 (B, S, T, H, W, 3) as recorded are needed")
        hard, soft = self._steps(action_candidates)
        past = info_dict.get("past_actions")
        space = self.world.action_space
        returns, codes = [], []
        for row in range(len(pixels)):
            between = torch.zeros(0, *space.shape) if past is None else past[row, 0]
            dream = self.world.start(pixels[row, :1], between[None], precision="no")
            if torch.is_grad_enabled() and soft.requires_grad:
                worth, last = _differentiable(dream, soft[row])
            else:
                outcome = forecast_plans(dream, hard[row])
                worth = survived_return(outcome.rewards, outcome.termination)
                last = self._codes(outcome.tokens[:, -1])
            returns.append(worth.to(action_candidates.device))
            codes.append(last.to(action_candidates.device))
        return {**info_dict, "predicted_return": torch.stack(returns), "predicted_codes": torch.stack(codes)}

    def criterion(self, info_dict: dict[str, Any]) -> Tensor:
        """Return the costs (B, S) of what :meth:`rollout` predicted."""
        goal = info_dict.get("goal")
        if goal is None:
            return -info_dict["predicted_return"]
        wanted, codes = self._codes(self.world.tokenize(goal[:, 0, -1:])[:, 0]), info_dict["predicted_codes"]
        return (codes - wanted.to(codes.device)[:, None]).square().mean((2, 3, 4))

    @torch.no_grad()
    def _codes(self, tokens: Tensor) -> Tensor:
        seen = self.world.dynamics.layout.seen(tokens)
        return self.world.tokenizer.quantizer.lookup(seen.to(self.world.device))

    def _steps(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Return candidates as stored actions (B, S, H, ...), and embedded with a gradient (B, S, H, width)."""
        space, embed = self.world.action_space, self.world.dynamics.embed_action
        width = len(space.low) or sum(space.nvec)
        if candidates.ndim != 4 or candidates.shape[-1] % width:
            raise UsageError(
                f"candidates {list(candidates.shape)}, this world takes (B, S, H, D) with D = {width} numbers a step, "
                "or several steps in a row"
            )
        values = candidates.unflatten(-1, (-1, width)).flatten(2, 3).float().to(self.world.device)  # (B, S, H, width)
        if space.kind == "box":
            low, high = (torch.tensor(side, device=values.device) for side in (space.low, space.high))
            hard = values.detach().clamp(low, high)
            return hard, embed(hard + values - values.detach())
        choices = [part.argmax(-1) for part in values.split(space.nvec, -1)]
        rows = torch.cat([F.one_hot(one, n) for one, n in zip(choices, space.nvec, strict=True)], -1)
        table: Tensor = embed.map.weight  # type: ignore[assignment]
        hard = torch.stack(choices, -1) if space.kind == "multi_discrete" else choices[0]
        return hard, (rows + values - values.detach()) @ table


def _differentiable(dream: Dream, taken: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`forecast_plans`, with a gradient for the embedded actions (S, H, width).

    Returns:
        The returns (S,) and the codes (S, D, h, w) of the last frames.
    """
    dynamics, codebook = dream.engine.dynamics, dream.engine.tokenizer.quantizer.codebook
    rows = torch.zeros(len(taken), dtype=torch.int64, device=taken.device)
    state, frame = dream.state.select(rows), dynamics.embed(dream.tokens[rows].flatten(1))  # (S, N, width)
    rewards, ends = [], []
    everyone = torch.arange(len(taken), device=taken.device)
    for step in range(taken.shape[1]):
        state = state.select(everyone)  # a copy: what a gradient needs is not to be overwritten
        output = dynamics.advance(frame, taken[:, step], state)
        shares = dynamics.forecast(output.context[:, 0]).softmax(-1)  # (S, h, w, K)
        drawn = F.one_hot(shares.argmax(-1), shares.shape[-1]) + shares - shares.detach()
        frame = drawn.flatten(1, 2) @ dynamics.embed.weight
        rewards.append(expected_reward(output.rewards[:, 0]))
        ends.append(output.termination[:, 0].float().sigmoid())
    seen = drawn[:, : dream.engine.layout.frame[0], :, : len(codebook)]
    codes = (seen @ codebook.detach()).movedim(-1, 1)
    return survived_return(torch.stack(rewards, 1), torch.stack(ends, 1)), codes
