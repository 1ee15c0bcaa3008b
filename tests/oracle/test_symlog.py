"""Two-hot rewards, against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldvq.nn.symlog import NUM_BINS, expected_reward, reward_nats, two_hot

EDGES = np.linspace(-20, 20, NUM_BINS)
BINS = np.sign(EDGES) * (np.exp(np.abs(EDGES)) - 1)
within = st.floats(-4.8e8, 4.8e8, width=32)
everything = st.floats(allow_nan=False, allow_infinity=False, width=32)


def two_hot_by_hand(value: float) -> np.ndarray:
    """Weights on the two bins around a value, whose mean it is; all on the last one beyond it."""
    weights = np.zeros(NUM_BINS)
    value = min(max(value, BINS[0]), BINS[-1])
    above = next(index for index in range(1, NUM_BINS) if value <= BINS[index])
    weights[above] = (value - BINS[above - 1]) / (BINS[above] - BINS[above - 1])
    weights[above - 1] = 1 - weights[above]
    return weights


def logits_of(weights: torch.Tensor) -> torch.Tensor:
    return weights.log().clamp_min(-200)  # exp(-200) is 0 beside anything


@given(st.lists(everything, min_size=1, max_size=4))
def test_two_hot_is_that_of_numpy(values):
    hot = two_hot(torch.tensor(values)).double().numpy()
    assert hot.shape == (len(values), NUM_BINS) and hot.min() >= 0
    assert ((hot > 0).sum(-1) <= 2).all()
    np.testing.assert_allclose(hot.sum(-1), 1, atol=1e-6)
    # Float32 knows a bin to a few parts in ten million of its size, which is up to 7 times the distance of two bins.
    np.testing.assert_allclose(hot, [two_hot_by_hand(value) for value in values], atol=1e-5)


@given(within)
def test_a_reward_within_the_bins_comes_back(value):
    hot = two_hot(torch.tensor(value))
    assert float(expected_reward(logits_of(hot))) == pytest.approx(value, rel=1e-5, abs=1e-6)


@given(st.lists(everything, min_size=2, max_size=6))
def test_greater_rewards_come_back_greater_and_huge_ones_as_the_last_bin(values):
    back = expected_reward(logits_of(two_hot(torch.tensor(sorted(values)))))
    slack = 1e-5 * back.abs().max()
    assert (back.diff() >= -slack).all() and back.abs().max() <= BINS[-1] * (1 + 1e-5)


def test_rewards_beyond_the_bins_count_as_the_last_one():
    hot = two_hot(torch.tensor([-3e38, 3e38, 1e9, float("inf")]))
    assert hot.argmax(-1).tolist() == [0, NUM_BINS - 1, NUM_BINS - 1, NUM_BINS - 1]
    assert hot.amax(-1).tolist() == [1, 1, 1, 1]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 10.0]))
def test_expected_rewards_and_nats_are_those_of_numpy(seed, scale):
    logits = scale * torch.randn(3, 2, NUM_BINS, generator=torch.Generator().manual_seed(seed))
    exact = logits.double().numpy()
    probability = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    # The far bins weigh up to 5e8 and nearly cancel: what is left is known to float32 of what was added.
    atol = 1e-6 * float((probability * np.abs(BINS)).sum(-1).max())
    np.testing.assert_allclose(expected_reward(logits), probability @ BINS, rtol=1e-5, atol=atol)
    rewards = torch.tensor([[0.0, 1.0], [-7.5, 1e4], [0.25, -1e9]])
    hot = np.array([[two_hot_by_hand(value) for value in row] for row in rewards.tolist()])
    np.testing.assert_allclose(reward_nats(logits, rewards), -(hot * np.log(probability)).sum(-1), rtol=1e-4)


def test_what_says_as_much_for_as_against_is_exactly_zero():
    half = 3 * torch.randn(5, NUM_BINS // 2)
    logits = torch.cat([half, torch.zeros(5, 1), half.flip(-1)], -1)
    assert expected_reward(logits).tolist() == expected_reward(torch.zeros(5, NUM_BINS)).tolist() == [0.0] * 5
    assert expected_reward(logits.bfloat16()).dtype == torch.float32
