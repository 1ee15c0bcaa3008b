"""What the maze is made of: prefiltered patterns and the colour ramps that distance fades into haze.

A surface colour is looked up twice: a pattern gives a shade (0 to 63), and the ramp of (material, haze level) turns
the shade into a colour. Both tables are small enough to stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

TEXELS = 128
"""Side of a pattern. A wall pattern covers one cell, a floor or ceiling pattern two."""
NUM_SHADES = 64
NUM_HAZE = 64
BLUR_WIDTHS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
"""Width in texels that each blurred copy of a pattern suits; the first copy is sharp."""
HAZE = np.array([58.0, 64.0, 76.0])
"""Colour into which distant surfaces fade."""
HAZE_DISTANCE = 7.0
"""Cells at which half of the surface colour is left."""


def _soft(edge: np.ndarray, width: float) -> np.ndarray:
    """0 below zero, 1 above ``width``, smooth between."""
    x = np.clip(edge / width, 0, 1)
    return x * x * (3 - 2 * x)


def _blocks(u: np.ndarray, v: np.ndarray, rows: int, columns: int, shift: float, joint: float) -> np.ndarray:
    """Masonry: blocks of a few tones with soft joints; every second row is shifted."""
    row = np.floor(v * rows)
    x = u * columns + shift * (row % 2)
    column = np.floor(x) % columns
    inside_x, inside_y = (x % 1) / columns, (v * rows % 1) / rows
    from_joint = np.minimum(np.minimum(inside_x, 1 / columns - inside_x), np.minimum(inside_y, 1 / rows - inside_y))
    tone = 0.78 + 0.22 * ((row * 3 + column * 5) % 4) / 3
    return tone * _soft(from_joint - joint / 4, joint)


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _blocks(u, v, 4, 2, 0.5, 0.035)


def _stones(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _blocks(u, v, 2, 1, 0.5, 0.045)


def _tiles(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _blocks(u, v, 3, 3, 0.0, 0.03)


def _panels(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    frame = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
    return 0.45 + 0.4 * _soft(frame - 0.12, 0.04) - 0.45 * (1 - _soft(np.minimum(u, 1 - u) - 0.01, 0.03))


def _planks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x = u * 4
    gap = np.minimum(x % 1, 1 - x % 1) / 4
    return (0.72 + 0.28 * (np.floor(x) * 2 % 3) / 2) * _soft(gap - 0.006, 0.03)


def _bands(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wave = 0.06 * np.sin(2 * np.pi * u)
    return 0.3 + 0.6 * _soft(np.sin(2 * np.pi * (2 * v + wave)) + 0.5, 1.0)


def _floor(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    checker = _soft(np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v) * 4 + 0.5, 1.0)
    inside = np.minimum(np.abs((2 * u + 0.5) % 1 - 0.5), np.abs((2 * v + 0.5) % 1 - 0.5))
    return 0.2 + 0.6 * checker - 0.15 * (1 - _soft(inside, 0.06))


def _ceiling(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    inside = np.minimum(np.abs((2 * u + 0.5) % 1 - 0.5), np.abs((2 * v + 0.5) % 1 - 0.5))
    return 0.35 + 0.4 * _soft(inside - 0.03, 0.12)


Colour = tuple[int, int, int]
_WALLS: tuple[tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Colour, Colour], ...] = (
    (_bricks, (88, 62, 56), (186, 108, 86)),
    (_panels, (44, 62, 92), (112, 150, 190)),
    (_planks, (76, 58, 38), (190, 150, 96)),
    (_tiles, (46, 78, 72), (120, 178, 150)),
    (_stones, (92, 88, 80), (186, 180, 162)),
    (_bands, (84, 60, 92), (164, 128, 172)),
)
NUM_WALL_STYLES = len(_WALLS)
FLOOR, CEILING = NUM_WALL_STYLES, NUM_WALL_STYLES + 1
"""Indices of patterns, after those of the walls."""
_FLOOR_COLOURS: tuple[Colour, Colour] = ((70, 64, 60), (146, 136, 122))
_CEILING_COLOURS: tuple[Colour, Colour] = ((70, 74, 84), (118, 122, 132))
_SIDE_LIGHT = (1.0, 0.8)
"""Light on faces that look along x and along y, so that corners stand out."""
OBJECT_COLOURS = np.array([(226, 62, 58), (240, 196, 56), (72, 200, 96), (78, 132, 240)], np.float64)
NUM_OBJECT_KINDS = len(OBJECT_COLOURS)


def wall_material(style: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Row of :func:`colour_ramps` for a wall style and the axis that its face looks along."""
    return 2 * style + side


