"""Spectrograms as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from worldvq.media.tiles import draw_label, grid
from worldvq.nn.spectrograms import FLOOR, log_mel
from worldvq.types import samples_to_model


def draw_spectrogram(samples: np.ndarray, rate: int, height: int = 128, width: int | None = None) -> np.ndarray:
    """Draw samples (N,) int16 as a picture (height, W, 3) uint8: time to the right, low notes below."""
    from matplotlib import colormaps

    step = max(1, len(samples) // (width or 300))
    waveform = samples_to_model(torch.from_numpy(np.array(samples)))
    mel = log_mel(waveform[None], rate, step, bands=height // 2)[0]  # (frames, bands)
    shown = ((mel.T.flip(0) - FLOOR) / -FLOOR).clamp(0, 1).numpy()
    return (colormaps["magma"](shown)[..., :3] * 255).astype(np.uint8).repeat(2, axis=0)


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
