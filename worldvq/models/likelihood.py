"""How probable frames are: a discretised logistic around what a decoder says, and the bound that codes give.

A tokenizer's posterior is deterministic, q(z|x) = 1 for z = z_q(x). So the evidence lower bound (van den Oord et al.
2017, section 3.2) has no entropy and no expectation: log p(x) >= log p(x|z_q(x)) + log p(z_q(x)), which is one term of
the sum log sum_z p(x|z) p(z).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldvq.models.tokenizer import Tokenizer
from worldvq.types import frames_to_model

BIN = 2 / 255
"""Width of one of the 256 values of a channel, in [-1, 1]."""
NARROWEST, WIDEST = math.log(BIN / 100), math.log(4.0)
"""Log scales between which :func:`fit_log_scale` looks."""
GOLDEN = (math.sqrt(5) - 1) / 2
BATCH = 64
"""Frames that are decoded at a time."""


class Bound(NamedTuple):
    """Nats of N frames; minus their sum is a lower bound on the log-likelihood.

    Attributes:
        reconstruction: (N,) float64, minus log p(x|z_q(x)).
        prior: (N,) float64, minus log p(z_q(x)).
    """

    reconstruction: Tensor
    prior: Tensor


def logistic_nats(frames: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log-likelihood of every value under a discretised logistic (Salimans et al. 2017, PixelCNN++, eq. 2).

    A value's probability is that of its bin of width 2/255; the bins of 0 and 255 reach to minus and plus infinity, so
    those of all 256 values add up to one.

    Args:
        frames: (..., 3, H, W) in [-1, 1], of 256 values.
        mean: Likewise, any number.
        log_scale: (3,), log of the scale s of each channel.

    Returns:
        (..., 3, H, W) in nats.
    """
    scale = log_scale.exp()[:, None, None]
    above, below = (frames - mean + BIN / 2) / scale, (frames - mean - BIN / 2) / scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): a sum of logs in which nothing cancels.
    to_the_left, to_the_right = F.logsigmoid(above), F.logsigmoid(-below)
    inner = to_the_left + to_the_right + torch.log(-torch.expm1(-BIN / scale))
    inner = torch.where(frames < -1 + BIN / 2, to_the_left, inner)
    return -torch.where(frames > 1 - BIN / 2, to_the_right, inner)


def fit_log_scale(frames: Tensor, mean: Tensor, steps: int = 20) -> Tensor:
    """Return the most probable log scale (3,) of each channel, by golden section.

    A logistic's density is log-concave, so the likelihood has one maximum in the scale.

    Args:
        frames: (N, 3, H, W) in [-1, 1].
        mean: Likewise, what is said of them.
        steps: Of the search; each narrows it by a factor of 0.62.
    """

    def nats(log_scale: Tensor) -> Tensor:
        total = torch.zeros(3, dtype=torch.float64)
        for part, said in zip(frames.split(BATCH), mean.split(BATCH), strict=True):
            total += logistic_nats(part, said, log_scale.float()).double().sum((0, 2, 3))
        return total

    low, high = (torch.full((3,), edge, dtype=torch.float64) for edge in (NARROWEST, WIDEST))
    for _ in range(steps):
        reach = GOLDEN * (high - low)
        left, right = high - reach, low + reach
        smaller = nats(left) < nats(right)  # the minimum is left of the right point
        low, high = torch.where(smaller, low, left), torch.where(smaller, right, high)
    return ((low + high) / 2).float()


@torch.no_grad()
def decode_means(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """Return what the decoder says of tokens (N, h, w), unrounded: (N, 3, H, W) float32 on the CPU."""
    return torch.cat([tokenizer.decode(part.to(tokenizer.device)).float().cpu() for part in tokens.split(BATCH)])


@torch.no_grad()
def bound(
    tokenizer: Tokenizer,
    frames: Tensor,
    tokens: Tensor,
    log_scale: Tensor,
    prior_nats: Callable[[Tensor], Tensor],
) -> Bound:
    """Bound the likelihood of frames by that of one code grid each.

    Args:
        tokenizer: Whose decoder is p(x|z).
        frames: (N, H, W, 3) uint8.
        tokens: (N, h, w), any z; the tokenizer's own makes the bound of the paper.
        log_scale: (3,), see :func:`logistic_nats`.
        prior_nats: From tokens (N, h, w) to minus log p(z), (N,).
    """
    parts = zip(frames.split(BATCH), decode_means(tokenizer, tokens).split(BATCH), strict=True)
    nats = [logistic_nats(frames_to_model(x), mean, log_scale).double().sum((1, 2, 3)) for x, mean in parts]
    return Bound(torch.cat(nats), prior_nats(tokens).double().cpu())


def uniform_nats(num_codes: int) -> Callable[[Tensor], Tensor]:
    """Return the prior under which all K codes are equally probable at every place."""
    return lambda tokens: torch.full((len(tokens),), tokens[0].numel() * math.log(num_codes), dtype=torch.float64)
