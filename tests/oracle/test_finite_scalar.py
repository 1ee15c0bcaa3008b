"""Finite scalar quantization (Mentzer et al. 2023) against NumPy loops, and against vector-quantize-pytorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.nn.config import QuantizerConfig
from worldvq.nn.quantizer import make_quantizer

levels_of_dimensions = st.lists(st.integers(3, 9), min_size=1, max_size=4)


def finite(levels):
    return make_quantizer(QuantizerConfig(kind="fsq", levels=tuple(levels)))


@settings(max_examples=40, deadline=None)
@given(levels_of_dimensions)
def test_fsq_codes_are_the_mixed_radix_grid_and_all_are_reached(levels):
    quantizer = finite(levels)
    expected = []
    for token in range(len(quantizer.codebook)):
        code, rest = [], token
        for level in levels:
            code.append((rest % level - level // 2) / (level // 2))
            rest //= level
        expected.append(code)
    np.testing.assert_allclose(quantizer.codebook.numpy(), expected, atol=1e-7)
    assert quantizer.codebook.min() == -1 and quantizer.codebook.max() <= 1
    for dimension, level in enumerate(levels):
        amplitude = (level - 1) / 2 * 1.001
        shift = np.arctanh((0.5 - level % 2 / 2) / amplitude)
        z = np.zeros((level, len(levels)), np.float32)  # 0 is the middle of a level, whichever number there are
        z[:, dimension] = np.arctanh((np.arange(level) - (level - 1) / 2) / amplitude) - shift
        digits = quantizer.nearest(torch.from_numpy(z)).numpy() // np.prod(levels[:dimension], dtype=int) % level
        np.testing.assert_array_equal(digits, np.arange(level))


@settings(max_examples=40, deadline=None)
@given(levels_of_dimensions, st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 10.0]))
def test_fsq_agrees_with_another_library_and_with_itself(levels, seed, scale):
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(seed)
    first = (scale * torch.randn(2, len(levels), 4, 3)).requires_grad_()
    second = first.detach().clone().requires_grad_()
    quantizer = finite(levels)
    out = quantizer(first)
    z_q, tokens = library.FSQ(levels)(second)
    assert torch.equal(out.tokens, tokens.long())
    torch.testing.assert_close(out.z_q, z_q)
    assert torch.equal(out.tokens, quantizer.nearest(first.permute(0, 2, 3, 1)))
    assert torch.equal(out.z_q, quantizer.lookup(out.tokens))
    weight = torch.randn_like(first)
    (out.z_q * weight).sum().backward()
    (z_q * weight).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-6)


def test_fsq_learns_nothing_and_adds_no_loss():
    quantizer = finite([4, 5])
    out = quantizer(torch.randn(1, 2, 3, 3))
    assert not list(quantizer.parameters()) and not quantizer.state_dict() and float(out.loss) == 0
    broken = quantizer(torch.full((1, 2, 1, 1), float("nan")))
    assert bool(broken.z_q.isnan().all()) and int(broken.tokens) in range(20)
