"""Frames become strips, figures and rollout videos.

Labels name the action that led INTO the frame they stand under: what it did is visible in that very picture.
Pictures are enlarged by whole factors (nearest neighbour) before any text is drawn, so text stays sharp.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from worldvq.errors import UsageError
from worldvq.files.atomic import remove_stale, write_atomic
from worldvq.media.videos import VIDEO_SUFFIXES, probe_video, write_video
from worldvq.types import ActionSpace

__all__ = [
    "VIDEO_SUFFIXES",
    "draw_label",
    "grid",
    "paper_figure",
    "probe_video",
    "rollout_frames",
    "save_png",
    "save_rollout",
    "side_by_side",
    "strip",
    "write_video",
]

Color = tuple[int, int, int]
BACKGROUND: Color = (24, 26, 31)
TEXT: Color = (230, 232, 236)
CONTEXT: Color = (94, 160, 236)
IMAGINED: Color = (245, 158, 66)
GAP = 6


@functools.lru_cache(maxsize=512)
def _text(text: str, width: int, height: int, color: Color, align: str) -> np.ndarray:
    """One line of text on a (height, width, 3) bar; shrunk, then cut, where it is too long."""
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for size in range(max(10, round(height * 0.62)), 8, -1):
        font = ImageFont.load_default(size)
        length = draw.textlength(text, font=font)
        if length <= width - 4:
            break
    x = {"left": 3.0, "center": (width - length) / 2, "right": width - 3 - length}[align]
    draw.text((max(x, 2.0), height / 2), text, font=font, fill=color, anchor="lm")
    return np.asarray(image)


def _fill(height: int, width: int, color: Color = BACKGROUND) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def _enlarge(frame: np.ndarray, factor: int) -> np.ndarray:
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _factor(frames: np.ndarray, side: int) -> int:
    """Whole factor that brings the longer side of frames (..., H, W, 3) to about ``side``."""
    return max(1, round(side / max(frames.shape[-3:-1])))


def _border(frame: np.ndarray, color: Color, width: int = 3) -> np.ndarray:
    out = _fill(frame.shape[0] + 2 * width, frame.shape[1] + 2 * width, color)
    out[width:-width, width:-width] = frame
    return out


def _uint8(frames: ArrayLike, ndim: int, name: str) -> np.ndarray:
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3:
        raise UsageError(f"{name} must be uint8 with {ndim} axes (…, H, W, 3), got {array.dtype}{list(array.shape)}")
    return array


def draw_label(
    frame: np.ndarray, text: str, color: Color = TEXT, height: int = 22, align: str = "center"
) -> np.ndarray:
    """Put a bar with one line of text above a frame (H, W, 3); the picture itself stays untouched."""
    return np.concatenate([_text(text, frame.shape[1], height, color, align), frame])


def side_by_side(frames: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Put frames (H_i, W_i, 3) in a row, tops aligned."""
    return grid([frames], gap)


