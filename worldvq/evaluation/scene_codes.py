"""What scene codes are worth: how many bits they really carry, and what a token costs with and without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from worldvq.models.scene import bits_of
from worldvq.world.scenes import AT_ONCE, Scenes


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
    swapped = codes.roll(len(codes) // 2, 0)
    console, costs = Console(stderr=True), []
    parts = zip(*(rows.split(AT_ONCE) for rows in (tokens, codes, swapped)), strict=True)
    count = -(-len(tokens) // AT_ONCE)
    for some, own, others in track(parts, "measuring", count, console=console, disable=not console.is_terminal):
        costs.append(torch.stack([*scenes.nats(some, own), scenes.nats(some, others)[0]]))  # (3, n)
    nats, forecast, other = torch.cat(costs, dim=1).mean(1).tolist()
    return {
        "frames": len(tokens),
        "bits": bits_of(scenes.model.config),
        "entropies": entropies(codes, scenes.model.config.quantizer.num_codes),
        "distinct": len({tuple(row) for row in codes.tolist()}),
        "nats_per_token": nats,
        "forecast": forecast,
        "other_codes": other,
    }
