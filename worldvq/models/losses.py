"""What is minimised: free functions of a model and a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.nn.symlog import reward_nats
from worldvq.types import Clip, SoundCrops, TokenClip, TokenImages, frames_to_model

FORECAST_WEIGHT = 0.3


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none").view(target.shape)


def tokenizer_loss(model: nn.Module, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3 of van den Oord et al. 2017: reconstruction, and what the quantizer adds to it.

    Padding adds zeros and counts in the denominator: so the mean over processes is the mean over the global batch.

    Args:
        model: A Tokenizer, possibly wrapped for distributed training.
        clip: Frames (B, T, H, W, 3); every frame counts alike.

    Returns:
        The loss and detached scalars, of the frames that exist: ``reconstruction`` (MSE in [-1, 1] units),
        ``quantizer_loss``, ``psnr`` (dB), ``perplexity`` of the batch's tokens.
    """
    frames = frames_to_model(clip.frames[clip.mask])  # (N, 3, H, W)
    output = model(frames)
    inner: Any = getattr(model, "module", model)
    loss, metrics = reconstruction_loss(frames, output, inner.num_codes)
    return loss * clip.mask.float().mean(), metrics


def reconstruction_loss(frames: Tensor, output: Any, num_codes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """As :func:`tokenizer_loss`, the mean over frames (N, 3, H, W), and the Reconstruction that was made of them."""
    error = F.mse_loss(output.frames.float(), frames)
    loss = error + output.quantizer_loss
    with torch.no_grad():
        metrics = {
            "reconstruction": error.detach(),
            "quantizer_loss": output.quantizer_loss.detach(),
            "psnr": 10 * torch.log10(4 / error.detach()),
            "perplexity": _perplexity(output.tokens, num_codes),
        }
    return loss, metrics


def _perplexity(tokens: Tensor, num_codes: int) -> Tensor:
    """How many codes tokens (...) use, as the exponential of their entropy."""
    frequency = torch.bincount(tokens.flatten(), minlength=num_codes).float()
    frequency = frequency / frequency.sum()
    return torch.exp(-torch.special.xlogy(frequency, frequency).sum())


def sound_loss(model: nn.Module, crops: SoundCrops) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of every sample given those before it, codes and speaker; plus the quantizer's loss.

    Args:
        model: A SoundTokenizer, possibly wrapped for distributed training.
        crops: Waveforms (B, T), speakers (B,) and keys of their noise.

    Returns:
        The loss and detached scalars: ``nats_per_sample``, ``quantizer_loss``, ``perplexity`` of the batch's tokens.
    """
    output = model(crops.waveforms, crops.speakers, crops.keys)
    inner: Any = getattr(model, "module", model)
    nats = _nats(output.logits, output.classes).mean()
    metrics = {"nats_per_sample": nats.detach(), "quantizer_loss": output.quantizer_loss.detach()}
    with torch.no_grad():
        metrics["perplexity"] = _perplexity(output.tokens, inner.num_codes)
    return nats + output.quantizer_loss, metrics


def image_prior_loss(model: nn.Module, images: TokenImages) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the tokens of single frames, given their classes. The forecast (for drafts) learns along.

    Args:
        model: An ImagePrior, possibly wrapped for distributed training.
        images: Tokens (B, h, w) and classes (B,).

    Returns:
        The loss and detached scalars: ``nats_per_token`` and ``forecast`` (of every token alone, in nats).
    """
    prediction = model(images.tokens, images.labels)
    nats, forecast = (_nats(logits, images.tokens).mean() for logits in (prediction.logits, prediction.forecast))
    return nats + FORECAST_WEIGHT * forecast, {"nats_per_token": nats.detach(), "forecast": forecast.detach()}


def sound_prior_loss(model: nn.Module, pieces: TokenImages) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the codes of pieces of sounds, given those before them and the speaker.

    Args:
        model: A SoundPrior, possibly wrapped for distributed training.
        pieces: Tokens (B, 1, n) and speakers (B,).

    Returns:
        The loss, and as a detached scalar ``nats_per_token``.
    """
    tokens = pieces.tokens[:, 0]
    nats = _nats(model(tokens, pieces.labels), tokens).mean()
    return nats, {"nats_per_token": nats.detach()}


def dynamics_loss(model: nn.Module, clip: TokenClip) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the next frame's tokens, plus reward and termination of the transition.

    Frame t + 1 is predicted from frames <= t and actions <= t. The parallel forecast (for drafts) learns along.

    Padding adds zeros and counts in the denominator: so the mean over processes is the mean over the global batch.
    Every term of a clip counts by the clip's weight: so its expectation is that of clips drawn uniformly.

    Args:
        model: A Dynamics, possibly wrapped for distributed training.
        clip: Tokens (B, T, h, w).

    Returns:
        The loss and detached scalars: ``nats_per_token``, ``forecast`` (the parallel forecast's), ``reward`` and
        ``termination`` (nats a transition). Each estimates the mean over uniformly drawn clips of the mean over what
        exists of a clip.
    """
    prediction = model(clip.tokens, clip.actions)
    target = clip.tokens[:, 1:]  # (B, T-1, h, w)
    nats, forecast = (_nats(logits, target).mean((2, 3)) for logits in (prediction.logits, prediction.forecast))
    reward = reward_nats(prediction.rewards, clip.rewards)  # (B, T)
    ends = F.binary_cross_entropy_with_logits(prediction.termination.float(), clip.terminated.float(), reduction="none")
    exists, happens = clip.mask[:, 1:].float(), clip.action_mask.float()
    frames, transitions = (mask * clip.weight[:, None] for mask in (exists, happens))
    loss = ((nats + FORECAST_WEIGHT * forecast) * frames).mean() + ((reward + ends) * transitions).mean()

    def mean(values: Tensor, mask: Tensor) -> Tensor:
        per_clip = (values.detach() * mask).sum(1) / mask.sum(1).clamp_min(1)
        return (per_clip * clip.weight).mean()

    metrics = {
        "nats_per_token": mean(nats, exists),
        "forecast": mean(forecast, exists),
        "reward": mean(reward, happens),
        "termination": mean(ends, happens),
    }
    return loss, metrics


def scene_loss(model: nn.Module, clip: TokenClip) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of tokens given the codes of their frame, the prior's and the head's; plus the quantizers' loss.

    Padding adds zeros and counts in the denominator: so the mean over processes is the mean over the global batch.

    Args:
        model: A SceneModel, possibly wrapped for distributed training.
        clip: Tokens (B, T, h, w); every frame counts alike.

    Returns:
        The loss and detached scalars, of the frames that exist: ``nats_per_token``, ``forecast`` (from the codes
        alone) and, where there are codes, ``perplexity``: of those of the batch, the mean over codebooks.
    """
    tokens = clip.tokens[clip.mask]  # (N, h, w)
    output = model(tokens)
    inner: Any = getattr(model, "module", model)
    nats, forecast = (_nats(logits, tokens).mean() for logits in (output.logits, output.forecast))
    loss = nats + inner.config.forecast_weight * forecast + output.quantizer_loss
    metrics = {"nats_per_token": nats.detach(), "forecast": forecast.detach()}
    if output.codes.shape[1]:
        most = inner.config.quantizer.num_codes
        used = torch.stack([torch.bincount(codes, minlength=most) for codes in output.codes.unbind(1)]) / len(tokens)
        metrics["perplexity"] = torch.exp(-torch.special.xlogy(used, used).sum(1)).mean()
    return loss * clip.mask.float().mean(), metrics
