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
from worldvq.errors import UsageError
from worldvq.evaluation.protocol import check_fits
from worldvq.files.weights import hash_module
from worldvq.models.likelihood import bound, decode_means, fit_log_scale, uniform_nats
from worldvq.models.tokenizer import Tokenizer
from worldvq.types import Clip, TokenClip, frames_to_model
from worldvq.world.images import ImageModel
from worldvq.world.model import WorldModel

try:
    import pillow_jxl  # from here on Pillow writes JPEG XL
except ImportError:
    pillow_jxl = None

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
        lossless: Of the frames as files, by format; without JPEG XL where pillow-jxl-plugin is not installed.
    """

    num_frames: int
    scale: tuple[float, ...]
    psnr: float
    reconstruction: float
    priors: dict[str, float]
    lossless: dict[str, float]


def measure_likelihood(
    model: WorldModel | Tokenizer,
    data: Path,
    clips: int,
    seed: int = 0,
    fit_on: Path | None = None,
    prior: ImageModel | None = None,
) -> Likelihood:
    """Score the last ``SCORED`` frames of held-out clips; by a tokenizer alone, that many single frames for each clip.

    Args:
        model: A world, or a tokenizer without dynamics.
        data: A dataset with the frames, and for a world the actions, that it knows.
        clips: Held-out clips, or as many as there are.
        seed: Of the clips.
        fit_on: Dataset whose training frames fit the scale, where it is not ``data``.
        prior: Says how probable the tokens of single frames are, given their class.

    Raises:
        UsageError: A dataset or the prior does not fit, or there are no held-out episodes that are long enough, or no
            training frames.
    """
    tokenizer = model.tokenizer if isinstance(model, WorldModel) else model
    if prior is not None and hash_module(prior.tokenizer) != hash_module(tokenizer):
        raise UsageError("the image prior was trained on tokens of another tokenizer: train it on this one's")
    with EpisodeStore.open(data) as store, EpisodeStore.open(fit_on or data) as training:
        for one in (store, training):
            one.check_frame_size(tokenizer.config.frame_size)
        if isinstance(model, WorldModel):
            check_fits(model, store)
        clip, context, numbers = scored_clips(model, store, clips, seed)
        labels = [store.label(number) for number in numbers.tolist()]
        log_scale = _training_log_scale(tokenizer, training, seed)
    tokens = tokenizer.tokenize(clip.frames.flatten(0, 1)).unflatten(0, clip.frames.shape[:2])
    frames, own = clip.frames[:, context:].flatten(0, 1), tokens[:, context:].flatten(0, 1)  # (N, H, W, 3), (N, h, w)
    nats = bound(tokenizer, frames, own, log_scale, uniform_nats(tokenizer.num_codes))
    priors = {"all codes equally probable": nats.prior}
    if isinstance(model, WorldModel):
        given = tokens if model.sound_format is None else model.tokenize(clip.frames, clip.sounds)
        priors["the dynamics, given the past"] = _dynamics_nats(model, clip, given, context)
    if prior is not None:
        given = "given the class" if len(prior.classes) > 1 else "of single frames"
        scored = clip.frames.shape[1] - context
        priors[f"the image prior, {given}"] = prior.nats(own, [label for label in labels for _ in range(scored)])
    to_bits = 1 / (math.log(2) * frames[0].numel())
    error = (decode_means(tokenizer, own).clamp(-1, 1) - frames_to_model(frames)).square().mean()
    return Likelihood(
        num_frames=len(frames),
        scale=tuple((log_scale.exp() * 127.5).tolist()),
        psnr=float(10 * torch.log10(4 / error)),
        reconstruction=float(nats.reconstruction.mean()) * to_bits,
        priors={name: float(prior.mean()) * to_bits for name, prior in priors.items()},
        lossless={name: 8 * lossless_bytes(frames, name) / frames.numel() for name in written_formats()},
    )


def scored_clips(
    model: WorldModel | Tokenizer, store: EpisodeStore, clips: int, seed: int = 0
) -> tuple[Clip, int, np.ndarray]:
    """Return held-out clips, how many of their first frames are context and not scored, and whose episodes they are."""
    if isinstance(model, WorldModel):
        context = model.dynamics.config.context_frames
        ids = heldout_clips(store, clips, context + SCORED, seed, "the frames of an episode")
        return read_clips(store, ids, context + SCORED), context, ids[:, 0]
    ids = heldout_clips(store, clips * SCORED, 1, seed)
    return read_clips(store, ids, 1), 0, ids[:, 0]


def _training_log_scale(tokenizer: Tokenizer, store: EpisodeStore, seed: int) -> Tensor:
    """Return the scale (3,) of the logistic that fits training frames, so that held-out ones are predicted blindly."""
    sampler = ClipSampler(store, "train", 1, FITTED, seed)
    frames = read_clips(store, sampler.ids(0), 1).frames[:, 0]
    return fit_log_scale(frames_to_model(frames), decode_means(tokenizer, tokenizer.tokenize(frames)))


def _dynamics_nats(world: WorldModel, clip: Clip, tokens: Tensor, context: int) -> Tensor:
    """Minus log p of the tokens of each scored frame given all frames before and the actions: (N,) float64."""
    found = []
    for start in range(0, len(tokens), BATCH):
        rows = slice(start, start + BATCH)
        rest = (clip.actions, clip.rewards, clip.terminated, clip.mask, clip.action_mask)
        scores = world.score(TokenClip(tokens[rows], *(part[rows] for part in rest)), context)
        found.append(scores.nats.double().sum((2, 3)).flatten())
    return torch.cat(found)


JPEG_XL = "lossless JPEG XL"
LOSSLESS = {
    "PNG": {"format": "PNG", "optimize": True},
    "lossless WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 4},
    JPEG_XL: {"format": "JXL", "lossless": True, "effort": 7, "num_threads": 0},
}
"""What Pillow writes without losing anything, small. (WebP's method 6 takes twenty times as long and gains nothing,
JPEG XL's effort 9 twice as long and gains 1 to 4 %.)"""


def written_formats() -> list[str]:
    """Return the formats of ``LOSSLESS`` that can be written here."""
    return [name for name in LOSSLESS if pillow_jxl or name != JPEG_XL]


def lossless_bytes(frames: Tensor, name: str) -> int:
    """Return how many bytes frames (N, H, W, 3) uint8 take as files of a format of ``LOSSLESS``, headers included."""
    total = 0
    for frame in np.asarray(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, **LOSSLESS[name])
        total += file.tell()
    return total
