"""Transformer prior over a token grid, in raster order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldvq.models.config import PriorConfig
from worldvq.models.priors.contract import GridCache, Prior
from worldvq.nn.attention import Attention, FeedForward, PrefixCache, grid_angles


class TransformerPrior(Prior):
    """Causal transformer whose input at a position is the token before it, the position and the context there."""

    def __init__(self, config: PriorConfig, grid: tuple[int, int], num_codes: int, context_dim: int = 0):
        super().__init__()
        self.grid = grid
        self.num_codes = num_codes
        length = grid[0] * grid[1]
        self.embed = nn.Embedding(num_codes, config.width)
        self.begin = nn.Parameter(torch.zeros(config.width))
        self.position = nn.Parameter(0.02 * torch.randn(length, config.width))
        self.from_context = nn.Linear(context_dim, config.width) if context_dim else None
        self.attentions = nn.ModuleList(Attention(config.width, config.num_heads) for _ in range(config.num_blocks))
        self.feed_forwards = nn.ModuleList(FeedForward(config.width) for _ in range(config.num_blocks))
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, num_codes))
        angles = grid_angles(grid, config.width // config.num_heads)  # (N, D/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("causal", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        self.causal: Tensor

    def _conditioning(self, context: Tensor | None) -> Tensor:
        """Position and context of every place in raster order: (B or 1, N, width)."""
        return super()._conditioning(None if context is None else context.flatten(1, 2))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits (B, h, w, K); see :meth:`Prior.forward`."""
        before = self.embed(tokens.flatten(1))[:, :-1]  # (B, N-1, width)
        begin = self.begin.expand(len(tokens), 1, -1).to(before.dtype)
        x = torch.cat([begin, before], dim=1) + self._conditioning(context)  # (B, N, width)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            x = x + attention(x, self.cos, self.sin, self.causal)
            x = x + feed_forward(x)
        return self.head(x).unflatten(1, self.grid)

    def start(self, batch: int, context: Tensor | None = None) -> GridCache:
        """Return an empty key-value cache; see :meth:`Prior.start`."""
        return _TransformerCache(self, batch, self._conditioning(context))


class _TransformerCache:
    def __init__(self, prior: TransformerPrior, batch: int, conditioning: Tensor):
        self.prior = prior
        self.device = conditioning.device
        length = prior.grid[0] * prior.grid[1]
        self.conditioning = conditioning.expand(batch, -1, -1)  # (B, N, width)
        self.caches = [PrefixCache(batch, layer, length, conditioning) for layer in prior.attentions]  # type: ignore[arg-type]

    def logits(self, tokens: Tensor, first: int, last: int) -> Tensor:
        prior = self.prior
        before = prior.embed(tokens[:, max(first - 1, 0) : last - 1])  # the input of a position is the token before it
        if first == 0:
            before = torch.cat([prior.begin.expand(len(tokens), 1, -1).to(before.dtype), before], dim=1)
        x = before + self.conditioning[:, first:last]  # (B, n, width)
        for cache, attention, feed_forward in zip(self.caches, prior.attentions, prior.feed_forwards, strict=True):
            x = x + cache.attend(attention, x, first, prior.cos, prior.sin, prior.causal)  # type: ignore[arg-type]
            x = x + feed_forward(x)
        return prior.head(x)

    def keep(self, rows: Tensor) -> None:
        self.conditioning = self.conditioning[rows]
        for cache in self.caches:
            cache.keep(rows)
