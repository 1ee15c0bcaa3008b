"""Reading sounds that others made, whatever way their samples are kept, as one channel of floats at one rate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from worldvq.errors import CorruptFileError, UsageError, plural
from worldvq.files.reading import open_file

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
"""What is taken for a sound in a folder; what it is in truth its first bytes say."""
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64")
"""libsndfile knows more, most of them of old samplers; and of CAF it does not say whether it was cut short."""
MAX_SAMPLES = 2**26
"""Of one sound as it is returned, 256 MiB, 70 minutes at 16 kHz: a file of a few kilobytes may say that it has more."""
RATES = (1000, 768_000)
"""Samples a second that a file may have."""
FULL_SCALE = 127 / 128
"""From here on a sample counts as clipped; the largest one that 8 bits can hold."""
_BLOCK = 2**18
"""Samples of all channels together that are decoded at a time."""
_UNKNOWN_SIZE = 0x7FFF0000
"""A header that gives at least so many bytes was written before it was known how many there would be (to a pipe)."""

_MAX_PAGE = 27 + 255 + 255 * 255
"""Bytes of an Ogg page."""


class ReadSound(NamedTuple):
    """What was in a file.

    Attributes:
        samples: (N,) float32 in [-1, 1], the mean of the channels.
        source_rate: Samples a second in the file.
        channels: Channels in the file.
        peak: Largest absolute sample in the file, in any channel; 0 is silence, over 1 a float that was cut to 1.
        clipped: Share of the file's samples, of all channels, at or over ``FULL_SCALE``.
    """

    samples: np.ndarray
    source_rate: int
    channels: int
    peak: float
    clipped: float


def read_sound(path: Path, rate: int) -> ReadSound:
    """Read one sound as a single channel of ``rate`` samples a second (band-limited resampling by soxr).

    Raises:
        CorruptFileError: It is no sound, is cut short, has no samples, more than ``MAX_SAMPLES`` after resampling, a
            rate outside ``RATES``, or values that are no numbers.
        UsageError: The ``audio`` extra is not installed.
    """
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: the package is there and its library is not
        raise UsageError(f"reading sound needs the audio extra ({error}): pip install 'worldvq[audio]'") from None
    with open_file(path, follow=False) as (file, size):
        try:
            if not size:
                raise ValueError("it is empty")
            # The descriptor: in a file object's callbacks an exception is printed and lost.
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                found = _read(sound, rate, soxr)
                ogg = sound.format == "OGG"
            if ogg:
                _check_last_page(file, size)
            return found
        except soundfile.LibsndfileError as error:
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
        except ValueError as error:
            reason = str(error)
    raise CorruptFileError(f"{path}: not a whole sound ({reason})")


def _read(sound: Any, rate: int, soxr: Any) -> ReadSound:
    """Decode block by block, so that channels and another rate cost no memory; raises a ValueError with the reason."""
    if sound.format not in _FORMATS:
        raise ValueError(f"a {sound.format_info} file; save it as {', '.join(_FORMATS[:1] + _FORMATS[3:5])} or MP3")
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise ValueError(f"{sound.samplerate:,} samples a second, not {RATES[0]:,} to {RATES[1]:,}")
    _check_sizes(sound.extra_info)
    resampler = soxr.ResampleStream(sound.samplerate, rate, 1) if sound.samplerate != rate else None
    parts, made, read, peak, clipped = [], 0, 0, 0.0, 0
    for block in _blocks(sound):
        if not np.isfinite(block).all():
            raise ValueError("values that are no numbers")
        loudness = np.abs(block)
        peak, clipped = max(peak, float(loudness.max())), clipped + int((loudness >= FULL_SCALE).sum())
        read += len(block)
        mono = block.clip(-1, 1).mean(axis=1)
        parts.append(resampler.resample_chunk(mono) if resampler else mono)
        made += len(parts[-1])
        if made > MAX_SAMPLES:
            raise ValueError(f"more than {MAX_SAMPLES:,} samples at {rate:,} a second; cut it into shorter files")
    if read != sound.frames:
        raise ValueError(f"it says that it has {sound.frames:,} samples, {read:,} could be decoded")
    if resampler:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        few = f"{plural(read, 'sample')} at {sound.samplerate:,} a second is too short"
        raise ValueError(few if read else "it has no samples")
    np.clip(samples, -1, 1, out=samples)  # resampling may overshoot
    return ReadSound(samples, sound.samplerate, sound.channels, peak, clipped / (read * sound.channels))


def _blocks(sound: Any) -> Iterator[np.ndarray]:
    """The samples (n, channels) float32, a block at a time."""
    count = max(1, _BLOCK // sound.channels)
    while len(block := sound.read(count, dtype="float32", always_2d=True)):
        yield block


def _check_sizes(log: str) -> None:
    """Raise a ValueError where libsndfile's log says that a header counts more bytes than there are; it reads on."""
    for said, there in re.findall(r": (\d+) \(should be (\d+)\)", log):
        if int(there) < int(said) < _UNKNOWN_SIZE:
            raise ValueError(f"cut short: {int(there):,} bytes of {int(said):,}")


def _check_last_page(file: BinaryIO, size: int) -> None:
    """Raise a ValueError where an Ogg file does not end with what says that it ends (RFC 3533); libsndfile reads on."""
    file.seek(max(0, size - _MAX_PAGE))
    tail = file.read(_MAX_PAGE)
    page = tail[tail.rfind(b"OggS") :]
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not (whole and page[5] & 4):
        raise ValueError("cut short: its last page is missing")
