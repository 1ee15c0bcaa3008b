"""The contract of every autoregressive model over a token grid, and sampling that works for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from worldvq.config import SamplingConfig


class StepCache(Protocol):
    """What a prior remembers of the tokens drawn so far in a grid."""

    def step(self, previous: Tensor | None, index: int) -> Tensor:
        """Return the logits (B, K) of position ``index``.

        Args:
            previous: (B,) the token at ``index - 1``, None at index 0.
            index: Place in raster order; called for 0, 1, 2 … in turn.
        """
        ...


class Prior(nn.Module, ABC):
    """A categorical model over a token grid in raster order, given an optional feature map aligned with it."""

    grid: tuple[int, int]
    num_codes: int

    @abstractmethod
    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the logits of every position; none sees its own token or a later one.

        Args:
            tokens: (B, h, w) int64.
            context: (B, h, w, D) features, or None.

        Returns:
            (B, h, w, K).
        """

    @abstractmethod
    def start(self, batch: int, context: Tensor | None = None) -> StepCache:
        """Return an empty cache for drawing ``batch`` grids given their context (B, h, w, D)."""


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise on the generator's device: argmax(logits + noise) is a sample of softmax(logits)."""
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    tiny = torch.finfo(torch.float32).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()


def truncate(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return float logits (..., K) over temperature, with what top-k and top-p leave out at minus infinity."""
    logits = logits.float()
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the more probable ones
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


@torch.no_grad()
def sample(
    prior: Prior, batch: int, context: Tensor | None, sampling: SamplingConfig, generator: torch.Generator
) -> Tensor:
    """Draw token grids one token after the other (ancestral sampling).

    All noise is drawn first, so a grid is a function of the noise and the model alone.

    Args:
        prior: The model.
        batch: Number of grids B.
        context: (B, h, w, D) or None.
        sampling: Temperature and truncation; temperature 0 takes the most probable token.
        generator: Source of the noise, on any device.

    Returns:
        (B, h, w) int64.
    """
    height, width = prior.grid
    device = next(prior.parameters()).device
    noise = None
    if sampling.temperature > 0:
        noise = gumbel_noise((height * width, batch, prior.num_codes), generator).to(device)
    cache = prior.start(batch, context)
    tokens = torch.empty(height * width, batch, dtype=torch.int64, device=device)
    for index in range(height * width):
        logits = truncate(cache.step(tokens[index - 1] if index else None, index), sampling)  # (B, K)
        tokens[index] = (logits if noise is None else logits + noise[index]).argmax(-1)
    return tokens.T.reshape(batch, height, width)
