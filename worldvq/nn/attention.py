"""Attention with rotary positions, for full passes and for one step at a time with a cache."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.nn.matrix import Matrix


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
    """Rotate channel pairs (2i, 2i + 1) of x (..., D) by the angles whose cos and sin (..., D/2) are given."""
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        x = x.float()  # products in bf16 would take longer
    pairs = x.unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        # One complex product: nearly twice as fast as its four real ones, which a compiler would fuse.
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)).flatten(-2)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head self-attention along one axis."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Matrix(width, 3 * width)
        self.out = Matrix(width, width)

    def project(self, x: Tensor, axis: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v (..., heads, N, head_dim) of x (..., width), one of whose axes has length N."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(axis, -2)
        q, k, v = qkv.unbind(-4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, axis: int = 1) -> Tensor:
        """Attend from q (..., heads, M, D) to k and v (..., heads, N, D), q and k rotated.

        Returns:
            (..., width), in which the axis of length M is where it was for :meth:`project`.
        """
        if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Backwards, the fused attention of a CPU takes three times as long in bf16 as in fp32, and this a half.
            scores = (q * self.head_dim**-0.5) @ k.mT  # (..., heads, M, N)
            if mask is not None:
                scores = scores + torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
            attended = scores.softmax(-1) @ v
        else:
            rows = (part.flatten(0, -4) for part in (q, k, v))
            attended = F.scaled_dot_product_attention(*rows, attn_mask=mask).unflatten(0, q.shape[:-3])
        return self.out(attended.movedim(-2, axis).flatten(-2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, axis: int = 1) -> Tensor:
        """Attend within x (..., width), along an axis of length N.

        Args:
            x: (B, N, width), or with another axis beside N.
            cos: (N, head_dim / 2), rotary.
            sin: (N, head_dim / 2), rotary.
            mask: (N, N) bool, True where the query (row) may see the key (column); None sees all.
            axis: Of x, along which it attends.

        Returns:
            Shape of x, to be added to it.
        """
        q, k, v = self.project(x, axis)
        return self.attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask, axis)


class FeedForward(nn.Sequential):
    """Norm, four times wider, ReLU, back; to be added to its input. GELU would cost a tenth of a CPU training step."""

    def __init__(self, width: int):
        super().__init__(
            nn.LayerNorm(width),
            Matrix(width, 4 * width),
            nn.ReLU(),
            Matrix(4 * width, width),
        )


class RingCache:
    """Keys and values of the last ``size`` steps, overwritten oldest first: flat memory, flat cost, fixed shapes.

    Keys are kept unrotated and rotated by their age when read, so positions stay small for ever.

    Attributes:
        keys: (rows, heads, size, head_dim).
        values: Likewise.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    @classmethod
    def empty(cls, rows: int, attention: Attention, size: int, like: Tensor) -> RingCache:
        """Return a cache of zeros for a layer, on the device and of the type of ``like``."""
        shape = (rows, attention.num_heads, size, attention.head_dim)
        return cls(like.new_zeros(shape), like.new_zeros(shape))

    def attend(self, attention: Attention, x: Tensor, slot: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Attend from one new step to itself and the steps before it within the ring; see :func:`ring_ages`.

        Args:
            attention: The layer this cache belongs to.
            x: (rows, 1, width), the new step.
            slot: (1,) int64, where it goes.
            cos: (size, head_dim / 2), of minus the age of each slot; the query has age 0.
            sin: (size, head_dim / 2), likewise.
            mask: (rows, 1, 1, size) bool, True where a slot holds a step of this row.

        Returns:
            (rows, 1, width), to be added to x.
        """
        q, k, v = attention.project(x)  # (rows, heads, 1, D)
        self.keys.index_copy_(2, slot, k.to(self.keys.dtype))
        self.values.index_copy_(2, slot, v.to(self.values.dtype))
        with torch.autocast(x.device.type, enabled=False):  # one question a ring: casting the ring takes longer
            return attention.attend(q.to(self.keys.dtype), rotate(self.keys, cos, sin), self.values, mask)

    def select(self, rows: Tensor) -> Self:
        """Return a copy of rows (n,) int64."""
        return type(self)(self.keys[rows], self.values[rows])

    def put(self, rows: Tensor, other: RingCache, turn: int) -> None:
        """Overwrite rows (n,) int64 by those of another cache that is ``turn`` steps behind this one."""
        self.keys[rows] = other.keys.roll(turn, 2)
        self.values[rows] = other.values.roll(turn, 2)


def ring_ages(step: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many steps ago each slot of a ring was written, once step ``step`` (1,) is in: (size,), and (1,) its slot."""
    slot = step % size
    return (slot - torch.arange(size, device=step.device)) % size, slot


class PrefixCache:
    """Keys and values of the tokens of a grid that are settled, for drawing it in parts."""

    def __init__(self, batch: int, attention: Attention, length: int, like: Tensor):
        shape = (batch, attention.num_heads, length, attention.head_dim)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows of the batch."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def attend(self, attention: Attention, x: Tensor, first: int, cos: Tensor, sin: Tensor, causal: Tensor) -> Tensor:
        """Attend from positions ``first`` on, each to itself and all before it.

        Args:
            attention: The layer this cache belongs to.
            x: (B, n, width), the positions ``first`` to ``first + n - 1`` in raster order.
            first: The first of them; those before are cached.
            cos: (N, head_dim / 2), rotary, of the whole grid.
            sin: (N, head_dim / 2), likewise.
            causal: (N, N) bool, True where the query (row) may see the key (column).

        Returns:
            (B, n, width), to be added to x.
        """
        last = first + x.shape[1]
        here = slice(first, last)
        q, k, v = attention.project(x)  # (B, heads, n, D)
        self.keys[:, :, here] = rotate(k, cos[here], sin[here])
        self.values[:, :, here] = v
        mask = None if x.shape[1] == 1 else causal[here, :last]
        return attention.attend(rotate(q, cos[here], sin[here]), self.keys[:, :, :last], self.values[:, :, :last], mask)
