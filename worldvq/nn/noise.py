"""Noise as a pure function of a seed, a row's own seed and a step: any row, at any step, alone or among others.

A counter-based generator (as in Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*): a value is a hash
of where it stands, computed on the device that needs it, so nothing is drawn in turn and rows cannot touch each other.
The same integers come out on every device; their logarithms may differ in the last bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**17
"""Values that a CPU makes at a time: they stay in its cache for the twenty passes over them."""


def stream_keys(seed: int, row_seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Mix a seed, the rows' own seeds and their steps into two words a row.

    Args:
        seed: Any integer; its lowest 64 bits count.
        row_seeds: (B,) int64.
        steps: (B,) int64.

    Returns:
        (B, 2) int32. Different arguments give different keys, but for chance (one in 2^64).
    """
    key = _mix(np.full(len(row_seeds), seed % 2**64, np.uint64))
    for part in (row_seeds, steps):
        key = _mix(key + part.astype(np.int64).view(np.uint64))
    return key.view(np.int32).reshape(-1, 2)


def _mix(x: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele et al. 2014) from each state: a bijection of 64 bits."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def random_bits(keys: Tensor, count: int) -> Tensor:
    """Return ``count`` random words a row.

    Args:
        keys: (B, 2) int32, of :func:`stream_keys`; on the device that is to compute.
        count: Words; at most 2^32.

    Returns:
        (B, count) int32, all 32 bits of them random.
    """
    x = torch.arange(count, dtype=torch.int32, device=keys.device) + keys[:, :1]  # (B, count)
    return _hash(_hash(x).bitwise_xor_(keys[:, 1:]))


def _hash(x: Tensor) -> Tensor:
    """A bijection of 32 bits that flips each bit of its result with a chance of one half (Wellons 2018, lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (32 - shift) - 1)).mul_(factor)
    return x.bitwise_xor_((x >> 16).bitwise_and_(2**16 - 1))


def gumbel_noise(keys: Tensor, count: int) -> Tensor:
    """Return standard Gumbel noise (B, count) float32: argmax(logits + noise) is a sample of softmax(logits).

    Args:
        keys: (B, 2) int32, of :func:`stream_keys`.
        count: Values a row.
    """
    rows = max(1, _CHUNK // count) if keys.device.type == "cpu" else len(keys)
    return torch.cat([_gumbel(part, count) for part in keys.split(rows)])


def _gumbel(keys: Tensor, count: int) -> Tensor:
    # 23 bits, so that the half is not rounded away: never 0, never 1, whose logarithms have none.
    uniform = (random_bits(keys, count) >> 9).bitwise_and_(2**23 - 1).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()
