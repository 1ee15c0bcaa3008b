"""What pictures are laid out of: frames enlarged by whole factors, with text above or below, in a grid.

Frames are enlarged (nearest neighbour) before any text is drawn, so text stays sharp; no text covers a frame.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldvq.types import ActionSpace

Color = tuple[int, int, int]
BACKGROUND: Color = (24, 26, 31)
TEXT: Color = (230, 232, 236)
FAINT: Color = (150, 154, 162)
GAP = 6
LINE = 20
"""Height of a line of a caption, in pixels."""
MAX_LINES = 8
"""What a caption has at most: some 40 numbers under a frame of the usual width."""
MIN_WIDTH = 110
"""Of a tile, so that there is room for a few words under a small frame."""


@functools.lru_cache(maxsize=512)
def text(words: str, width: int, height: int, color: Color = TEXT, align: str = "center") -> np.ndarray:
    """One line of text on a (height, width, 3) bar; shrunk, then cut, where it is too long."""
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for size in range(_font_size(height), 8, -1):
        font = ImageFont.load_default(size)
        length = draw.textlength(words, font=font)
        if length <= width - 4:
            break
    x = {"left": 3.0, "center": (width - length) / 2, "right": width - 3 - length}[align]
    draw.text((max(x, 2.0), height / 2), words, font=font, fill=color, anchor="lm")
    return np.asarray(image)


def _font_size(height: int) -> int:
    return max(10, round(height * 0.62))


def wrap(parts: Sequence[str], width: int) -> list[str]:
    """Break text into lines of at most ``width`` pixels, between its parts alone; what goes on after MAX_LINES is cut.

    Args:
        parts: Joined, they are the text.
        width: Of a line.
    """
    font, lines = ImageFont.load_default(_font_size(LINE)), [""]
    for part in parts:
        if lines[-1] and font.getlength((lines[-1] + part).rstrip()) > width - 4:
            lines.append("")
        lines[-1] += part
    lines = [line.rstrip() for line in lines]
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "…"]


def caption(parts: Sequence[str], width: int, num_lines: int = 1, color: Color = TEXT) -> np.ndarray:
    """Text under a frame, (num_lines * LINE, width, 3); see :func:`wrap`."""
    lines = wrap(parts, width)
    return np.concatenate([text(line, width, LINE, color) for line in [*lines, *[""] * (num_lines - len(lines))]])


def lines_needed(labels: Iterable[Sequence[str]], width: int) -> int:
    """How many lines the longest of these texts takes, so that all frames of a video get one size."""
    return max(len(wrap(parts, width)) for parts in labels)


def action_label(actions: np.ndarray, space: ActionSpace, t: int) -> list[str]:
    """Parts of the text of the action that led into frame t; there is none before frame 0."""
    if t == 0:
        return ["start"]
    prefix = "action " if space.kind == "discrete" and not space.names else ""
    first, *others = space.label_parts(actions[t - 1])
    return [prefix + first, *others]


def fill(height: int, width: int, color: Color = BACKGROUND) -> np.ndarray:
    """One colour, (height, width, 3)."""
    return np.full((height, width, 3), color, np.uint8)


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """Repeat the pixels of a frame (H, W, 3)."""
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def scale_to(side: int, frame_size: tuple[int, int]) -> int:
    """Whole factor that brings the longer side of a frame (H, W) to about ``side``."""
    return max(1, round(side / max(frame_size)))


def border(frame: np.ndarray, color: Color, width: int = 3) -> np.ndarray:
    """Put a line of one colour around a frame."""
    out = fill(frame.shape[0] + 2 * width, frame.shape[1] + 2 * width, color)
    out[width:-width, width:-width] = frame
    return out


def tile(frame: np.ndarray, width: int, captions: Sequence[np.ndarray]) -> np.ndarray:
    """Put a frame (H, W, 3) in the middle of ``width`` pixels, captions of that width below it."""
    left = (width - frame.shape[1]) // 2
    bar = fill(frame.shape[0], width)
    bar[:, left : left + frame.shape[1]] = frame
    return np.concatenate([bar, *captions])


def draw_label(
    frame: np.ndarray, words: str, color: Color = TEXT, height: int = 22, align: str = "center"
) -> np.ndarray:
    """Put a bar with one line of text above a frame (H, W, 3); the picture itself stays untouched."""
    return np.concatenate([text(words, frame.shape[1], height, color, align), frame])


def grid(rows: Sequence[Sequence[np.ndarray]] | np.ndarray, gap: int = GAP, scale: int = 1) -> np.ndarray:
    """Lay out rows of frames (H, W, 3) on the dark background; columns share their left edges.

    Args:
        rows: Lists of frames of any sizes, or one array (rows, columns, H, W, 3).
        gap: Pixels between frames and around them.
        scale: Whole factor of enlargement of each frame, nearest neighbour.
    """
    if scale != 1:
        rows = [[enlarge(frame, scale) for frame in row] for row in rows]
    num_columns = max(len(row) for row in rows)
    widths = [max((row[c].shape[1] for row in rows if c < len(row)), default=0) for c in range(num_columns)]
    heights = [max(frame.shape[0] for frame in row) for row in rows]
    out = fill(sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (num_columns + 1))
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for frame, width in zip(row, widths, strict=False):
            out[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
            left += width + gap
        top += height + gap
    return out


def sheet(headings: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], side: int = 128) -> np.ndarray:
    """Lay out rows of frames with a label left of each row and a heading over each column.

    Args:
        headings: One a column.
        rows: Label, and frames (H, W, 3) uint8 of one size.
        side: About how large the longer side of a frame is drawn, in pixels.
    """
    scale = scale_to(side, rows[0][1][0].shape[:2])
    left = max(
        round(max(ImageFont.load_default(_font_size(LINE)).getlength(label) for label, _ in rows)) + 12, MIN_WIDTH
    )
    lines = []
    for label, frames in rows:
        drawn = [enlarge(frame, scale) for frame in frames]
        middle = fill(max(drawn[0].shape[0] // 2 - LINE // 2, 0), left)
        columns = [tile(frame, max(frame.shape[1], MIN_WIDTH), []) for frame in drawn]
        lines.append([np.concatenate([middle, text(label, left, LINE, align="right")]), *columns])
    widths = [frame.shape[1] for frame in lines[0][1:]]
    top = [text(words, width, LINE, FAINT) for words, width in zip(headings, widths, strict=True)]
    return grid([[fill(LINE, left), *top], *lines])
