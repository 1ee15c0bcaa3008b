"""How networks of embeddings and residual branches start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldvq.nn.attention import Attention, FeedForward
from worldvq.nn.merge import Merge
from worldvq.nn.recall import Recall


def start_as_embeddings(model: nn.Module) -> None:
    """Let residual branches start at zero, so that a network starts as the sum of its embeddings.

    Where positions are merged, what was merged is such a branch too: each position starts as its own token alone.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        if isinstance(module, Attention | Recall | Merge):
            nn.init.zeros_(module.out.weight)
        if isinstance(module, FeedForward):
            nn.init.zeros_(module[-1].weight)  # type: ignore[arg-type]


@torch.no_grad()
def start_like_codes(table: Tensor, codebook: Tensor) -> None:
    """Start the embeddings (K, width) of tokens as random projections of their codes (K, D): like codes start alike."""
    codes = (codebook - codebook.mean(0)) / codebook.std(0).clamp_min(1e-6)
    projection = torch.randn(codes.shape[1], table.shape[1], device=codes.device)
    table.copy_(codes @ projection / codes.shape[1] ** 0.5)
