"""tools/hear_dreams.py: what counts as an onset, and what is near one."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/hear_dreams.py"))
STEP = 400


def noise(*levels: float) -> np.ndarray:
    """Steps (1, 400 n) int16, each as loud as said (RMS, of full scale)."""
    signs = np.random.default_rng(0).choice([-1, 1], (len(levels), STEP))
    return (2**15 * np.array(levels)[:, None] * signs).astype(np.int16).reshape(1, -1)


def test_an_onset_is_above_the_threshold_and_twice_as_loud_as_before():
    samples = noise(0, 0.2, 0.3, 0, 0.01, 0.05, 0.11)
    found = TOOL["onsets"](samples, STEP, 0.02)
    assert found.tolist() == [[True, False, False, False, True, True]]


def test_near_is_within_the_slack():
    found = np.array([[False, False, True, False, False]])
    assert TOOL["near"](found, 0).tolist() == found.tolist()
    assert TOOL["near"](found, 1).tolist() == [[False, True, True, True, False]]
