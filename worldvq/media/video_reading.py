"""Reading videos that others made, every stored frame once and in order.

moviepy reads at a constant rate: of frames that come at changing times it repeats some and drops others, and of a GIF
it often repeats the last one. So every video is decoded twice: ffmpeg says how many frames there are and when, moviepy
reads them, and where it would not give exactly these, it is handed a lossless copy at a constant rate.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldvq.errors import RunError
from worldvq.media.videos import Decoded, ffmpeg, last_line

READ_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".avi", ".mkv")
"""What is taken for a video in a folder."""
STEADY = 0.4
"""Of the time between two frames: how far a frame may come from where a constant rate has it."""
_COPY_FPS = 25


def frame_rate(decoded: Decoded) -> float:
    """Return the mean number of frames a second; 0 where it cannot be told."""
    times = decoded.times
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0


def read_video(
    path: Path, decoded: Decoded, keep: Callable[[np.ndarray], np.ndarray] = np.array, every: int = 1
) -> list[np.ndarray]:
    """Read the frames of a video with moviepy.

    Args:
        path: The video.
        decoded: What :func:`worldvq.media.videos.decode_times` found in it.
        keep: What is kept of a frame (H, W, 3) uint8; a whole video may be larger than the memory.
        every: Keep frames 0, ``every``, 2 ``every``, and so on.

    Returns:
        What was kept.

    Raises:
        RunError: moviepy cannot read it, or reads other frames than are in it.
    """
    if is_steady(decoded):
        count, kept = _read(path, decoded, keep, every)
        if count == len(decoded.times):
            return kept
    with tempfile.TemporaryDirectory(prefix="worldvq-video-") as folder:
        copy = Path(folder) / "steady.avi"
        _copy_steadily(path, copy)
        count, kept = _read(copy, decoded, keep, every)
    if count != len(decoded.times):
        raise RunError(
            f"{path}: moviepy reads {count} frames of {len(decoded.times)}; write the video anew with ffmpeg"
        )
    return kept


def is_steady(decoded: Decoded) -> bool:
    """Whether frames come at a constant rate."""
    times = np.array(decoded.times)
    if len(times) < 2 or times[-1] <= times[0]:
        return False
    period = (times[-1] - times[0]) / (len(times) - 1)
    return bool(np.abs(times - times[0] - period * np.arange(len(times))).max() < STEADY * period)


def _read(path: Path, decoded: Decoded, keep: Callable[[np.ndarray], np.ndarray], every: int) -> tuple[int, list]:
    """Return how many frames moviepy reads, none if it cannot open the file, and what was kept of them."""
    from moviepy import VideoFileClip

    height, width = decoded.size
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # at the end it warns, and gives the last frame again
        try:
            clip = VideoFileClip(str(path.absolute()), audio=False, target_resolution=(width, height))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError, UserWarning):
            return 0, []  # a header it does not understand
        reader: Any = clip.reader
        process, kept, frame = reader.proc, [], reader.last_read
        try:
            for index in itertools.count():
                if index % every == 0:
                    kept.append(keep(frame))
                frame = reader.read_frame()
        except UserWarning:
            return index + 1, kept
        finally:
            clip.close()
            process.stdout.close()  # which moviepy forgets where ffmpeg has ended by itself
            process.stderr.close()
            process.wait()
    raise AssertionError("reading ends with a warning")


def _copy_steadily(path: Path, copy: Path) -> None:
    """Write the frames of a video, each once, at a constant rate and without loss."""
    command = [ffmpeg(), "-v", "error", "-nostdin", "-y", "-protocol_whitelist", "file", "-i", str(path.absolute())]
    # An AVI: other containers keep how long the last frame is shown, for which moviepy repeats it.
    timing = ["-vf", f"settb=1/{_COPY_FPS},setpts=N,format=gbrp", "-enc_time_base", f"1:{_COPY_FPS}"]
    sink = [*timing, "-an", "-sn", "-dn", "-fps_mode", "passthrough", "-c:v", "ffv1", str(copy)]
    result = subprocess.run([*command, *sink], capture_output=True, check=False)
    if result.returncode != 0:
        raise RunError(f"{path}: cannot be copied to the folder for temporary files: {last_line(result.stderr)}")
