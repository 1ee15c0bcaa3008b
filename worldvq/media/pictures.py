"""Frames become strips, figures and rollout videos.

Labels name the action that led INTO the frame they stand under: what it did is visible in that very picture.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from worldvq.errors import UsageError
from worldvq.files.atomic import remove_stale, write_atomic
from worldvq.media.tiles import (
    BACKGROUND,
    FAINT,
    LINE,
    MIN_WIDTH,
    Color,
    action_label,
    border,
    caption,
    draw_label,
    enlarge,
    fill,
    grid,
    lines_needed,
    scale_to,
    text,
    tile,
)
from worldvq.media.videos import Sound, write_video
from worldvq.types import ActionSpace

CONTEXT: Color = (94, 160, 236)
IMAGINED: Color = (245, 158, 66)
VIDEO_SIDE, STRIP_SIDE, FIGURE_SIDE = 192, 128, 96
"""About how large a frame is drawn where no scale is given, in pixels."""
_EDGE, _THIN = 3, 2
_MARGIN = 104
"""Width of what stands left of a strip."""


def _uint8(frames: ArrayLike, ndim: int, name: str) -> np.ndarray:
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3:
        raise UsageError(f"{name} must be uint8 with {ndim} axes (…, H, W, 3), got {array.dtype}{list(array.shape)}")
    return array


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


def _stage(t: int, context: int) -> tuple[str, Color]:
    return (f"context {t + 1}/{context}", CONTEXT) if t < context else (f"imagined +{t - context + 1}", IMAGINED)


def _check_rollout(
    real: ArrayLike | None, reconstruction: ArrayLike, imagined: ArrayLike, actions: ArrayLike, context: int, ndim: int
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray, np.ndarray]:
    """Return the real frames, what the tokenizer made of them, what the model saw and then imagined, and actions."""
    rebuilt, dreams = _uint8(reconstruction, ndim, "reconstruction"), _uint8(imagined, ndim, "imagined")
    clip = rebuilt if real is None else _uint8(real, ndim, "real")
    taken, time = np.asarray(actions), ndim - 4
    num_frames = context + dreams.shape[time]
    if rebuilt.shape != clip.shape or clip.shape[time] != (context if real is None else num_frames):
        shapes = ", ".join(str(list(array.shape)) for array in (clip, rebuilt, dreams))
        raise UsageError(f"real, reconstruction (T frames) and imagined (T - {context}) do not fit: {shapes}")
    if taken.shape[time] < num_frames - 1:
        raise UsageError(f"{num_frames} frames need {num_frames - 1} actions, got {taken.shape[time]}")
    seen = np.concatenate([rebuilt.take(range(context), time), dreams], axis=time)
    return None if real is None else clip, rebuilt, seen, taken


def _sizes(frame_size: Sequence[int], scale: int | None = None) -> tuple[int, int]:
    """Return by how much a video enlarges frames of a height and width, and how wide a column is."""
    scale = scale or scale_to(VIDEO_SIDE, (frame_size[0], frame_size[1]))
    return scale, max(frame_size[1] * scale + 2 * _EDGE, MIN_WIDTH)


def _framed(frame: np.ndarray, scale: int, width: int, edge: Color, *captions: np.ndarray) -> np.ndarray:
    """A frame of a video, enlarged and framed, above its captions."""
    return tile(border(enlarge(frame, scale), edge, _EDGE), width, captions)


def rollout_frames(
    real: ArrayLike | None,
    reconstruction: ArrayLike,
    imagined: ArrayLike,
    actions: ArrayLike,
    action_space: ActionSpace,
    context: int,
    scale: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the T frames of a rollout video: columns real, reconstruction and imagined; one row a clip.

    Under real frame t stands ``actions[t - 1]``, the action that led into it. While t is below ``context`` the
    third column shows the reconstruction that the model sees, framed blue; what it imagines is framed orange.
    Without real frames the third column stands alone, the clips beside and below each other.

    Args:
        real: (B, T, H, W, 3) uint8, or None where nothing real follows from the actions.
        reconstruction: (B, T, H, W, 3) uint8, the tokenizer's; of the context alone where ``real`` is None.
        imagined: (B, T - context, H, W, 3) uint8.
        actions: (B, T - 1 or T, ...).
        action_space: Names the actions.
        context: Frames that were given.
        scale: Each pixel becomes so many in each direction; None draws a frame about VIDEO_SIDE pixels large.
    """
    clips, rebuilt, seen, taken = _check_rollout(real, reconstruction, imagined, actions, context, 5)
    num_clips, num_frames, height, width, _ = seen.shape
    scale, width = _sizes((height, width), scale)
    labels = [[action_label(row, action_space, t) for t in range(num_frames)] for row in taken]
    num_lines = lines_needed(itertools.chain(*labels), width)

    def draw(frame: np.ndarray, edge: Color, *captions: np.ndarray) -> np.ndarray:
        return _framed(frame, scale, width, edge, *captions)

    titles = [text(title, width, 24) for title in ("real", "tokenizer", "world model")]
    for t in range(num_frames):
        words, color = _stage(t, context)
        stage = caption([words], width, color=color)
        taken_now = [caption(row[t], width, num_lines) for row in labels]
        if clips is None:
            tiles = [draw(seen[b, t], color, stage, taken_now[b]) for b in range(num_clips)]
            num_columns = math.ceil(math.sqrt(num_clips))
            yield grid([tiles[first : first + num_columns] for first in range(0, num_clips, num_columns)], gap=4)
            continue
        name = caption(["reconstruction"], width, color=FAINT)
        rows = [
            [draw(clip[t], BACKGROUND, action), draw(own[t], BACKGROUND, name), draw(dream[t], color, stage)]
            for clip, own, dream, action in zip(clips, rebuilt, seen, taken_now, strict=True)
        ]
        yield grid([titles, *rows], gap=4)


