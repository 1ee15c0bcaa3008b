"""Videos that are known to play.

Every video is written under a temporary name, decoded again, and renamed only when it holds exactly the frames that
were given: a path that :func:`write_video` returned is a file that plays.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldvq.errors import RunError, UsageError, one_line
from worldvq.files.atomic import check_space, disk_errors, remove_stale

VIDEO_SUFFIXES = (".mp4", ".gif", ".webm")

# Tagged as BT.709 so that browsers do not guess the colours from the picture size.
_BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
_TO_YUV = ":out_color_matrix=bt709:out_range=tv,format=yuv420p"
_CODECS = {
    ".mp4": ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-movflags", "+faststart", *_BT709],
    ".webm": ["-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-deadline", "good", "-cpu-used", "5", *_BT709],
    ".gif": ["-c:v", "gif", "-loop", "0"],
}


SOUND_RATE = 48_000
"""Samples a second in a video, whatever the sound's own rate is: WebM plays Opus, and Opus knows five rates."""
_SOUND = {
    ".mp4": ["-c:a", "aac", "-b:a", "128k", "-ar", str(SOUND_RATE)],
    ".webm": ["-c:a", "libopus", "-b:a", "96k", "-ar", str(SOUND_RATE)],
}
SLACK = 0.06
"""Seconds by which a decoded sound may be longer or shorter: codecs write whole blocks, of 20 ms or so."""


@dataclass(frozen=True)
class Sound:
    """A sound track: samples (N,) int16 of one channel, and how many of them a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


def ffmpeg() -> str:
    """Path of ffmpeg; the package imageio-ffmpeg brings one."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise RunError(
            f"no ffmpeg to write videos with ({one_line(error)}): "
            "pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg"
        ) from None


