"""Sheets of samples: a row a class, the nearest training frame beside each sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worldvq.files.differences import printable
from worldvq.media.pictures import CONTEXT, IMAGINED
from worldvq.media.tiles import border, draw_label, enlarge, grid, scale_to, text

SAMPLE_SIDE = 96
"""About how large a frame is drawn where no scale is given, in pixels."""
COLUMNS = 8
"""Samples in a line; a class of more takes several."""
_EDGE, _GAP = 2, 4


def sample_sheet(
    samples: Mapping[str, np.ndarray], nearest: Mapping[str, np.ndarray] | None = None, scale: int | None = None
) -> np.ndarray:
    """Draw samples, framed orange, class by class; right of each, framed blue, the training frame nearest to it.

    Args:
        samples: Name of a class to its frames (n, H, W, 3) uint8.
        nearest: Likewise, or None.
        scale: Each pixel becomes so many in each direction; None draws a frame about SAMPLE_SIDE pixels large.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = next(iter(samples.values())).shape[1:3]
    factor = scale or scale_to(SAMPLE_SIDE, (height, width))
    rows = []
    for name, frames in samples.items():
        tiles = []
        for number, frame in enumerate(frames):
            pair = [border(enlarge(frame, factor), IMAGINED, _EDGE)]
            if nearest is not None:
                pair.append(border(enlarge(nearest[name][number], factor), CONTEXT, _EDGE))
            tiles.append(np.concatenate(pair, axis=1))
        lines = [tiles[first : first + COLUMNS] for first in range(0, len(tiles), COLUMNS)]
        rows.append([draw_label(grid(lines, gap=_GAP), printable(name), align="left")])
    sheet = grid(rows, gap=0)
    if nearest is None:
        return sheet
    legend = [("samples", IMAGINED), ("each beside the nearest training frame", CONTEXT)]
    share = [72, sheet.shape[1] - 72]
    words = [text(line, size, 22, color, align="left") for (line, color), size in zip(legend, share, strict=True)]
    return np.concatenate([np.concatenate(words, axis=1), sheet])
