"""tools/compare_h264.py: sizes and decibels of a stream that is decoded again, on both sides of the target."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/compare_h264.py"))


@pytest.fixture(scope="module")
def frames():
    """A soft pattern that moves a pixel a frame."""
    rng = np.random.default_rng(0)
    wide = np.cumsum(np.cumsum(rng.normal(size=(32, 48, 3)), 0), 1)
    wide = (255 * (wide - wide.min()) / np.ptp(wide)).astype(np.uint8)
    return np.stack([wide[:, step : step + 32] for step in range(8)])


def test_better_is_larger(frames):
    (small, worse), (large, better) = (TOOL["encode"](frames, crf, "yuv444p") for crf in (40, 5))
    assert small < large < frames.nbytes and worse < 35 < 40 < better
    assert TOOL["psnr"](4.0) == pytest.approx(20 * np.log10(255 / 2))


def test_the_target_lies_between_neighbours(frames):
    pair = TOOL["nearest"](frames, 36.0, "yuv444p")
    (low, larger, better), (high, smaller, worse) = pair
    assert high == low + 1 and better >= 36.0 > worse and larger >= smaller
    assert smaller <= TOOL["between"](pair, 36.0) <= larger
    assert TOOL["between"](pair, better) == pytest.approx(larger)
    assert TOOL["between"](pair, 0.0) == pytest.approx(smaller)