def _check_frame(frame: object, shape: tuple[int, ...] | None) -> np.ndarray:
    array = np.ascontiguousarray(frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise UsageError(f"video frames are uint8 (H, W, 3), got {array.dtype}{list(array.shape)}")
    if shape is not None and array.shape != shape:
        raise UsageError(f"video frames change size: {list(shape)}, then {list(array.shape)}")
    return array


def _filters(suffix: str, scale: int) -> str:
    resize = f"scale=iw*{scale}:ih*{scale}:flags=neighbor"
    if suffix == ".gif":
        # One palette for the whole clip, of the pixels that change; ordered dithering keeps still parts still.
        return f"{resize},split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=bayer:bayer_scale=4"
    even = ",pad=ceil(iw/2)*2:ceil(ih/2)*2" if suffix == ".mp4" else ""
    return f"{resize}{even},scale=flags=accurate_rnd+full_chroma_int{_TO_YUV}"


def last_line(text: bytes) -> str:
    """Return the last line that ffmpeg wrote."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _encode(
    frames: Iterable[np.ndarray],
    path: Path,
    suffix: str,
    size: tuple[int, int],
    fps: float,
    scale: int,
    sound: list[str],
) -> int:
    """Feed frames of ``size`` (H, W) to ffmpeg, with what says where the sound is; returns how many there were.

    Raises:
        OSError: The disk is full, or the file may not grow further.
        RunError: Anything else went wrong.
    """
    height, width = size
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.12g}", "-i", "pipe:0"]
    source += sound
    codecs = [*_CODECS[suffix], *(_SOUND[suffix] if sound else [])]
    sink = ["-vf", _filters(suffix, scale), "-fps_mode", "passthrough", *codecs, "-f", suffix[1:], str(path)]
    count = 0
    with tempfile.TemporaryFile() as messages:
        command = [ffmpeg(), "-v", "error", "-nostdin", "-y", *source, *sink]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        except OSError as error:
            raise RunError(f"cannot start ffmpeg at {command[0]}: {error.strerror}") from None
        assert process.stdin is not None
        try:
            for frame in frames:
                process.stdin.write(frame.tobytes())
                count += 1
            process.stdin.close()
            status = process.wait()
        except BrokenPipeError:
            status = process.wait()  # ffmpeg stopped early; its message says why
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if status != 0:
            messages.seek(0)
            text = messages.read()
            if status == -getattr(signal, "SIGXFSZ", 0):
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            if os.strerror(errno.ENOSPC).encode() in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise RunError(f"ffmpeg failed with status {status}: {last_line(text)}")
    return count


@contextlib.contextmanager
def _sound_source(sound: Sound | None) -> Iterator[list[str]]:
    """Yield the arguments that give ffmpeg a sound, in a file of its own, as the pipe is for the frames."""
    if sound is None:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="worldvq-") as folder:
        path = Path(folder) / "sound"
        path.write_bytes(np.ascontiguousarray(sound.samples, "<i2").tobytes())
        yield ["-f", "s16le", "-ar", str(sound.rate), "-ac", "1", "-i", str(path)]


@dataclass(frozen=True)
class Decoded:
    """What decoding a video gave: when each frame is shown, in seconds, and the frames' size (H, W)."""

    times: tuple[float, ...]
    size: tuple[int, int]


def decode_times(path: Path) -> Decoded:
    """Decode a video to its end and return when each of its frames is shown; what its header says is not believed.

    Raises:
        RunError: The file is missing or does not decode to its end.
    """
    # Nothing but this file: what pretends to be a video may be a playlist that names others.
    source = ["-protocol_whitelist", "file", "-i", str(path.absolute()), "-an", "-sn", "-dn"]
    command = [ffmpeg(), "-v", "error", "-nostdin", "-xerror", *source, "-fps_mode", "passthrough"]
    result = subprocess.run([*command, "-f", "framecrc", "-"], capture_output=True, check=False)
    text = result.stdout.decode(errors="replace")
    size = re.search(r"^#dimensions 0: (\d+)x(\d+)", text, re.MULTILINE)
    tick = re.search(r"^#tb 0: (\d+)/(\d+)", text, re.MULTILINE)
    if result.returncode != 0 or size is None or tick is None:
        raise RunError(f"{path.name} does not decode: {last_line(result.stderr)}")
    seconds = int(tick[1]) / int(tick[2])
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return Decoded(tuple(int(line.split(",")[2]) * seconds for line in lines), (int(size[2]), int(size[1])))


def probe_video(path: Path) -> tuple[int, int, int]:
    """Decode a video; returns (number of frames, height, width).

    Raises:
        RunError: The file is missing or does not decode to its end.
    """
    decoded = decode_times(path)
    return len(decoded.times), *decoded.size


def decode_sound(path: Path, rate: int = SOUND_RATE) -> np.ndarray:
    """Decode the sound of a video to its end: samples (N,) int16 of one channel at ``rate``.

    Raises:
        RunError: The file is missing, has no sound, or does not decode to its end.
    """
    source = ["-protocol_whitelist", "file", "-i", str(path.absolute()), "-vn", "-sn", "-dn"]
    sink = ["-ac", "1", "-ar", str(rate), "-f", "s16le", "-"]
    command = [ffmpeg(), "-v", "error", "-nostdin", "-xerror", *source, *sink]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        raise RunError(f"the sound of {path.name} does not decode: {last_line(result.stderr)}")
    return np.frombuffer(result.stdout, "<i2")


def _check_sound(path: Path, sound: Sound) -> None:
    seconds = len(decode_sound(path)) / SOUND_RATE
    if abs(seconds - sound.seconds) > SLACK:
        raise RunError(f"the encoder wrote {seconds:.3f} s of sound instead of {sound.seconds:.3f}")


def _check_written(path: Path, count: int, size: tuple[int, int]) -> None:
    found, height, width = probe_video(path)
    if found != count:
        raise RunError(f"the encoder wrote {found} of {count} frames")
    if (height, width) != size:
        raise RunError(f"the encoder wrote {width}x{height} pixels instead of {size[1]}x{size[0]}")


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float = 15,
    scale: int | None = 1,
    expected: int | None = None,
    sound: Sound | None = None,
) -> Path:
    """Write frames as a video that is known to decode to exactly these frames.

    ``.mp4`` is H.264 (yuv420p, plays in browsers; odd sizes get a black row or column), ``.webm`` is VP9, ``.gif``
    loops for ever. A missing folder is created.

    Args:
        path: Where to; the suffix decides the format.
        frames: (H, W, 3) uint8 each, all of one size; read once.
        fps: Frames a second.
        scale: Whole factor of enlargement, nearest neighbour.
        expected: How many frames there must be, where the caller knows.
        sound: What is heard from the first frame on, AAC in ``.mp4``, Opus in ``.webm``; a ``.gif`` is silent.

    Returns:
        The path.

    Raises:
        UsageError: Unknown suffix, no frames, or frames that are not what is said above.
        RunError: The encode failed or came out wrong. Nothing is left behind; an older file stays as it was.
    """
    path = Path(path)
    factor = 1 if scale is None else scale
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise UsageError(f"cannot write a video to '{path}': the name must end in {', '.join(VIDEO_SUFFIXES)}")
    if not fps > 0 or factor < 1 or factor != int(factor):
        raise UsageError(f"fps must be positive and scale a whole number from 1, got fps={fps}, scale={scale}")
    if path.is_dir():
        raise UsageError(f"cannot write a video to '{path}': it is a folder")
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise UsageError(f"no frames to write to '{path}'")
    first = _check_frame(first, None)
    height, width = (int(side) * int(factor) for side in first.shape[:2])
    if suffix == ".mp4":
        height, width = height + height % 2, width + width % 2
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        check_space(path, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent, path.name)
        try:
            checked = itertools.chain([first], (_check_frame(frame, first.shape) for frame in iterator))
            with _sound_source(sound if suffix in _SOUND else None) as source:
                count = _encode(checked, temporary, suffix, (first.shape[0], first.shape[1]), fps, int(factor), source)
            if expected is not None and count != expected:
                raise RunError(f"there were {count} frames where {expected} were expected")
            _check_written(temporary, count, (height, width))
            if sound is not None and suffix in _SOUND:
                _check_sound(temporary, sound)
            temporary.replace(path)
        except RunError as error:
            raise RunError(f"cannot write the video '{path}': {error}") from None
        finally:
            temporary.unlink(missing_ok=True)
    return path