def compared_frames(
    real: ArrayLike, dreams: Mapping[str, ArrayLike], actions: ArrayLike, action_space: ActionSpace, context: int
) -> Iterator[np.ndarray]:
    """Yield the T frames of a video that shows dreams in step: columns real and one a dream; one row a clip.

    Args:
        real: (B, T, H, W, 3) uint8; under frame t stands ``actions[t - 1]``.
        dreams: Title to (B, T, H, W, 3) uint8, what a model was given, framed blue, and then imagined, framed orange.
        actions: (B, T - 1 or T, ...).
        action_space: Names the actions.
        context: Frames that were given.
    """
    clips = _uint8(real, 5, "real")
    seen = {title: _uint8(frames, 5, title) for title, frames in dreams.items()}
    taken, num_frames = np.asarray(actions), clips.shape[1]
    scale, width = _sizes(clips.shape[2:4])
    labels = [[action_label(row, action_space, t) for t in range(num_frames)] for row in taken]
    num_lines = lines_needed(itertools.chain(*labels), width)

    titles = [text(title, width, 24) for title in ("real", *seen)]
    for t in range(num_frames):
        words, color = _stage(t, context)
        stage = caption([words], width, color=color)
        rows = []
        for b, clip in enumerate(clips):
            first = _framed(clip[t], scale, width, BACKGROUND, caption(labels[b][t], width, num_lines))
            rows.append([first, *(_framed(frames[b, t], scale, width, color, stage) for frames in seen.values())])
        yield grid([titles, *rows], gap=4)


