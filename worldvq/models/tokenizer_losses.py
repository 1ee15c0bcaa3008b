"""Optional terms of the tokenizer's loss: what it looks like, whether it fools a critic, what is rare, what moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.errors import UsageError, one_line
from worldvq.models.config import TokenizerLossConfig
from worldvq.models.losses import reconstruction_loss, tokenizer_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.conv import Convolution, down
from worldvq.types import Clip, frames_to_model

Loss = Callable[[nn.Module, Clip], tuple[Tensor, dict[str, Tensor]]]

DISCRIMINATOR_WIDTH = 32
COLOUR_BINS = 8

CHANGE = 24
"""A pixel has changed where a channel differs by more than this, of 255: more than noise and a flickering light do."""


def make_tokenizer_loss(tokenizer: Tokenizer, config: TokenizerLossConfig) -> tuple[nn.Module, Loss]:
    """Return what is to be trained, and on what loss.

    With all weights 0 that is the tokenizer itself and :func:`~worldvq.models.losses.tokenizer_loss`. Whatever is
    trained, it trains ``tokenizer`` in place; nothing else of it is worth keeping.

    Raises:
        UsageError: The perceptual loss is asked for and cannot be had.
    """
    if config == TokenizerLossConfig():
        return tokenizer, tokenizer_loss
    network = load_lpips() if config.perceptual else None
    model = AdversarialTokenizer(tokenizer, config.adversarial) if config.adversarial else tokenizer
    return model, TokenizerLoss(config, network)


class TokenizerLoss:
    """:func:`~worldvq.models.losses.tokenizer_loss` plus the terms whose weight is not 0.

    As there, every term is multiplied by the share of the batch that is no padding.

    Args:
        config: The weights.
        lpips: From two batches of images (N, 3, H, W) in [-1, 1] to distances (N, ...); only with a perceptual weight.
    """

    def __init__(self, config: TokenizerLossConfig, lpips: nn.Module | None = None):
        self.config = config
        # Frozen, and no part of the model: neither trained nor saved.
        self.lpips = lpips.eval().requires_grad_(False) if lpips else None

    def __call__(self, model: nn.Module, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and metrics: those of ``tokenizer_loss``, and every term before its weight.

        Args:
            model: A Tokenizer, with an adversarial weight an AdversarialTokenizer, possibly wrapped for distribution.
            clip: Frames (B, T, H, W, 3), for the motion term at least two.
        """
        frames = frames_to_model(clip.frames[clip.mask])  # (N, 3, H, W)
        output = model(frames)
        inner: Any = getattr(model, "module", model)
        loss, metrics = reconstruction_loss(frames, output, inner.num_codes)
        rebuilt = output.frames.float()
        error = (rebuilt - frames).square().mean(1)  # (N, H, W)
        if self.lpips:
            perceptual = self.lpips.to(frames.device)(rebuilt, frames).float().mean()
            loss = loss + self.config.perceptual * perceptual
            metrics["perceptual"] = perceptual.detach()
        if self.config.adversarial:
            # Without the weight: that is in the reversal, so that the discriminator learns at its own pace.
            adversarial = hinge(output.real.float(), output.fake.float())
            loss = loss + adversarial
            metrics["adversarial"] = adversarial.detach()
        if self.config.rare:
            rare = rare_error(error, frames)
            loss = loss + self.config.rare * rare
            metrics["rare"] = rare.detach()
        loss = loss * clip.mask.float().mean()
        if self.config.motion:
            motion = motion_error(error, clip)
            loss = loss + self.config.motion * motion * frame_pairs(clip).float().mean()
            metrics["motion"] = motion.detach()
        return loss, metrics


def rare_error(error: Tensor, frames: Tensor) -> Tensor:
    """Error of pixels by how rare their colour is, so that a small thing of a colour of its own counts.

    The weighted mean of the error, the weight of a pixel being p^-1/2, where p is the share of all given pixels in its
    bin of ``COLOUR_BINS``^3 colours. A colour that fills a tenth of a percent weighs 22 times as much as one that fills
    half of all frames.

    Args:
        error: (N, H, W) squared error.
        frames: (N, 3, H, W) in [-1, 1].
    """
    bins = ((frames + 1) * (COLOUR_BINS / 2)).long().clamp_(0, COLOUR_BINS - 1)
    colour = (bins[:, 0] * COLOUR_BINS + bins[:, 1]) * COLOUR_BINS + bins[:, 2]  # (N, H, W)
    weight = torch.bincount(colour.flatten(), minlength=COLOUR_BINS**3).clamp_min(1).float().rsqrt()[colour]
    return (error * weight).sum() / weight.sum()


def frame_pairs(clip: Clip) -> Tensor:
    """Which frames but the first exist with the frame before them, (B, T-1) bool."""
    return clip.mask[:, 1:] & clip.mask[:, :-1]


def changed_pixels(a: Tensor, b: Tensor) -> Tensor:
    """Where frames (..., H, W, 3) uint8 differ by more than ``CHANGE``: (..., H, W) bool."""
    return (a.short() - b.short()).abs().amax(-1) > CHANGE


