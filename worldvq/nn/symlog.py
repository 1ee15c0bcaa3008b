"""Rewards as distributions (Hafner et al. 2023, Mastering Diverse Domains through World Models, eqs. 8-10).

The bins are equally spaced in symlog units, sign(x) log(1 + |x|): they hold rewards of any scale. Cross-entropy with
them learns a rare reward at the pace of its probability, whatever its size, where a regression takes steps as long as
its error.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_BINS = 255
LIMIT = 20.0
"""Of the bins, in symlog units: rewards of up to 4.9e8 either way."""


def _positive_bins(device: torch.device) -> Tensor:
    """The rewards of the bins above zero, ascending; those below are their negatives, and one is zero."""
    return torch.linspace(0, LIMIT, NUM_BINS // 2 + 1, device=device)[1:].expm1()


def two_hot(rewards: Tensor) -> Tensor:
    """Weights (..., bins) float32 on the two bins around each reward, so that their mean is the reward.

    Rewards beyond the last bin count as the last bin.
    """
    rewards = rewards.float().contiguous()
    positive = _positive_bins(rewards.device)
    bins = torch.cat([-positive.flip(0), positive.new_zeros(1), positive])
    above = torch.searchsorted(bins, rewards).clamp(1, NUM_BINS - 1)
    low, high = bins[above - 1], bins[above]
    share = ((rewards - low) / (high - low)).clamp(0, 1)
    weights = torch.stack([1 - share, share], -1)
    return weights.new_zeros(*rewards.shape, NUM_BINS).scatter(-1, torch.stack([above - 1, above], -1), weights)


def reward_nats(logits: Tensor, rewards: Tensor) -> Tensor:
    """Cross-entropy (...) of logits (..., bins) with the two-hot weights of rewards (...), in nats."""
    return -(two_hot(rewards) * logits.float().log_softmax(-1)).sum(-1)


def expected_reward(logits: Tensor) -> Tensor:
    """Mean reward (...) float32 under logits (..., bins).

    The far bins are so large that little probability there outweighs all else; what the two sides hold alike must
    cancel. So each bin is first set off against its negative: logits that favour no side give exactly zero.
    """
    below, _, above = logits.float().softmax(-1).split([NUM_BINS // 2, 1, NUM_BINS // 2], -1)
    return ((above - below.flip(-1)) * _positive_bins(logits.device)).sum(-1)
