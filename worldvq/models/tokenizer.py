"""The frame-level VQ-VAE (van den Oord, Vinyals, Kavukcuoglu 2017): a frame becomes a small grid of tokens."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldvq.models.config import TokenizerConfig
from worldvq.nn.conv import Convolution, ResidualBlock, TransposedConvolution, down, up
from worldvq.nn.quantizer import Quantizer, make_quantizer
from worldvq.types import frames_from_model, frames_to_model


class Reconstruction(NamedTuple):
    """What a training pass through the tokenizer gives.

    Attributes:
        frames: (B, 3, H, W) in about [-1, 1].
        tokens: (B, h, w) int64.
        quantizer_loss: Scalar to be added to the reconstruction error; its weights are in it.
    """

    frames: Tensor
    tokens: Tensor
    quantizer_loss: Tensor


PATCH = 4
"""Pixels along each side of what the first layer sees and the last one writes."""

AT_ONCE = 32
"""Frames that are tokenized or rendered together. More leave a processor's caches, and glibc leaves larger holes where
a small object, which stays, has come to lie beside what was freed: 80,000 frames left 9 GiB of holes at 256."""


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder, of the architecture that the config names."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        make = {"patches": _patches, "strided": _strided}[config.architecture]
        self.encoder, self.quantizer, self.decoder = make(config)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.config.grid

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary K."""
        return self.config.quantizer.num_codes

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.parameters()).device

    def forward(self, frames: Tensor) -> Reconstruction:
        """Reconstruct frames (B, 3, H, W) in [-1, 1]; in training mode the codebook moves."""
        z_e = self.encoder(frames.contiguous(memory_format=torch.channels_last))  # (B, D, h, w)
        quantized = self.quantizer(z_e)
        return Reconstruction(self.decoder(quantized.z_q), quantized.tokens, quantized.loss)

    def encode(self, frames: Tensor) -> Tensor:
        """Return the tokens (N, h, w) int64 of frames (N, 3, H, W) in [-1, 1]."""
        z_e = self.encoder(frames.contiguous(memory_format=torch.channels_last))  # (N, D, h, w)
        return self.quantizer.nearest(z_e.permute(0, 2, 3, 1))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the frames (N, 3, H, W), about [-1, 1], of tokens (N, h, w)."""
        return self.decoder(self.quantizer.lookup(tokens))

    @torch.no_grad()
    def tokenize(self, frames: Tensor) -> Tensor:
        """Return the tokens (N, h, w) int64 of frames (N, H, W, 3) uint8, of any device, on the CPU."""
        return torch.cat([self.encode(frames_to_model(part.to(self.device))).cpu() for part in frames.split(AT_ONCE)])

    @torch.no_grad()
    def render(self, tokens: Tensor) -> Tensor:
        """Return the frames (N, H, W, 3) uint8 of tokens (N, h, w), of any device, on the CPU."""
        return torch.cat([frames_from_model(self.decode(part.to(self.device))).cpu() for part in tokens.split(AT_ONCE)])


def _patches(config: TokenizerConfig) -> tuple[nn.Sequential, Quantizer, nn.Sequential]:
    """Return encoder, quantizer and decoder; nearly all of the work is done at token resolution, where it is cheapest.

    The decoder is the deeper one: what a token looks like is harder to say than which one it is.
    """
    num_halvings = (config.downsample // PATCH).bit_length() - 1
    widths = [config.width // 2**level for level in range(num_halvings, -1, -1)]  # from a patch to a token
    dim = config.quantizer.code_dim
    stem: list[nn.Module] = [down(3, widths[0], PATCH)]
    for before, after in itertools.pairwise(widths):
        stem += [nn.ReLU(), down(before, after, 2)]
    encoder = nn.Sequential(
        *stem,
        *(ResidualBlock(config.width) for _ in range(config.encoder_blocks)),
        nn.ReLU(),
        Convolution(config.width, dim, 1),
    )
    quantizer = make_quantizer(config.quantizer)
    head: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[::-1]):
        head += [nn.ReLU(), up(before, after, 2)]
    decoder = nn.Sequential(
        Convolution(dim, config.width, 3),
        *(ResidualBlock(config.width) for _ in range(config.decoder_blocks)),
        *head,
        nn.ReLU(),
        up(widths[0], 3, PATCH, size=3),
    )
    return encoder, quantizer, decoder


def _strided(config: TokenizerConfig) -> tuple[nn.Sequential, Quantizer, nn.Sequential]:
    """Return encoder, quantizer and decoder as the paper has them (van den Oord et al. 2017, section 4.1).

    A 4x4 convolution of stride 2 for every halving, then residual blocks; the decoder mirrors it with transposed
    convolutions. The paper has two halvings, two blocks a half and 256 channels everywhere, and does not say where
    there is a ReLU beside those in the blocks, nor how channels become a code and back: here a ReLU stands between any
    two convolutions, and a 1x1 convolution leads to the codes and from them.
    """
    width, dim = config.width, config.quantizer.code_dim
    num_halvings = config.downsample.bit_length() - 1
    stem: list[nn.Module] = [Convolution(3, width, 4, stride=2)]
    head: list[nn.Module] = []
    for _ in range(num_halvings - 1):
        stem += [nn.ReLU(), Convolution(width, width, 4, stride=2)]
        head += [nn.ReLU(), TransposedConvolution(width, width)]
    encoder = nn.Sequential(
        *stem, *(ResidualBlock(width) for _ in range(config.encoder_blocks)), nn.ReLU(), Convolution(width, dim, 1)
    )
    quantizer = make_quantizer(config.quantizer)
    decoder = nn.Sequential(
        Convolution(dim, width, 1),
        *(ResidualBlock(width) for _ in range(config.decoder_blocks)),
        *head,
        nn.ReLU(),
        TransposedConvolution(width, 3),
    )
    return encoder, quantizer, decoder