def strip(
    real: ArrayLike | None,
    reconstruction: ArrayLike,
    imagined: ArrayLike,
    actions: ArrayLike,
    action_space: ActionSpace,
    context: int,
    scale: int | None = None,
) -> np.ndarray:
    """Draw one clip as a picture: rows real, reconstruction and imagined, columns time.

    Under column t stands ``actions[t - 1]``, the action that led into it. Arguments as in :func:`rollout_frames`,
    without the batch axis; without real frames there is one row. A frame is about STRIP_SIDE pixels large.

    Returns:
        (height, width, 3) uint8.
    """
    clip, rebuilt, seen, taken = _check_rollout(real, reconstruction, imagined, actions, context, 4)
    num_frames, height, width, _ = seen.shape
    scale = scale or scale_to(STRIP_SIDE, (height, width))
    height, width = height * scale, max(width * scale + 2 * _THIN, MIN_WIDTH)
    stages = [_stage(t, context) for t in range(num_frames)]
    rows = [[fill(LINE, _MARGIN), *(text(words, width, LINE, color) for words, color in stages)]]
    shown = [] if clip is None else [("real", clip), ("tokenizer", rebuilt)]
    for name, frames in [*shown, ("world model", seen)]:
        row = [np.concatenate([fill(max(height // 2 - 10, 0), _MARGIN), text(name, _MARGIN, 24, align="right")])]
        for frame, (_, color) in zip(frames, stages, strict=True):
            edge = color if frames is seen else BACKGROUND
            row.append(tile(border(enlarge(frame, scale), edge, _THIN), width, []))
        rows.append(row)
    labels = [action_label(taken, action_space, t) for t in range(num_frames)]
    num_lines = lines_needed(labels, width)
    actions_row = [caption(parts, width, num_lines) for parts in labels]
    rows.append([text("action", _MARGIN, LINE, align="right"), *actions_row])
    return grid(rows, gap=3)


def acted_frames(
    real: Sequence[np.ndarray],
    dreamt: Sequence[np.ndarray],
    ages: Sequence[int],
    actions: Sequence[np.ndarray],
    rewards: Sequence[float],
    action_space: ActionSpace,
) -> Iterator[np.ndarray]:
    """Yield the T frames of a video of an episode that was planned: what happened, and what the plan had dreamt of it.

    Args:
        real: T frames (H, W, 3) uint8.
        dreamt: Likewise, each what the plan that was followed then had shown.
        ages: T numbers, steps since that plan was made; 0 where a frame was seen and not dreamt.
        actions: T - 1 stored actions.
        rewards: T - 1, of each.
        action_space: Names the actions.
    """
    scale, width = _sizes(real[0].shape[:2])
    labels = [action_label(np.asarray(actions), action_space, t) for t in range(len(real))]
    num_lines = lines_needed(labels, width)
    titles = [text(title, width, 24) for title in ("what happened", "what was dreamt")]
    total = np.cumsum([0.0, *rewards])
    for t, (true, imagined, age) in enumerate(zip(real, dreamt, ages, strict=True)):
        words, color = (f"dreamt +{age}", IMAGINED) if age else ("seen", CONTEXT)
        sums = caption([f"step {t}", f", reward {total[t]:g}"], width)
        under = caption(labels[t], width, num_lines), caption([words], width, num_lines, color)
        tiles = [
            _framed(true, scale, width, BACKGROUND, under[0], sums),
            _framed(imagined, scale, width, color, under[1], caption([""], width)),
        ]
        yield grid([titles, tiles], gap=4)


def paper_figure(context_frames: ArrayLike, rows: Mapping[str, ArrayLike], scale: int | None = None) -> np.ndarray:
    """Draw the figure of the VQ-VAE paper: one context, then a row of imagined frames for every action that is held.

    Args:
        context_frames: (C, H, W, 3) uint8, framed blue on the left.
        rows: Label to (N, H, W, 3) uint8, for instance forward and turn right.
        scale: Each pixel becomes so many in each direction; None draws a frame about FIGURE_SIDE pixels large.

    Returns:
        (height, width, 3) uint8.
    """
    given = _uint8(context_frames, 4, "context_frames")
    dreams = {label: _uint8(frames, 4, label) for label, frames in rows.items()}
    if not dreams:
        raise UsageError("the figure needs at least one row of imagined frames")
    factor = scale or scale_to(FIGURE_SIDE, given.shape[1:3])

    def block(frames: np.ndarray, color: Color) -> np.ndarray:
        return grid([[border(enlarge(frame, factor), color, _THIN) for frame in frames]], gap=3)

    blocks = [draw_label(block(frames, IMAGINED), label, align="left") for label, frames in dreams.items()]
    right = grid([[b] for b in blocks], gap=0)
    left = draw_label(block(given, CONTEXT), "context", align="left")
    left = np.concatenate([fill(max(right.shape[0] - left.shape[0], 0) // 2, left.shape[1]), left])
    return grid([[left, right]], gap=8)


def save_rollout(
    out: str | Path,
    real: ArrayLike | None,
    reconstruction: ArrayLike,
    imagined: ArrayLike,
    actions: ArrayLike,
    action_space: ActionSpace,
    context: int,
    fps: float = 6,
    scale: int | None = None,
    sound: Sound | None = None,
) -> tuple[Path, Path]:
    """Write a rollout video (.mp4, .gif or .webm) and, beside it, a PNG strip of its first clip.

    Arguments as in :func:`rollout_frames`, and the sound of the video.

    Returns:
        The paths of the video and of the strip.
    """
    out = Path(out)
    frames = rollout_frames(real, reconstruction, imagined, actions, action_space, context, scale)
    write_video(out, frames, fps=fps, expected=context + np.asarray(imagined).shape[1], sound=sound)
    clip = None if real is None else np.asarray(real)[0]
    rebuilt, dream, taken = (np.asarray(array)[0] for array in (reconstruction, imagined, actions))
    picture = strip(clip, rebuilt, dream, taken, action_space, context, scale)
    return out, save_png(out.with_suffix(".png"), picture)
