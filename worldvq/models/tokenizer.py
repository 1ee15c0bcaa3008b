"""The frame-level VQ-VAE (van den Oord, Vinyals, Kavukcuoglu 2017): a frame becomes a small grid of tokens."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldvq.config import TokenizerConfig
from worldvq.nn.conv import ResidualBlock, down, up
from worldvq.nn.quantizer import VectorQuantizer


class Reconstruction(NamedTuple):
    """What a training pass through the tokenizer gives.

    Attributes:
        frames: (B, 3, H, W) in about [-1, 1].
        tokens: (B, h, w) int64.
        commitment_loss: Scalar, without its weight beta.
    """

    frames: Tensor
    tokens: Tensor
    commitment_loss: Tensor


def _stage_widths(config: TokenizerConfig) -> list[int]:
    """Channels after each halving: width, 2 width, 4 width, 4 width."""
    num_stages = config.downsample.bit_length() - 1
    return [min(config.width * 2**stage, config.width * 4) for stage in range(num_stages)]


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        widths = _stage_widths(config)
        dim = config.quantizer.code_dim
        stem: list[nn.Module] = [down(3, widths[0])]
        for before, after in itertools.pairwise(widths):
            stem += [nn.ReLU(), down(before, after)]
        self.encoder = nn.Sequential(
            *stem,
            *(ResidualBlock(widths[-1]) for _ in range(config.num_blocks)),
            nn.ReLU(),
            nn.Conv2d(widths[-1], dim, 1),
        )
        self.quantizer = VectorQuantizer(config.quantizer)
        head: list[nn.Module] = []
        for before, after in zip(widths[::-1], widths[-2::-1], strict=False):
            head += [nn.ReLU(), up(before, after)]
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, widths[-1], 3, padding=1),
            *(ResidualBlock(widths[-1]) for _ in range(config.num_blocks)),
            *head,
            nn.ReLU(),
            up(widths[0], 3),
        )
        self.to(memory_format=torch.channels_last)  # convolutions are faster so, on CPU and GPU  # type: ignore[call-overload]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.config.grid

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary K."""
        return self.config.quantizer.num_codes

    def forward(self, frames: Tensor) -> Reconstruction:
        """Reconstruct frames (B, 3, H, W) in [-1, 1]; in training mode the codebook moves."""
        z_e = self.encoder(frames.contiguous(memory_format=torch.channels_last))  # (B, D, h, w)
        quantized = self.quantizer(z_e)
        return Reconstruction(self.decoder(quantized.z_q), quantized.tokens, quantized.commitment_loss)

    def encode(self, frames: Tensor) -> Tensor:
        """Return the tokens (N, h, w) int64 of frames (N, 3, H, W) in [-1, 1]."""
        z_e = self.encoder(frames.contiguous(memory_format=torch.channels_last))  # (N, D, h, w)
        return self.quantizer.nearest(z_e.permute(0, 2, 3, 1))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the frames (N, 3, H, W), about [-1, 1], of tokens (N, h, w)."""
        return self.decoder(self.quantizer.lookup(tokens))
