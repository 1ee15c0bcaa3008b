"""The VQ-VAE of sound (van den Oord, Vinyals, Kavukcuoglu 2017, section 4.3): a code for every ``hop`` samples.

Strided convolutions lead to the codes; a WaveNet that is told codes and speaker draws the samples. What the codes do
not say of the speaker, the speaker's own vector does: with another one, another voice says the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldvq.models.config import SoundTokenizerConfig
from worldvq.models.priors.contract import GridCache
from worldvq.models.priors.wavenet import WaveNet
from worldvq.nn.conv import Convolution1d
from worldvq.nn.mulaw import NUM_CLASSES, compress
from worldvq.nn.noise import random_bits
from worldvq.nn.quantizer import make_quantizer
from worldvq.nn.spectrograms import BANDS, mfcc_of_tokens

COEFFICIENTS = 13
LIFTER = 22


class SoundReconstruction(NamedTuple):
    """What a training pass through the tokenizer of sound gives.

    Attributes:
        logits: (B, T, 256), of the µ-law class of every sample, given the codes and the samples before it.
        classes: (B, T) int64, the classes that were to be predicted.
        tokens: (B, T / hop) int64.
        quantizer_loss: Scalar to be added to the cross-entropy of ``logits``; its weights are in it.
    """

    logits: Tensor
    classes: Tensor
    tokens: Tensor
    quantizer_loss: Tensor


class SoundTokenizer(nn.Module):
    """Encoder, quantizer and WaveNet decoder; as a quantizer takes grids, codes are a grid of one row in between.

    Args:
        config: Sizes.
        num_speakers: Whose voices it is told apart.
        rate: Samples a second, which the spectrum goes by.
    """

    def __init__(self, config: SoundTokenizerConfig, num_speakers: int, rate: int):
        super().__init__()
        self.config = config
        self.encoder = _spectral_encoder(config, rate) if config.features == "mfcc" else _encoder(config)
        self.quantizer = make_quantizer(config.quantizer)
        self.neighbours = Convolution1d(config.quantizer.code_dim, config.width, 3)
        self.speaker = nn.Embedding(num_speakers, config.width)
        self.decoder = WaveNet(config.decoder, (1, config.hop), NUM_CLASSES, config.width, config.hop)

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary K."""
        return self.config.quantizer.num_codes

    def forward(self, waveform: Tensor, speaker: Tensor, keys: Tensor | None = None) -> SoundReconstruction:
        """Predict every sample of waveform (B, T) in [-1, 1] of speaker (B,) int64.

        In training mode the codebook moves and, with ``keys`` (B, 2) int32 of noise, some codes stand in for others.
        """
        quantized = self.quantizer(self._encoded(waveform))
        z_q = quantized.z_q
        if self.training and keys is not None and self.config.jitter:
            z_q = jitter(z_q, keys, self.config.jitter)
        classes = compress(waveform)  # (B, T)
        logits = self.decoder(classes[:, None], self.context(z_q, speaker))[:, 0]  # (B, T, 256)
        return SoundReconstruction(logits, classes, quantized.tokens[:, 0], quantized.loss)

    def encode(self, waveform: Tensor) -> Tensor:
        """Return the tokens (B, T / hop) int64 of waveform (B, T) in [-1, 1]."""
        return self.quantizer.nearest(self._encoded(waveform)[:, :, 0].transpose(1, 2))

    def start(self, tokens: Tensor, speaker: Tensor) -> GridCache:
        """Return a cache for drawing the µ-law classes (B, 1, n * hop) of tokens (B, n), said by speaker (B,)."""
        return self.decoder.start(len(tokens), self.context(self.quantizer.lookup(tokens[:, None]), speaker))

    def context(self, z_q: Tensor, speaker: Tensor) -> Tensor:
        """Return what the decoder is told (B, 1, n, width) of codes (B, D, 1, n) and speaker (B,)."""
        return (self.neighbours(z_q[:, :, 0]) + self.speaker(speaker)[..., None]).transpose(1, 2)[:, None]

    def _encoded(self, waveform: Tensor) -> Tensor:
        """Encoder outputs (B, D, 1, n) of waveform (B, T)."""
        if waveform.shape[1] % self.config.hop or not waveform.shape[1]:
            raise ValueError(
                f"{waveform.shape[1]} samples do not divide into tokens of {self.config.hop}: cut or pad the sound"
            )
        return self.encoder(waveform[:, None])[:, :, None]


def jitter(z_q: Tensor, keys: Tensor, share: float) -> Tensor:
    """Put neighbours in the place of some codes (B, D, 1, n): time-jitter (Chorowski et al. 2019).

    Each is replaced with probability ``share``, as often by the one before it as by the one after. At the ends, where
    that neighbour is missing, the code stays.
    """
    uniform = (random_bits(keys, z_q.shape[3]) >> 8).bitwise_and_(2**24 - 1) * 2.0**-24  # (B, n)
    before, after = (uniform < share / 2)[:, None, None], (uniform < share)[:, None, None]
    earlier, later = torch.cat([z_q[..., :1], z_q[..., :-1]], 3), torch.cat([z_q[..., 1:], z_q[..., -1:]], 3)
    return torch.where(before, earlier, torch.where(after, later, z_q))


def _encoder(config: SoundTokenizerConfig) -> nn.Sequential:
    """Return the encoder, (B, 1, T) to (B, D, T / hop): windows of twice the stride ("stride 2 and window-size 4")."""
    layers: list[nn.Module] = []
    for i, stride in enumerate(config.strides):
        layers += [Convolution1d(config.width if i else 1, config.width, 2 * stride, stride), nn.ReLU()]
    return nn.Sequential(*layers, Convolution1d(config.width, config.quantizer.code_dim, 1))


def _spectral_encoder(config: SoundTokenizerConfig, rate: int) -> nn.Sequential:
    """The same of MFCCs, which Chorowski et al. (2019, arXiv 1901.08810) let an encoder see, with their derivatives."""
    step, *strides = config.strides
    width = config.width
    layers: list[nn.Module] = [_Cepstrum(rate, step), Convolution1d(COEFFICIENTS, width, 3), _ResidualBlock(width)]
    for stride in strides:
        layers += [nn.ReLU(), Convolution1d(width, width, 2 * stride, stride), _ResidualBlock(width)]
    return nn.Sequential(*layers, _ResidualBlock(width), nn.ReLU(), Convolution1d(width, config.quantizer.code_dim, 1))


class _Cepstrum(nn.Module):
    """MFCCs (B, 13, T / step) of sound (B, 1, T), around the middle of each ``step`` samples.

    Liftered as in HTK (Young et al., *The HTK Book*, section 5.6), so that all coefficients of speech spread alike, and
    scaled to about 1; silence is 0, as what lies beyond the ends.
    """

    scale: Tensor

    def __init__(self, rate: int, step: int):
        super().__init__()
        self.rate, self.step = rate, step
        order = torch.arange(COEFFICIENTS)
        scale = (1 + LIFTER / 2 * torch.sin(math.pi * order / LIFTER)) / 90
        scale[0] = 1 / (20 * BANDS**0.5)  # the mean of the bands: 20 dB are 1
        self.register_buffer("scale", scale[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # half precision holds neither the range nor the digits
            found = mfcc_of_tokens(x[:, 0].float(), self.rate, self.step, COEFFICIENTS)
            return found.transpose(1, 2) * self.scale


class _ResidualBlock(nn.Module):
    """ReLU, a window of 3, ReLU, a matrix; (B, width, T) in and out."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), Convolution1d(width, width, 3), nn.ReLU(), Convolution1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
