"""Spectrograms on the mel scale: what an encoder of sound may see, measures compare, and pictures show."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

WINDOW, STEP = 0.025, 0.010
"""Seconds that a frame looks at, and from one frame to the next."""
BANDS = 40
FLOOR = -80.0
"""Decibels below a sine of full scale under which all counts as silence."""


def log_mel(samples: Tensor, rate: int, step: int | None = None, bands: int = BANDS) -> Tensor:
    """Return the log-mel spectrograms (B, frames, bands), in decibels of a sine of full scale, of samples (B, N).

    Args:
        samples: In [-1, 1].
        rate: Samples a second.
        step: Samples from one frame to the next; frame t is centred at sample t * step. ``STEP`` where None.
        bands: Triangles from 0 to half the rate, evenly apart on the mel scale (O'Shaughnessy 1987).
    """
    length = round(WINDOW * rate)
    window = torch.hann_window(length, device=samples.device)
    spectrum = torch.stft(
        samples,
        n_fft=2 ** math.ceil(math.log2(length)),
        hop_length=step or round(STEP * rate),
        win_length=length,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )  # (B, F, frames)
    power = spectrum.abs().square() / (window.sum() / 2).square()
    mel = power.transpose(1, 2) @ mel_filters(spectrum.shape[1], rate, bands).to(samples.device)
    return mel.clamp_min(10 ** (FLOOR / 10)).log10().mul(10)


@functools.lru_cache(maxsize=8)
def mel_filters(num_bins: int, rate: int, bands: int) -> Tensor:
    """Return the weights (num_bins, bands) of bins from 0 to half the rate: triangles that reach 1."""
    frequency = torch.linspace(0, rate / 2, num_bins, dtype=torch.float64)
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, bands + 2, dtype=torch.float64) / 2595) - 1)
    below, centre, above = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequency[:, None] - below) / (centre - below)
    falling = (above - frequency[:, None]) / (above - centre)
    return torch.minimum(rising, falling).clamp_min(0).float()


def mfcc(samples: Tensor, rate: int, step: int | None = None, count: int = 13) -> Tensor:
    """Return mel-frequency cepstral coefficients (B, frames, count): a cosine transform of :func:`log_mel`.

    Decibels are counted from ``FLOOR``, so that silence has zeros.
    """
    mel = log_mel(samples, rate, step) - FLOOR
    bands = mel.shape[-1]
    places = (torch.arange(bands) + 0.5) * math.pi / bands
    basis = torch.cos(places[:, None] * torch.arange(count)) * (2 / bands) ** 0.5  # DCT-II, orthogonal
    basis[:, 0] *= 0.5**0.5
    return mel @ basis.to(mel.device)


def mfcc_of_tokens(samples: Tensor, rate: int, hop: int, count: int = 13) -> Tensor:
    """Return :func:`mfcc` around the middle of every ``hop`` samples (B, ceil(N / hop), count)."""
    num_tokens = -(-samples.shape[1] // hop)
    padded = torch.nn.functional.pad(samples, (hop - hop // 2, hop))  # the first middle is then at ``hop``
    return mfcc(padded, rate, hop, count)[:, 1 : 1 + num_tokens]