FLOOR_MATERIAL, CEILING_MATERIAL = 2 * NUM_WALL_STYLES, 2 * NUM_WALL_STYLES + 1


@lru_cache(maxsize=1)
def patterns() -> np.ndarray:
    """(patterns * blurs * TEXELS * TEXELS,) uint8 shades, in that order; the last two axes are [v, u]."""
    axis = (np.arange(TEXELS) + 0.5) / TEXELS
    u, v = np.meshgrid(axis, axis)
    # Light falls off towards floor and ceiling.
    occlusion = 1 - 0.35 * np.exp(-((1 - v) / 0.10)) - 0.2 * np.exp(-(v / 0.10))
    images = [np.clip(pattern(u, v), 0, 1) * occlusion for pattern, _, _ in _WALLS]
    images += [_floor(u, v), _ceiling(u, v)]
    stack = []
    for index, image in enumerate(images):
        for width in BLUR_WIDTHS:
            along_u = _blur(width, wrap=True)
            along_v = along_u if index >= NUM_WALL_STYLES else _blur(width, wrap=False)
            stack.append(image if width <= 1 else along_v @ image @ along_u.T)
    shades = np.clip(np.rint(np.stack(stack) * (NUM_SHADES - 1)), 0, NUM_SHADES - 1).astype(np.uint8)
    return shades.reshape(-1)


def _blur(width: float, wrap: bool) -> np.ndarray:
    """(TEXELS, TEXELS) matrix of a Gaussian about ``width`` texels wide; without ``wrap`` the border is repeated."""
    texels = np.arange(TEXELS)
    matrix = np.zeros((TEXELS, TEXELS))
    for offset in range(-2 * TEXELS, 2 * TEXELS + 1):
        source = (texels + offset) % TEXELS if wrap else np.clip(texels + offset, 0, TEXELS - 1)
        matrix[texels, source] += np.exp(-0.5 * (offset / (0.5 * width)) ** 2)
    return matrix / matrix.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def colour_ramps() -> np.ndarray:
    """(materials * NUM_HAZE * NUM_SHADES,) uint32, each the bytes red, green, blue, 0 in memory order."""
    pairs = [
        (np.array(dark) * light, np.array(bright) * light) for _, dark, bright in _WALLS for light in _SIDE_LIGHT
    ] + [(np.array(dark, float), np.array(bright, float)) for dark, bright in (_FLOOR_COLOURS, _CEILING_COLOURS)]
    dark, bright = (np.stack(colours)[:, None, None] for colours in zip(*pairs, strict=True))
    shade = np.linspace(0, 1, NUM_SHADES)[None, None, :, None]
    haze = np.linspace(0, 1, NUM_HAZE)[None, :, None, None]
    colours = (dark + shade * (bright - dark)) * (1 - haze) + haze * HAZE
    ramps = np.zeros((*colours.shape[:3], 4), np.uint8)
    ramps[..., :3] = np.rint(colours)
    return ramps.reshape(-1, 4).view(np.uint32)[:, 0]


def haze_amount(distance: np.ndarray) -> np.ndarray:
    """Share of haze in what is ``distance`` cells away, 0 to 1. No exp: it must round alike for every batch size."""
    return distance / (distance + HAZE_DISTANCE)


def blur_level(width: np.ndarray) -> np.ndarray:
    """Which blurred copy of a pattern suits a pixel ``width`` texels wide."""
    return np.searchsorted(BLUR_WIDTHS[1:] * 0.75, width, side="right")


def wall_colours() -> np.ndarray:
    """(styles, 3) uint8 mean colour of each wall style, for maps."""
    return np.array([(np.array(dark) + 2 * np.array(bright)) // 3 for _, dark, bright in _WALLS]).astype(np.uint8)
