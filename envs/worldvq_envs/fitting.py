"""From an image of an environment to a frame as it is stored."""

from __future__ import annotations

import numpy as np
import torch

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError


def cropped_size(size: tuple[int, int], config: EnvConfig) -> tuple[int, int]:
    """Return height and width of an image after ``config.crop``."""
    top, bottom, left, right = config.crop or (0, 0, 0, 0)
    return size[0] - top - bottom, size[1] - left - right


def fit_frame(image: np.ndarray, config: EnvConfig) -> np.ndarray:
    """Crop an (H, W, 3) uint8 image and bring it to ``config.size`` as ``config.fit`` says.

    The filter is antialiased bilinear (a triangle as wide as two output pixels), as Pillow's BILINEAR: torch has it
    for uint8 with vector instructions, 160x120 to 64x64 in 50 us where Pillow's BOX takes 200.

    Returns:
        A new array: the environment may overwrite ``image`` at its next step.

    Raises:
        UsageError: The crop leaves nothing.
    """
    if config.crop is not None:
        top, bottom, left, right = config.crop
        height, width = image.shape[:2]
        if top + bottom >= height or left + right >= width:
            raise UsageError(f"env.crop {config.crop} leaves nothing of a frame of {height}x{width} pixels")
        image = image[top : height - bottom, left : width - right]
    image = _to_proportions(image, config)
    if image.shape[:2] == config.size:
        return np.array(image)
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)  # channels last
    pixels = torch.nn.functional.interpolate(pixels, config.size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1)[0].numpy())


def _to_proportions(image: np.ndarray, config: EnvConfig) -> np.ndarray:
    """Cut the middle out, or add black, so that an image has the proportions of ``config.size``; or leave it."""
    (height, width), (out_height, out_width) = image.shape[:2], config.size
    if config.fit == "squash" or height * out_width == width * out_height:
        return image
    scale = (min if config.fit == "crop" else max)(height / out_height, width / out_width)
    sides = [max(1, round(scale * side)) for side in config.size]
    begin = [(old - new) // 2 for old, new in zip((height, width), sides, strict=True)]
    if config.fit == "crop":
        return image[begin[0] : begin[0] + sides[0], begin[1] : begin[1] + sides[1]]
    padded = np.zeros((*sides, 3), np.uint8)
    padded[-begin[0] : height - begin[0], -begin[1] : width - begin[1]] = image
    return padded
