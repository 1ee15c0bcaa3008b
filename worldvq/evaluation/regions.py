"""Small things that move: where they are, and whether a tokenizer keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.errors import UsageError
from worldvq.models.tokenizer_losses import changed_pixels

MIN_AREA = 4
"""Pixels of the smallest region that counts; less than that is an edge that moved."""

MAX_SHARE = 0.05
"""Share of the frame of the largest region that counts as small."""


def small_region_recall(
    previous: ArrayLike | Tensor,
    current: ArrayLike | Tensor,
    reconstruction: ArrayLike | Tensor,
    following: ArrayLike | Tensor | None = None,
) -> tuple[int, int]:
    """Count small changing regions, and those of them that a reconstruction shows.

    A region is a connected set (8 neighbours) of pixels that changed between two frames, of ``MIN_AREA`` pixels to
    ``MAX_SHARE`` of the frame. It is recalled where the reconstruction of the current frame is nearer to the current
    frame than to the previous one (sum of squared differences). Recall is recalled / total.

    Where a thing left, the background comes back, and a tokenizer that knows nothing but the background gets that
    right: without ``following`` such a one recalls about half of all regions. With ``following``, pixels must differ
    from both neighbours in time (three-frame differencing): what is left is where things are now, and nothing of a
    plain thing that moves by less than half its length.

    Zero is not the floor: a plain grey frame is nearer to one or the other by chance. Compare, on the same frames.

    A moving camera changes nearly everything, in regions that are not small: this speaks where the camera stands still.

    Args:
        previous: (N, H, W, 3) uint8, the frames before.
        current: (N, H, W, 3) uint8.
        reconstruction: (N, H, W, 3) uint8, what came back of ``current``.
        following: (N, H, W, 3) uint8, the frames after.

    Returns:
        How many regions are recalled, and how many there are.

    Raises:
        UsageError: The ``metrics`` extra is not installed.
    """
    recalled, counts = recalled_regions(previous, current, {"": reconstruction}, following)
    return int(recalled[""].sum()), int(counts.sum())


def recalled_regions(
    previous: ArrayLike | Tensor,
    current: ArrayLike | Tensor,
    reconstructions: Mapping[str, ArrayLike | Tensor],
    following: ArrayLike | Tensor | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """As :func:`small_region_recall`, of several reconstructions by name and frame by frame: (N,) each, and (N,)."""
    neighbours = [previous, current, *([] if following is None else [following])]
    before, now, *others = _alike(*neighbours, *reconstructions.values())
    after, rebuilt = others[: len(neighbours) - 2], others[len(neighbours) - 2 :]
    changed = changed_pixels(before, now)  # (N, H, W)
    if after:
        changed &= changed_pixels(now, after[0])
    labels, count = _connected(changed.numpy())
    flat = labels.reshape(-1)

    def per_region(values: Tensor | None = None) -> np.ndarray:
        weights = None if values is None else values.reshape(-1).numpy()
        return np.bincount(flat, weights, count + 1)[1:]

    area = per_region()
    num_pixels = labels[0].size if len(labels) else 1
    small = (area >= MIN_AREA) & (area <= MAX_SHARE * num_pixels)
    frame = np.zeros(count + 1, np.int64)
    frame[flat] = np.repeat(np.arange(len(labels)), num_pixels)

    def per_frame(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(frame[1:][chosen], minlength=len(labels))

    found = {
        name: per_frame(small & (per_region(_squared(made, now)) < per_region(_squared(made, before))))
        for name, made in zip(reconstructions, rebuilt, strict=True)
    }
    return found, per_frame(small)


def _alike(*frames: ArrayLike | Tensor) -> list[Tensor]:
    """Batches of frames (N, H, W, 3) uint8 of one shape, on the CPU."""
    tensors = [torch.as_tensor(x).cpu() for x in frames]
    shape = tensors[0].shape
    if len(shape) != 4 or shape[-1] != 3 or any(x.shape != shape or x.dtype != torch.uint8 for x in tensors):
        found = ", ".join(f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in tensors)
        raise ValueError(f"expected uint8 frames of equal shapes (N, H, W, 3), got {found}")
    return tensors


def _connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected sets of a mask (N, H, W), from 1; 0 is where it is false. And how many there are."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise UsageError(f"regions need the metrics extra ({error}): pip install 'worldvq[metrics]'") from None
    neighbours = np.zeros((3, 3, 3), bool)
    neighbours[1] = True  # the 8 around it within the frame, none in the frames before and after
    found: Any = ndimage.label(mask, neighbours)
    return found[0], int(found[1])


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference (N, H, W), summed over channels."""
    return (a.int() - b.int()).square().sum(-1)
