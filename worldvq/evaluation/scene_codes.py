"""What scene codes are worth: how many bits they really carry, and what a token costs with and without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldvq.models.scene import bits_of
from worldvq.world.scenes import Scenes


def entropies(codes: Tensor, num_codes: int) -> list[float]:
    """Return the empirical entropy of each column of codes (N, n), in bits; of few rows, too low."""
    found = []
    for column in codes.unbind(1):
        frequency = torch.bincount(column, minlength=num_codes).double() / len(codes)
        found.append(float(-torch.special.xlogy(frequency, frequency).sum() / np.log(2)))
    return found


def measure(scenes: Scenes, tokens: Tensor) -> dict[str, Any]:
    """Measure a scene model on frames' tokens (N, h, w).

    Returns:
        ``frames``; ``bits``, that the codes of a frame take; ``entropies``, of each code, in bits; ``distinct``, how
        many different triples (or whatever number) of codes the frames have; ``nats_per_token``; ``forecast``, that of
        the head that has the codes alone; ``other_codes``, nats a token given another frame's codes, of a frame half of
        all further on.
    """
    codes = scenes.encode(tokens)
    nats, forecast = scenes.nats(tokens, codes)
    swapped, _ = scenes.nats(tokens, codes.roll(len(codes) // 2, 0))
    return {
        "frames": len(tokens),
        "bits": bits_of(scenes.model.config),
        "entropies": entropies(codes, scenes.model.config.quantizer.num_codes),
        "distinct": len({tuple(row) for row in codes.tolist()}),
        "nats_per_token": float(nats.mean()),
        "forecast": float(forecast.mean()),
        "other_codes": float(swapped.mean()),
    }
