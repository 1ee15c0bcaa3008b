"""Sounds as files and as pictures."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence

import numpy as np

from worldvq.media.spectrograms import draw_spectrogram
from worldvq.media.tiles import draw_label, grid


def wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    """Return samples (N,) int16 of one channel as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def spectrogram_sheet(
    headings: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], rate: int
) -> np.ndarray:
    """Lay out spectrograms of sounds, a row a sentence, each under what it is: (H, W, 3) uint8.

    Args:
        headings: One a column.
        rows: What the row is, and sounds (N,) int16 of about one length.
        rate: Samples a second.
    """
    return grid(
        [
            [
                draw_label(draw_spectrogram(sound, rate), f"{label}: {heading}" if label else heading)
                for heading, sound in zip(headings, sounds, strict=True)
            ]
            for label, sounds in rows
        ]
    )
