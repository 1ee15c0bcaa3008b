"""µ-law companding against its formula in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from worldvq.nn.mulaw import NUM_CLASSES, SILENCE, compress, expand

STEP = 2 / 255
SAMPLES = arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1.5, 1.5, width=32))


def companded(x):
    """Before it is cut into steps: [-1, 1] to [-1, 1]."""
    x = np.asarray(x, np.float64)
    return np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)


def expanded(classes):
    """The inverse of the formula, of the middle of each step: powers of 256."""
    y = np.asarray(classes, np.float64) * STEP - 1
    return np.sign(y) * (256 ** np.abs(y) - 1) / 255


@given(SAMPLES)
def test_samples_fall_into_the_step_that_the_formula_says(samples):
    place = (companded(np.clip(samples, -1, 1)) + 1) / STEP + 0.5
    classes = compress(torch.from_numpy(samples))
    assert classes.dtype == torch.int64 and classes.shape == samples.shape
    # In float32 either side of an edge will do.
    assert ((classes.numpy() <= place + 1e-4) & (place - 1e-4 < classes.numpy() + 1)).all()


@given(SAMPLES)
def test_what_comes_back_is_half_a_step_away_at_most(samples):
    samples = np.clip(samples, -1, 1)
    back = expand(compress(torch.from_numpy(samples))).numpy()
    assert back.dtype == np.float32
    assert np.abs(companded(back) - companded(samples)).max() <= STEP / 2 + 1e-5


@given(SAMPLES, st.floats(0, 1, width=32))
def test_louder_is_never_a_lower_class(samples, more):
    waveform = torch.from_numpy(samples)
    assert (compress(waveform + more) >= compress(waveform)).all()


def test_every_class_stands_for_a_sample_that_is_its_own():
    classes = torch.arange(NUM_CLASSES)
    samples = expand(classes)
    np.testing.assert_allclose(samples.numpy(), expanded(classes.numpy()), rtol=1e-4, atol=1e-7)
    assert torch.equal(compress(samples), classes)
    assert (samples.diff() > 0).all() and samples[[0, -1]].tolist() == pytest.approx([-1, 1])
    torch.testing.assert_close(samples.flip(0), -samples, rtol=1e-4, atol=1e-7)


def test_silence_is_the_quietest_class():
    assert compress(torch.zeros(3)).tolist() == [SILENCE] * 3
    assert expand(torch.arange(NUM_CLASSES)).abs().min() == pytest.approx(8.62e-5, 1e-3)
    assert expand(torch.tensor(SILENCE)) == pytest.approx(8.62e-5, 1e-3)


def test_the_ends_are_known():
    """By hand: a half is ln(128.5) / ln(256) = 0.8757 companded, (1.8757 / 2) 255 + 0.5 = 239.6."""
    samples = torch.tensor([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    assert compress(samples).tolist() == [0, 0, 16, 239, 255, 255]
