"""Held-out frames in bits per dimension: what they take at most by a world, beside what lossless formats take."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.protocol import check_fits
from worldvq.models.likelihood import bound, decode_means, fit_log_scale, uniform_nats
from worldvq.types import Clip, TokenClip, frames_to_model
from worldvq.world.model import WorldModel

SCORED = 8
"""Frames of a clip that are scored, after as many as the dynamics' attention over time sees."""
FITTED = 128
"""Training frames on which the scale is fitted; that is three numbers."""
BATCH = 16
"""Clips that the dynamics scores at a time."""


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension (a dimension is one channel of one pixel) of held-out frames.

    Attributes:
        num_frames: That were scored.
        scale: Of the logistic, red, green and blue, in steps of 1/255 of the range.
        psnr: Of the decoder's output as frames, in dB.
        reconstruction: Minus log2 p(x|z).
        priors: Minus log2 p(z), by which p(z).
        lossless: Of the frames as files, by format.
    """

    num_frames: int
    scale: tuple[float, ...]
    psnr: float
    reconstruction: float
    priors: dict[str, float]
    lossless: dict[str, float]


def measure_likelihood(world: WorldModel, data: Path, clips: int, seed: int = 0) -> Likelihood:
    """Score the last ``SCORED`` frames of held-out clips.

    Args:
        world: The world model.
        data: A dataset with the frames and actions that it knows.
        clips: Held-out clips, or as many as there are.
        seed: Of the clips.

    Raises:
        UsageError: The dataset does not fit the world, or has no held-out episodes that are long enough.
    """
    context = world.dynamics.config.context_frames
    with EpisodeStore.open(data) as store:
        check_fits(world, store)
        log_scale = training_log_scale(world, store, seed)
        ids = heldout_clips(store, clips, context + SCORED, seed, "the frames of an episode")
        clip = read_clips(store, ids, context + SCORED)
    tokens = world.tokenize(clip.frames)
    scored = clip.frames[:, context:].flatten(0, 1)  # (N, H, W, 3)
    own = tokens[:, context:].flatten(0, 1)
    dynamics = _dynamics_nats(world, clip, tokens, context)
    nats = bound(world.tokenizer, scored, own, log_scale, uniform_nats(world.tokenizer.num_codes))
    to_bits = 1 / (math.log(2) * scored[0].numel())
    error = (decode_means(world.tokenizer, own).clamp(-1, 1) - frames_to_model(scored)).square().mean()
    return Likelihood(
        num_frames=len(scored),
        scale=tuple((log_scale.exp() * 127.5).tolist()),
        psnr=float(10 * torch.log10(4 / error)),
        reconstruction=float(nats.reconstruction.mean()) * to_bits,
        priors={
            "all codes equally probable": float(nats.prior.mean()) * to_bits,
            "the dynamics, given the past": float(dynamics.mean()) * to_bits,
        },
        lossless={name: 8 * lossless_bytes(scored, name) / scored.numel() for name in LOSSLESS},
    )


def training_log_scale(world: WorldModel, store: EpisodeStore, seed: int) -> Tensor:
    """Return the scale (3,) of the logistic that fits training frames, so that held-out ones are predicted blindly."""
    frames = ClipSampler(store, "train", 1, FITTED, seed).batch(0).frames  # type: ignore[union-attr]
    return fit_log_scale(frames_to_model(frames[:, 0]), decode_means(world.tokenizer, world.tokenize(frames)[:, 0]))


def _dynamics_nats(world: WorldModel, clip: Clip, tokens: Tensor, context: int) -> Tensor:
    """Minus log p of the tokens of each scored frame given all frames before and the actions: (N,) float64."""
    found = []
    for start in range(0, len(tokens), BATCH):
        rows = slice(start, start + BATCH)
        rest = (clip.actions, clip.rewards, clip.terminated, clip.mask, clip.action_mask)
        scores = world.score(TokenClip(tokens[rows], *(part[rows] for part in rest)), context)
        found.append(scores.nats.double().sum((2, 3)).flatten())
    return torch.cat(found)


LOSSLESS = {
    "PNG": {"format": "PNG", "optimize": True},
    "lossless WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 4},
}
"""What Pillow writes without losing anything, small. (WebP's method 6 takes twenty times as long and gains nothing.)"""


def lossless_bytes(frames: Tensor, name: str) -> int:
    """Return how many bytes frames (N, H, W, 3) uint8 take as files of a format of ``LOSSLESS``, headers included."""
    total = 0
    for frame in np.asarray(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, **LOSSLESS[name])
        total += file.tell()
    return total
