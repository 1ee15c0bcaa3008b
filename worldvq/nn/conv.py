"""Convolutional parts: residual blocks and resampling by space-to-depth."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Pre-activation residual block: norm, 3x3, ReLU, 1x1. Shape (B, C, H, W) in and out."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(min(8, width), width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        return x + self.body(x)


def down(in_width: int, out_width: int) -> nn.Conv2d:
    """Halve the resolution: (B, in, H, W) to (B, out, H/2, W/2)."""
    return nn.Conv2d(in_width, out_width, 4, stride=2, padding=1)


def up(in_width: int, out_width: int) -> nn.Sequential:
    """Double the resolution: 3x3 convolution, then depth to space (Shi et al. 2016): no checkerboard, cheap."""
    return nn.Sequential(nn.Conv2d(in_width, 4 * out_width, 3, padding=1), nn.PixelShuffle(2))