def grid(rows: Sequence[Sequence[np.ndarray]] | np.ndarray, gap: int = GAP, scale: int = 1) -> np.ndarray:
    """Lay out rows of frames (H, W, 3) on the dark background; columns share their left edges.

    Args:
        rows: Lists of frames of any sizes, or one array (rows, columns, H, W, 3).
        gap: Pixels between frames and around them.
        scale: Whole factor of enlargement of each frame, nearest neighbour.
    """
    if scale != 1:
        rows = [[_enlarge(frame, scale) for frame in row] for row in rows]
    num_columns = max(len(row) for row in rows)
    widths = [max((row[c].shape[1] for row in rows if c < len(row)), default=0) for c in range(num_columns)]
    heights = [max(frame.shape[0] for frame in row) for row in rows]
    out = _fill(sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (num_columns + 1))
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for frame, width in zip(row, widths, strict=False):
            out[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
            left += width + gap
        top += height + gap
    return out


def save_png(path: str | Path, image: np.ndarray) -> Path:
    """Write one (H, W, 3) uint8 picture; atomic, makes the folder.

    Raises:
        RunError: It cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    Image.fromarray(_uint8(image, 3, "picture")).save(buffer, "PNG")
    remove_stale(path.parent, path.name)
    write_atomic(path, buffer.getvalue())
    return path


def _action_names(actions: np.ndarray, space: ActionSpace, num_frames: int) -> list[str]:
    """Under frame t, the action that led into it; there is none under frame 0."""
    prefix = "action " if space.kind == "discrete" and not space.names else ""
    return ["start", *(prefix + space.label(actions[t]) for t in range(num_frames - 1))]


def _stage(t: int, context: int) -> tuple[str, Color]:
    return (f"context {t + 1}/{context}", CONTEXT) if t < context else (f"imagined +{t - context + 1}", IMAGINED)


def _check_rollout(
    real: ArrayLike, reconstruction: ArrayLike, imagined: ArrayLike, actions: ArrayLike, context: int, ndim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    arrays = [
        _uint8(frames, ndim, name)
        for frames, name in ((real, "real"), (reconstruction, "reconstruction"), (imagined, "imagined"))
    ]
    taken = np.asarray(actions)
    num_frames, time = arrays[0].shape[ndim - 4], ndim - 4
    if arrays[1].shape != arrays[0].shape or arrays[2].shape[time] != num_frames - context:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise UsageError(f"real, reconstruction (T frames) and imagined (T - {context}) do not fit: {shapes}")
    if taken.shape[time] < num_frames - 1:
        raise UsageError(f"{num_frames} frames need {num_frames - 1} actions, got {taken.shape[time]}")
    return arrays[0], arrays[1], arrays[2], taken


def rollout_frames(
    real: ArrayLike,
    reconstruction: ArrayLike,
    imagined: ArrayLike,
    actions: ArrayLike,
    action_space: ActionSpace,
    context: int,
    side: int = 192,
) -> Iterator[np.ndarray]:
    """Yield the T frames of a rollout video: columns real, reconstruction and imagined; one row a clip.

    Under real frame t stands ``actions[t - 1]``, the action that led into it. While t is below ``context`` the
    third column shows the reconstruction that the model sees, framed blue; what it imagines is framed orange.

    Args:
        real: (B, T, H, W, 3) uint8.
        reconstruction: (B, T, H, W, 3) uint8, the tokenizer's.
        imagined: (B, T - context, H, W, 3) uint8.
        actions: (B, T - 1 or T, ...).
        action_space: Names the actions.
        context: Frames that were given.
        side: About how large a picture is drawn, in pixels.
    """
    clips, rebuilt, dreams, taken = _check_rollout(real, reconstruction, imagined, actions, context, 5)
    factor, num_frames = _factor(clips, side), clips.shape[1]
    width = clips.shape[3] * factor + 6
    names = [_action_names(row, action_space, num_frames) for row in taken]
    titles = [_text(title, width, 24, TEXT, "center") for title in ("real", "tokenizer", "world model")]
    for t in range(num_frames):
        stage, color = _stage(t, context)
        rows: list[list[np.ndarray]] = [titles]
        for b in range(len(clips)):
            third = rebuilt[b, t] if t < context else dreams[b, t - context]
            pictures = [(clips[b, t], BACKGROUND), (rebuilt[b, t], BACKGROUND), (third, color)]
            rows.append([_border(_enlarge(frame, factor), edge) for frame, edge in pictures])
            labels = [(names[b][t], TEXT), ("reconstruction", (150, 154, 162)), (stage, color)]
            rows.append([_text(label, width, 20, tint, "center") for label, tint in labels])
        yield grid(rows, gap=4)


def strip(
    real: ArrayLike,
    reconstruction: ArrayLike,
    imagined: ArrayLike,
    actions: ArrayLike,
    action_space: ActionSpace,
    context: int,
    side: int = 128,
) -> np.ndarray:
    """Draw one clip as a picture: rows real, reconstruction and imagined, columns time.

    Under column t stands ``actions[t - 1]``, the action that led into it. Arguments as in :func:`rollout_frames`,
    without the batch axis.

    Returns:
        (height, width, 3) uint8.
    """
    clip, rebuilt, dream, taken = _check_rollout(real, reconstruction, imagined, actions, context, 4)
    factor, num_frames = _factor(clip, side), len(clip)
    height, width = clip.shape[1] * factor, clip.shape[2] * factor + 4
    stages = [_stage(t, context) for t in range(num_frames)]
    blank = _fill(20, 104)
    rows = [[blank, *(_text(text, width, 20, color, "center") for text, color in stages)]]
    for name in ("real", "tokenizer", "world model"):
        row = [np.concatenate([_fill(max(height // 2 - 10, 0), 104), _text(name, 104, 24, TEXT, "right")])]
        for t, (_, color) in enumerate(stages):
            frame = {"real": clip[t], "tokenizer": rebuilt[t]}.get(name)
            edge = BACKGROUND
            if frame is None:
                frame, edge = (rebuilt[t] if t < context else dream[t - context]), color
            row.append(_border(_enlarge(frame, factor), edge, 2))
        rows.append(row)
    names = _action_names(taken, action_space, num_frames)
    rows.append([_text("action", 104, 20, TEXT, "right"), *(_text(n, width, 20, TEXT, "center") for n in names)])
    return grid(rows, gap=3)


def paper_figure(context_frames: ArrayLike, rows: Mapping[str, ArrayLike], side: int = 96) -> np.ndarray:
    """Draw the figure of the VQ-VAE paper: one context, then a row of imagined frames for every action that is held.

    Args:
        context_frames: (C, H, W, 3) uint8, framed blue on the left.
        rows: Label to (N, H, W, 3) uint8, for instance forward and turn right.
        side: About how large a frame is drawn, in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    given = _uint8(context_frames, 4, "context_frames")
    dreams = {label: _uint8(frames, 4, label) for label, frames in rows.items()}
    if not dreams:
        raise UsageError("the figure needs at least one row of imagined frames")
    factor = _factor(given, side)

    def block(frames: np.ndarray, color: Color) -> np.ndarray:
        return grid([[_border(_enlarge(frame, factor), color, 2) for frame in frames]], gap=3)

    blocks = [draw_label(block(frames, IMAGINED), label, align="left") for label, frames in dreams.items()]
    right = grid([[b] for b in blocks], gap=0)
    left = draw_label(block(given, CONTEXT), "context", align="left")
    left = np.concatenate([_fill(max(right.shape[0] - left.shape[0], 0) // 2, left.shape[1]), left])
    return side_by_side([left, right], gap=8)


def save_rollout(
    out: str | Path,
    real: ArrayLike,
    reconstruction: ArrayLike,
    imagined: ArrayLike,
    actions: ArrayLike,
    action_space: ActionSpace,
    context: int,
    fps: float = 6,
    **options: Any,
) -> tuple[Path, Path]:
    """Write a rollout video (.mp4, .gif or .webm) and, beside it, a PNG strip of its first clip.

    Arguments as in :func:`rollout_frames`.

    Returns:
        The paths of the video and of the strip.
    """
    out = Path(out)
    frames = rollout_frames(real, reconstruction, imagined, actions, action_space, context, **options)
    write_video(out, frames, fps=fps, expected=np.asarray(real).shape[1])
    first = [np.asarray(array)[0] for array in (real, reconstruction, imagined, actions)]
    picture = strip(first[0], first[1], first[2], first[3], action_space, context)
    return out, save_png(out.with_suffix(".png"), picture)
