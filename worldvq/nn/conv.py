"""Convolutional parts: convolutions whose kernels are matrices, and residual blocks.

Images are (B, C, H, W), sound is (B, C, T).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Module):
    """Convolution whose kernel is a matrix (out, size * size * in); it divides the size by ``stride``.

    As a matrix Muon can orthogonalise its updates, and reshaped it is laid out channels-last.
    """

    def __init__(self, in_width: int, out_width: int, size: int, stride: int = 1):
        super().__init__()
        self.size, self.stride = size, stride
        fan_in = size * size * in_width
        self.weight = nn.Parameter(torch.randn(out_width, fan_in) / fan_in**0.5)
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, in, H, W) to (B, out, H / stride, W / stride)."""
        kernel = self.weight.unflatten(1, (self.size, self.size, -1)).permute(0, 3, 1, 2)  # (out, in, size, size)
        return F.conv2d(x, kernel, self.bias, self.stride, padding=(self.size - 1) // 2)


class TransposedConvolution(nn.Module):
    """Transposed convolution of a 4x4 kernel that doubles the size; its kernel is a matrix (in, 4 * 4 * out)."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        # Of the 16 taps of a kernel four meet at any one pixel.
        self.weight = nn.Parameter(torch.randn(in_width, 16 * out_width) / (4 * in_width) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        """Raise x (B, in, H, W) to (B, out, 2H, 2W)."""
        kernel = self.weight.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # (in, out, 4, 4)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class Convolution1d(nn.Module):
    """Convolution over time whose kernel is a matrix (out, size * in); it divides the length by ``stride``.

    Without a stride a kernel of an odd size is centred. With one, windows of ``size`` twice the stride are centred on
    the ``stride`` steps that they stand for.
    """

    def __init__(self, in_width: int, out_width: int, size: int, stride: int = 1):
        super().__init__()
        self.size, self.stride = size, stride
        fan_in = size * in_width
        self.weight = nn.Parameter(torch.randn(out_width, fan_in) / fan_in**0.5)
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, in, T) to (B, out, T / stride)."""
        kernel = self.weight.unflatten(1, (self.size, -1)).permute(0, 2, 1)  # (out, in, size)
        margin = self.size - self.stride
        return F.conv1d(F.pad(x, (margin // 2, margin - margin // 2)), kernel, self.bias, self.stride)


class ResidualBlock(nn.Module):
    """Residual block: ReLU, 3x3, ReLU, 1x1, as in the VQ-VAE paper. Shape (B, C, H, W) in and out."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            Convolution(width, width, 3),
            nn.ReLU(),
            Convolution(width, width, 1),
        )
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        return x + self.body(x)


def down(in_width: int, out_width: int, factor: int) -> nn.Sequential:
    """Lower the resolution: (B, in, H, W) to (B, out, H/factor, W/factor), a matrix for every patch."""
    return nn.Sequential(nn.PixelUnshuffle(factor), Convolution(factor * factor * in_width, out_width, 1))


def up(in_width: int, out_width: int, factor: int, size: int = 1) -> nn.Sequential:
    """Raise the resolution: convolve, then depth to space (Shi et al. 2016): no checkerboard, cheap."""
    return nn.Sequential(Convolution(in_width, factor * factor * out_width, size), nn.PixelShuffle(factor))