def motion_error(error: Tensor, clip: Clip) -> Tensor:
    """Error of the pixels that changed, so that a small thing counts as much as a whole frame.

    The mean over frames that have a predecessor of (1 - s) / |C| Σ_{p in C} error_p: C are the pixels that differ from
    the frame before, s is their share of the frame. In the plain error a fireball of 20 pixels has a weight of
    20 / (H W), here that of a frame. A frame in which nothing changed adds nothing, nor does one in which everything
    did, as when the camera turns: the plain error sees to that.

    Args:
        error: (N, H, W) squared error of the clip's frames that exist, in order.
        clip: Frames (B, T, H, W, 3); B x T less those that are masked is N.

    Raises:
        UsageError: The clips have one frame.
    """
    if clip.frames.shape[1] < 2:
        raise UsageError("the motion term compares frames: set tokenizer_training.clip_frames to 2 or more, got 1")
    pairs = frame_pairs(clip)
    changed = changed_pixels(clip.frames[:, 1:], clip.frames[:, :-1])[pairs].float()  # (P, H, W)
    error = error[F.pad(pairs, (1, 0))[clip.mask]]  # (P, H, W)
    area = changed.sum((1, 2))  # (P,)
    per_frame = (error * changed).sum((1, 2)) / area.clamp_min(1)
    return ((1 - changed.mean((1, 2))) * per_frame).sum() / max(1, len(area))


def load_lpips() -> nn.Module:
    """LPIPS on VGG16 (Zhang et al. 2018) from torchmetrics, with the weights of the paper.

    Its authors advise VGG for training and AlexNet for measuring. torchmetrics brings what they fitted; the ImageNet
    network below it is torchvision's, downloaded when it is first used.

    Raises:
        UsageError: torchmetrics, torchvision or the weights cannot be had.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
    except (ImportError, OSError, RuntimeError) as error:  # not there; no network; another torch's, or a broken file
        raise UsageError(
            f"tokenizer_loss.perceptual: LPIPS cannot be loaded ({one_line(error)}): it needs "
            f"pip install 'worldvq[metrics]', a torchvision that fits torch {torch.__version__}, and that one's VGG16 "
            f"weights, which it looks for in {torch.hub.get_dir()}/checkpoints and downloads otherwise; "
            f"or set tokenizer_loss.perceptual=0"
        ) from None


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """The identity, whose gradient is -weight times the one that comes in (Ganin & Lempitsky 2015, eq. 7-8)."""
    return _Reversal.apply(x, weight)  # type: ignore[no-any-return]


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator (Lim & Ye 2017) on its logits: real ones above 1, fake ones below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


class PatchDiscriminator(nn.Module):
    """Real or made? A logit for every 4x4 pixels, each from the 24x24 around them (PatchGAN, Isola et al. 2017).

    Without batch norm: it would mix real and made frames, and differ between processes.
    """

    def __init__(self, width: int = DISCRIMINATOR_WIDTH):
        super().__init__()
        self.body = nn.Sequential(
            down(3, width, 2),
            nn.LeakyReLU(0.2),
            Convolution(width, width, 3),
            nn.LeakyReLU(0.2),
            down(width, 2 * width, 2),
            nn.LeakyReLU(0.2),
            Convolution(2 * width, 2 * width, 3),
            nn.LeakyReLU(0.2),
            Convolution(2 * width, 1, 3),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits (N, 1, H/4, W/4), positive for real, of frames (N, 3, H, W) in [-1, 1]."""
        return self.body(frames.contiguous(memory_format=torch.channels_last))


class Judged(NamedTuple):
    """A Reconstruction, and the discriminator's logits (N, 1, H/4, W/4) of the frames and of what came back."""

    frames: Tensor
    tokens: Tensor
    quantizer_loss: Tensor
    real: Tensor
    fake: Tensor


class AdversarialTokenizer(nn.Module):
    """A tokenizer and the discriminator it plays against, as one module for one loop and one optimizer.

    The discriminator sees the reconstructions through a gradient reversal, so one backward pass of its hinge loss
    teaches it to tell them apart and the tokenizer, ``weight`` times as strongly, to prevent that. This deviates from
    Isola et al. 2017: both take a step at once instead of in turn, and the tokenizer ascends the discriminator's own
    loss (the minimax game of Goodfellow et al. 2014), which gives it no gradient from patches that are already found
    out by the full margin.
    """

    def __init__(self, tokenizer: Tokenizer, weight: float):
        super().__init__()
        self.tokenizer = tokenizer
        self.discriminator = PatchDiscriminator()
        self.weight = weight

    @property
    def num_codes(self) -> int:
        """Size of the tokenizer's vocabulary K."""
        return self.tokenizer.num_codes

    def forward(self, frames: Tensor) -> Judged:
        """Reconstruct frames (N, 3, H, W) in [-1, 1] and judge both; in one pass, as distributed training wants it."""
        output = self.tokenizer(frames)
        shown = torch.cat([frames, reverse_gradient(output.frames.float(), self.weight)])  # (2N, 3, H, W)
        real, fake = self.discriminator(shown).chunk(2)
        return Judged(output.frames, output.tokens, output.quantizer_loss, real, fake)
