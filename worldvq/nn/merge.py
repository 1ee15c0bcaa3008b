"""Squares of a grid's positions as one each: what looks far works on few positions, and what draws on all of them."""

from __future__ import annotations

from torch import Tensor, nn

from worldvq.nn.attention import FeedForward
from worldvq.nn.matrix import Matrix


class Merge(nn.Module):
    """Positions (h, w) to (h/s, w/s) and back, as Swin Transformers merge patches (Liu et al. 2021, section 3.1).

    What was merged forgets which token stood where in its square. So on the way back every position is given what it
    had before, and a feed-forward layer of its own puts the two together.
    """

    def __init__(self, grid: tuple[int, int], side: int, width: int):
        super().__init__()
        self.side, self.rows, self.columns = side, grid[0] // side, grid[1] // side
        self.into = Matrix(side**2 * width, width)
        self.out = Matrix(width, side**2 * width)
        self.feed_forward = FeedForward(width)
        self.norm = nn.LayerNorm(width)

    def join(self, x: Tensor) -> Tensor:
        """Merge positions (..., N, width), in raster order: (..., N / side^2, width)."""
        squares = x.unflatten(-2, (self.rows, self.side, self.columns, self.side)).transpose(-4, -3)
        return self.into(squares.flatten(-5, -4).flatten(-3))

    def split(self, x: Tensor, before: Tensor) -> Tensor:
        """Return what stands at every position (..., N, width), of squares (..., N / side^2, width) and ``before``.

        Args:
            x: What is known of the squares.
            before: (..., N, width), what is known of each position by itself.
        """
        squares = self.out(x).unflatten(-1, (self.side, self.side, -1)).unflatten(-4, (self.rows, self.columns))
        x = before + squares.transpose(-4, -3).flatten(-5, -2)
        return self.norm(x + self.feed_forward(x))
