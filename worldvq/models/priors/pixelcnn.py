"""Gated PixelCNN prior over a token grid.

After van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders. Two stacks of convolutions, so that
there is no blind spot: the vertical one sees the rows above; the horizontal one sees what is to the left in the row and
reads the vertical one. What a mask would hide lies outside the kernels: masks A and B are kernels of two sizes,
in which every weight is used.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.models.config import PriorConfig
from worldvq.models.priors.contract import GridCache, Prior
from worldvq.nn.matrix import Matrix


def gate(features: Tensor) -> Tensor:
    """Return tanh(a) * sigmoid(b) of features (..., 2 C), the halves a and b: (..., C) (eq. 2)."""
    a, b = features.chunk(2, dim=-1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2), channels last, with kernels of taps x 3 (vertical) and 1 x taps.

    Mask A leaves out a position's own input (of the vertical stack: that of its row): for the first layer, to which it
    is the very token to predict. Mask B keeps it: for the others, whose input no longer holds that token (van den Oord
    et al. 2016, Pixel Recurrent Neural Networks, section 3.4). Both reach one step back.

    Attributes:
        taps: Rows or columns that a kernel sees: 1 under mask A, 2 under mask B.
    """

    def __init__(self, width: int, mask: Literal["A", "B"]):
        super().__init__()
        self.taps = taps = 1 if mask == "A" else 2
        # The convolutions' weights are kept as matrices, taps in raster order: what optimizers for matrices work on.
        self.vertical = Matrix(taps * 3 * width, 2 * width)
        self.horizontal = Matrix(taps * width, 2 * width)
        self.link = Matrix(2 * width, 2 * width)
        self.condition = Matrix(width, 4 * width)  # V of eq. 4, of the vertical and the horizontal stack
        self.out = Matrix(width, 2 * width)
        for matrix in (self.vertical, self.horizontal, self.link, self.condition, self.out):
            nn.init.normal_(matrix.weight, std=matrix.in_features**-0.5)  # learns faster than PyTorch's smaller start
        if mask == "B":  # residual branches start at zero; under mask A there is none: the input is what to predict
            nn.init.zeros_(self.out.weight[:width])

    def look_up(self, above: Tensor) -> Tensor:
        """Convolve n rows of the vertical stack.

        Args:
            above: (B, n + taps - 1, w, C), the input from the row before the first of them on.

        Returns:
            (B, n, w, 2 C).
        """
        kernel = self.vertical.weight.unflatten(1, (self.taps, 3, -1)).permute(0, 3, 1, 2)  # (2 C, C, taps, 3)
        return F.conv2d(above.permute(0, 3, 1, 2), kernel, padding=(0, 1)).permute(0, 2, 3, 1)

    def look_left(self, left: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Run the horizontal stack over m columns of n rows.

        Args:
            left: (B, n, m + taps - 1, C), the input from the column before the first of them on.
            given: (B, n, m, 2 C), what comes from the vertical stack and the conditioning.

        Returns:
            The layer's output and its skip connection, (B, n, m, C) each.
        """
        columns = given.shape[2]
        parts = [left[:, :, j : j + columns] for j in range(self.taps)]
        inputs = torch.cat(parts, dim=-1) if self.taps == 2 else left  # (B, n, m, taps * C)
        residual, skip = self.out(gate(self.horizontal(inputs) + given)).chunk(2, dim=-1)
        return (residual + left[:, :, 1:] if self.taps == 2 else residual), skip


class PixelCNN(Prior):
    """Gated PixelCNN with ``num_blocks`` layers; a position sees that many rows up and columns to either side."""

    def __init__(self, config: PriorConfig, grid: tuple[int, int], num_codes: int, context_dim: int = 0):
        super().__init__()
        self.grid = grid
        self.num_codes = num_codes
        self.embed = nn.Embedding(num_codes, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(*grid, config.width))
        self.from_context = nn.Linear(context_dim, config.width) if context_dim else None
        self.layers: list[GatedLayer] = nn.ModuleList(  # type: ignore[assignment]
            GatedLayer(config.width, "B" if i else "A") for i in range(config.num_blocks)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(config.width, num_codes))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits (B, h, w, K); see :meth:`Prior.forward`."""
        conditioning = self._conditioning(context)  # s in eq. 4
        vertical = horizontal = self.embed(tokens)  # (B, h, w, C)
        skips: list[Tensor] = []
        for layer in self.layers:
            # A row or a column of zeros in front; the first layer drops the last one, which is nobody's past.
            above = F.pad(vertical, (0, 0, 0, 0, 1, layer.taps - 2))  # (B, h + taps - 1, w, C)
            left = F.pad(horizontal, (0, 0, 1, layer.taps - 2))  # (B, h, w + taps - 1, C)
            for_vertical, for_horizontal = layer.condition(conditioning).chunk(2, dim=-1)
            features = layer.look_up(above) + for_vertical
            horizontal, skip = layer.look_left(left, layer.link(features) + for_horizontal)
            skips.append(skip)
            if len(skips) < len(self.layers):
                vertical = gate(features)
        return self.head(reduce(torch.add, skips))

    def start(self, batch: int, context: Tensor | None = None) -> GridCache:
        """Return an empty cache of both stacks; see :meth:`Prior.start`."""
        return _PixelCNNCache(self, batch, self._conditioning(context))


class _PixelCNNCache:
    """Every layer's inputs, with the row and the column of zeros in front, and what its horizontal stack is given."""

    def __init__(self, prior: PixelCNN, batch: int, conditioning: Tensor):
        self.prior = prior
        self.device = conditioning.device
        (height, width), channels = prior.grid, conditioning.shape[-1]
        self.conditions = [layer.condition(conditioning).expand(batch, -1, -1, -1) for layer in prior.layers]
        self.above = [conditioning.new_zeros(batch, 1 + height, width, channels) for _ in prior.layers]
        self.left = [conditioning.new_zeros(batch, height, 1 + width, channels) for _ in prior.layers]
        self.given = [conditioning.new_zeros(batch, height, width, 2 * channels) for _ in prior.layers]
        places = torch.arange(height * width, device=self.device)
        self.places = places + places // width + 1  # of the tokens in ``left``, whose rows are one longer

    def logits(self, tokens: Tensor, first: int, last: int) -> Tensor:
        width = self.prior.grid[1]
        self._embed(tokens, max(first - 1, 0), last - 1)
        top, bottom = first // width, (last - 1) // width + 1
        # Of a row, the vertical stack needs the rows above alone: where the row has been begun, they are settled.
        self._look_up(-(-first // width), bottom)
        if last - first == 1:
            with torch.autocast(self.device.type, enabled=False):  # casting the weights takes longer than multiplying
                return self.prior.head(self._look_left_once(top, first % width))[:, None]
        start, stop = (first % width, (last - 1) % width + 1) if bottom - top == 1 else (0, width)
        skips: list[Tensor] = []  # (B, rows, columns, C) each
        for i, layer in enumerate(self.prior.layers):
            left = self.left[i][:, top:bottom, start : stop + layer.taps - 1]
            output, skip = layer.look_left(left, self.given[i][:, top:bottom, start:stop])
            skips.append(skip)
            if i + 1 < len(self.left):
                self.left[i + 1][:, top:bottom, start + 1 : stop + 1] = output
        offset = first - top * width - start
        return self.prior.head(reduce(torch.add, skips).flatten(1, 2)[:, offset : offset + last - first])

    def _embed(self, tokens: Tensor, begin: int, end: int) -> None:
        """Take in the tokens from ``begin`` to ``end - 1``, the only ones that may be new."""
        if begin == end:
            return
        embedded, width = self.prior.embed(tokens[:, begin:end]), self.prior.grid[1]  # (B, end - begin, C)
        self.above[0].flatten(1, 2)[:, width + begin : width + end] = embedded
        self.left[0].flatten(1, 2).index_copy_(1, self.places[begin:end], embedded)

    def _look_left_once(self, row: int, column: int) -> Tensor:
        """Run the horizontal stack at one place, in as few operations as it takes: (B, C), the sum of the skips."""
        skips: list[Tensor] = []
        for i, layer in enumerate(self.prior.layers):
            here = self.left[i][:, row, column : column + layer.taps]  # (B, taps, C)
            features = torch.addmm(self.given[i][:, row, column], here.flatten(1), layer.horizontal.weight.T)
            output, skip = layer.out(gate(features)).chunk(2, dim=-1)  # (B, C) each
            skips.append(skip)
            if i + 1 < len(self.left):
                output = output + here[:, 1] if layer.taps == 2 else output
                self.left[i + 1][:, row, column + 1] = output
        return reduce(torch.add, skips)

    def _look_up(self, top: int, bottom: int) -> None:
        """Compute the vertical stack of the rows from ``top`` to ``bottom - 1``, if any."""
        if top >= bottom:
            return
        for i, layer in enumerate(self.prior.layers):
            for_vertical, for_horizontal = self.conditions[i][:, top:bottom].chunk(2, dim=-1)
            features = layer.look_up(self.above[i][:, top : bottom + layer.taps - 1]) + for_vertical
            self.given[i][:, top:bottom] = layer.link(features) + for_horizontal
            if i + 1 < len(self.above):
                self.above[i + 1][:, top + 1 : bottom + 1] = gate(features)

    def keep(self, rows: Tensor) -> None:
        for states in (self.conditions, self.above, self.left, self.given):
            states[:] = [state[rows] for state in states]
