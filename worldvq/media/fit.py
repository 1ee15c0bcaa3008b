"""One picture made to fit another size."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image

Fit = Literal["squash", "pad", "crop"]
"""How a picture of another shape is made to fit: squashed, with black bars, or cut to the middle."""
FITS: tuple[Fit, ...] = get_args(Fit)


def fit_image(image: np.ndarray, size: tuple[int, int], fit: Fit = "squash") -> np.ndarray:
    """Resize a picture: whole factors are averaged, anything else is antialiased bilinear.

    So what was enlarged by repeating pixels becomes what it was.

    Args:
        image: (H, W, 3) uint8.
        size: Height and width to reach.
        fit: What happens where the shapes differ.

    Returns:
        (*size, 3) uint8; the picture itself where nothing is to be done.
    """
    height, width = size
    if fit != "squash":  # the part of the picture, or of the frame, that has the other's shape
        factor = (min if fit == "pad" else max)(height / image.shape[0], width / image.shape[1])
        if fit == "crop":
            return _resize(_middle(image, _rounded(height / factor), _rounded(width / factor)), size)
        inner = _resize(
            image, (min(height, _rounded(image.shape[0] * factor)), min(width, _rounded(image.shape[1] * factor)))
        )
        padded = np.zeros((height, width, 3), np.uint8)
        _middle(padded, *inner.shape[:2])[:] = inner
        return padded
    return _resize(image, size)


def _rounded(side: float) -> int:
    return max(1, round(side))


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """View the middle of a picture."""
    height, width = min(height, image.shape[0]), min(width, image.shape[1])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    factors = [whole // part for whole, part in zip(image.shape[:2], size, strict=True)]
    if all(part * factor == whole for whole, part, factor in zip(image.shape[:2], size, factors, strict=True)):
        return np.asarray(picture.reduce((factors[1], factors[0])))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
