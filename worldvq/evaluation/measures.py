"""What the protocol takes of a batch of clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from worldvq.evaluation import metrics
from worldvq.evaluation.parts import Part
from worldvq.evaluation.regions import recalled_regions
from worldvq.types import TokenClip

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel


def compare(real: Tensor, frames: dict[str, Tensor], horizons: list[int]) -> Part:
    """Squared error and SSIM (B, N) of every yardstick, and features at the horizons of the Fréchet distance."""
    batch, horizon = real.shape[:2]
    flat = real.flatten(0, 1)
    part = {}
    for name, fake in frames.items():
        other = fake.flatten(0, 1)
        part[f"error/{name}"] = metrics.squared_error(flat, other).reshape(batch, horizon)
        part[f"ssim/{name}"] = metrics.ssim(flat, other).reshape(batch, horizon)
    if not horizons:
        return part
    index = [h - 1 for h in horizons]
    for name, fake in {"real": real, **frames}.items():
        # copy_last is one frame at every horizon: look at it once.
        chosen = fake[:, :1] if name == "copy_last" else fake[:, index]
        found = metrics.efflite0_features(chosen.flatten(0, 1)).reshape(batch, chosen.shape[1], -1)
        part[f"features/{name}"] = np.broadcast_to(found, (batch, len(index), found.shape[-1]))
    return part


def count_regions(clip: Tensor, frames: dict[str, Tensor]) -> Part:
    """Small changing regions of frames that have both neighbours: all (B, N - 1), and those that a yardstick shows.

    Args:
        clip: (B, 1 + N, H, W, 3), the last context frame and all that are imagined.
        frames: (B, N, H, W, 3) of each yardstick.
    """
    shape = clip.shape[0], clip.shape[1] - 2
    before, now, after = (clip[:, first : first + shape[1]].flatten(0, 1) for first in range(3))
    rebuilt = {name: fake[:, : shape[1]].flatten(0, 1) for name, fake in frames.items()}
    recalled, counts = recalled_regions(before, now, rebuilt, after)
    named = {"all": counts, **recalled}
    return {f"regions/{name}": values.reshape(shape) for name, values in named.items()}


def score(world: WorldModel, tokens: Tensor, clip: Any, context: int) -> Part:
    """Teacher-forced likelihood, reward and termination of recorded transitions; use of the codebook."""
    token_clip = TokenClip(tokens, clip.actions, clip.rewards, clip.terminated, clip.mask, clip.action_mask)
    scores = world.score(token_clip, context)
    mask = scores.mask.bool()
    names = ("nats", "rewards", "rewards_true", "termination", "termination_true")  # nats: (frames, h, w)
    seen = tokens[:, :, : world.tokenizer.grid[0]]  # what is heard stands below
    counts = np.bincount(seen.flatten().numpy(), minlength=int(world.tokenizer.num_codes))
    return {"counts": counts[None], **{name: getattr(scores, name)[mask].double().numpy() for name in names}}
