"""µ-law companding: a sample of sound as one of 256 classes, finer where sound is quiet.

f(x) = sign(x) ln(1 + µ |x|) / ln(1 + µ), µ = 255 (ITU-T G.711; van den Oord et al. 2016, WaveNet, section 2.2), cut
into 256 equal steps. As in G.711 no class is exactly zero: silence is the constant class ``SILENCE``, 0.000086 of full
scale.
"""

from __future__ import annotations

import math

from torch import Tensor

NUM_CLASSES = 256
SILENCE = 128
"""The class of zero, the quietest there is."""
_MU = NUM_CLASSES - 1


def compress(waveform: Tensor) -> Tensor:
    """Return the classes (...) int64 of samples (...) in [-1, 1]; what is beyond counts as the end."""
    x = waveform.float().clamp(-1, 1)
    companded = x.sign() * (x.abs() * _MU).log1p() / math.log1p(_MU)  # (...) in [-1, 1]
    return ((companded + 1) / 2 * _MU + 0.5).long()


def expand(classes: Tensor) -> Tensor:
    """Return the samples (...) float32 in [-1, 1] in the middle of classes (...)."""
    companded = classes.float() * (2 / _MU) - 1
    return companded.sign() * (companded.abs() * math.log1p(_MU)).expm1() / _MU
