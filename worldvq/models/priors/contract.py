"""The contract of every autoregressive model over a token grid; how to draw from one is in sampling.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn


class GridCache(Protocol):
    """What a prior remembers of the tokens of a grid that are settled.

    Attributes:
        device: Where it computes.
    """

    device: torch.device

    def logits(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Return the logits (B, last - first, K) of positions ``first`` to ``last - 1`` in raster order.

        Every position before ``first`` has been asked for since its tokens last changed: it is not computed again.
        Later ones may be asked for again with other tokens; ``first`` never falls.

        Args:
            tokens: (B, h*w) int64, of which only those before ``last - 1`` are looked at.
            first: Place in raster order.
            last: One past the last place; > ``first``.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Forget all rows of the batch but these, (B,) bool."""
        ...


class Prior(nn.Module, ABC):
    """A categorical model over a token grid in raster order, given an optional feature map aligned with it."""

    grid: tuple[int, int]
    num_codes: int
    embed: nn.Embedding
    position: Tensor
    from_context: nn.Linear | None

    def _conditioning(self, context: Tensor | None) -> Tensor:
        """What every place is told of its position and context: (B or 1, ..., width) of context (B, ..., D)."""
        if (context is None) != (self.from_context is None):
            raise ValueError("this prior was built " + ("with" if self.from_context else "without") + " a context")
        if self.from_context is None or context is None:
            return self.position[None]
        return self.position + self.from_context(context)

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
    def start(self, batch: int, context: Tensor | None = None) -> GridCache:
        """Return an empty cache for drawing ``batch`` grids given their context (B, h, w, D)."""
