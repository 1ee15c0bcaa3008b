"""Noise of rows: the hash as NumPy computes it, even, independent of its neighbours, and standard Gumbel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.nn.noise import gumbel_noise, random_bits, stream_keys

MASK = 2**64 - 1


def mixed(x):
    """SplitMix64 in plain integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hashed(x):
    """lowbias32 in plain integers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def make_keys(seed, row_seeds, steps):
    return torch.from_numpy(stream_keys(seed, np.array(row_seeds), np.array(steps)))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62)), min_size=1, max_size=4),
    count=st.integers(1, 40),
)
def test_words_are_those_of_plain_integers(seed, rows, count):
    row_seeds, steps = zip(*rows, strict=True)
    words = random_bits(make_keys(seed, row_seeds, steps), count).numpy().view(np.uint32)
    for (row_seed, step), line in zip(rows, words, strict=True):
        key = mixed((mixed((mixed(seed & MASK) + row_seed) & MASK) + step) & MASK)
        low, high = key & 0xFFFFFFFF, key >> 32
        assert line.tolist() == [hashed(hashed((place + low) & 0xFFFFFFFF) ^ high) for place in range(count)]


def test_bits_are_even_and_neighbours_have_nothing_in_common():
    """Of rows, steps and seeds that are next to each other, and of places that are."""
    count = 2**16
    streams = [random_bits(make_keys(seed, [row], [step]), count)[0] for seed, row, step in np.ndindex(3, 4, 4)]
    bits = np.stack([(line.numpy().view(np.uint32)[:, None] >> np.arange(32)) & 1 for line in streams])  # (48, n, 32)
    signs = 2.0 * bits - 1
    assert abs(signs.mean(1)).max() * count**0.5 < 5.5  # 1,536 means of as many fair coins
    flat = signs.reshape(len(streams), -1)
    correlation = flat @ flat.T / flat.shape[1]
    assert abs(correlation[~np.eye(len(streams), dtype=bool)]).max() * flat.shape[1] ** 0.5 < 5.5
    for lag in (1, 2, 64, 512, 4096):
        assert abs((signs[:, lag:] * signs[:, :-lag]).mean(1)).max() * count**0.5 < 6
    assert len(np.unique(streams[0])) == count


def test_noise_is_standard_gumbel():
    stats = pytest.importorskip("scipy.stats")
    noise = gumbel_noise(make_keys(0, np.arange(8), np.zeros(8, int)), 50_000).double().numpy()
    assert np.isfinite(noise).all()
    for row in noise:
        assert stats.kstest(row, "gumbel_r").pvalue > 1e-4


def test_the_outermost_words_give_finite_noise(monkeypatch):
    words = torch.tensor([[-(2**31), -1, 0, 1, 511, 2**31 - 1]], dtype=torch.int32)
    monkeypatch.setattr("worldvq.nn.noise.random_bits", lambda keys, count: words)
    assert gumbel_noise(torch.zeros(1, 2, dtype=torch.int32), 6).isfinite().all()


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 9), count=st.sampled_from([1, 7, 2**16, 2**17 + 3]), seed=st.integers(0, 2**40))
def test_a_row_does_not_depend_on_how_many_are_made(batch, count, seed):
    keys = make_keys(seed, np.arange(batch), np.arange(batch) * 5)
    together = gumbel_noise(keys, count)
    assert together.shape == (batch, count)
    assert torch.equal(together[-1:], gumbel_noise(keys[-1:], count))
