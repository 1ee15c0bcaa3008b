"""Attention with rotary positions, for full passes and for one step at a time with a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary_angles(positions: Tensor, head_dim: int, base: float = 100.0) -> Tensor:
    """Angles of rotary position embedding (Su et al. 2021, eq. 15).

    Args:
        positions: (..., A) float positions along A axes; each axis gets an equal share of the channels.
        head_dim: Channels of a head; divisible by 2 A.
        base: Longest wavelength in steps, over 2 pi. Grids and windows here are short.

    Returns:
        (..., head_dim / 2) angles in radians.
    """
    axes = positions.shape[-1]
    count = head_dim // (2 * axes)
    if count * 2 * axes != head_dim:
        raise ValueError(f"head_dim {head_dim} is not divisible by {2 * axes}: choose width and num_heads accordingly")
    frequency = base ** (-torch.arange(count, dtype=torch.float32, device=positions.device) / count)  # (count,)
    return (positions[..., None] * frequency).flatten(-2)


def grid_angles(grid: tuple[int, int], head_dim: int) -> Tensor:
    """Rotary angles (h*w, head_dim / 2) of a grid's positions in raster order."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return rotary_angles(torch.stack([rows, columns], dim=-1).reshape(-1, 2).float(), head_dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + D/2) of x (..., D) by the angles whose cos and sin (..., D/2) are given."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention over the second-to-last axis."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v (..., heads, N, head_dim) of x (..., N, width)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, self.head_dim))  # (..., N, 3, heads, D)
        q, k, v = qkv.unbind(-3)
        return q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)

    def merge(self, heads: Tensor) -> Tensor:
        """Project attended values (..., heads, N, head_dim) back to (..., N, width)."""
        return self.out(heads.transpose(-3, -2).flatten(-2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within x (B, N, width).

        Args:
            x: (B, N, width).
            cos: (N, head_dim / 2), rotary.
            sin: (N, head_dim / 2), rotary.
            mask: (N, N) bool, True where the query (row) may see the key (column); None sees all.

        Returns:
            (B, N, width), to be added to x.
        """
        q, k, v = self.project(x)
        return self.merge(F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask))


class FeedForward(nn.Sequential):
    """Norm, four times wider, ReLU, back; to be added to its input. GELU would cost a tenth of a CPU training step."""

    def __init__(self, width: int):
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
        )


class RingCache:
    """Keys and values of the last ``size`` steps, overwritten oldest first: flat memory, flat cost.

    Keys are kept unrotated and rotated by their age when read, so positions stay small for ever.
    """

    def __init__(self, rows: int, attention: Attention, size: int, like: Tensor):
        shape = (rows, attention.num_heads, size, attention.head_dim)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.size = size

    def attend(self, attention: Attention, x: Tensor, step: int) -> Tensor:
        """Attend from one new step to itself and the steps before it within the ring.

        Args:
            attention: The layer this cache belongs to.
            x: (rows, 1, width), the new step.
            step: Its number, counted from 0.

        Returns:
            (rows, 1, width), to be added to x.
        """
        q, k, v = attention.project(x)  # (rows, heads, 1, D)
        slot = step % self.size
        self.keys[:, :, slot] = k[:, :, 0]
        self.values[:, :, slot] = v[:, :, 0]
        filled = min(step + 1, self.size)
        ages = (step - torch.arange(filled, device=x.device)) % self.size  # (filled,) of slot i
        angles = rotary_angles(-ages.float()[:, None], attention.head_dim)  # (filled, D/2); the query has age 0
        keys = rotate(self.keys[:, :, :filled], angles.cos(), angles.sin())
        return attention.merge(F.scaled_dot_product_attention(q, keys, self.values[:, :, :filled]))


class PrefixCache:
    """Keys and values of the tokens drawn so far, for drawing a grid token by token."""

    def __init__(self, batch: int, attention: Attention, length: int, like: Tensor):
        shape = (batch, attention.num_heads, length, attention.head_dim)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)

    def attend(self, attention: Attention, x: Tensor, index: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend from position ``index`` to itself and all before it.

        Args:
            attention: The layer this cache belongs to.
            x: (B, 1, width), the new position.
            index: Its place in raster order.
            cos: (1, head_dim / 2), rotary, of this position.
            sin: (1, head_dim / 2), rotary, of this position.

        Returns:
            (B, 1, width), to be added to x.
        """
        q, k, v = attention.project(x)  # (B, heads, 1, D)
        self.keys[:, :, index : index + 1] = rotate(k, cos, sin)
        self.values[:, :, index : index + 1] = v
        seen = slice(0, index + 1)
        return attention.merge(
            F.scaled_dot_product_attention(rotate(q, cos, sin), self.keys[:, :, seen], self.values[:, :, seen])
        )
