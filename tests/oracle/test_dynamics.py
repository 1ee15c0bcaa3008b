"""Causality by brute force, streaming = the full pass, actions as NumPy scales them."""

import numpy as np
import pytest
import torch

from worldvq.models.config import DynamicsConfig, PriorConfig
from worldvq.models.dynamics import ActionEmbedding, Dynamics
from worldvq.types import ActionSpace

SPACES = {
    "discrete": ActionSpace("discrete", nvec=(5,)),
    "multi_discrete": ActionSpace("multi_discrete", nvec=(3, 2, 4)),
    "box": ActionSpace("box", low=(-1.0, -1.0), high=(1.0, float("inf"))),
}
CONFIG = DynamicsConfig(
    context_frames=3, width=16, num_blocks=2, num_heads=2, prior=PriorConfig(width=16, num_blocks=2, num_heads=2)
)


def random_actions(space, *shape):
    if space.kind == "box":
        return torch.randn(*shape, *space.shape)
    factors = [torch.randint(n, shape) for n in space.nvec]
    return factors[0] if space.kind == "discrete" else torch.stack(factors, -1)


def make(kind="discrete", grid=(2, 3), num_codes=7):
    model = Dynamics(CONFIG, grid, num_codes, SPACES[kind]).eval()
    for parameter in model.parameters():  # nothing may be hidden by zero-initialised branches
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", SPACES)
@torch.no_grad()
def test_no_logit_sees_its_own_token_a_later_one_or_a_later_action(kind):
    model, steps = make(kind), 6
    tokens, actions = torch.randint(7, (1, steps, 2, 3)), random_actions(SPACES[kind], 1, steps)
    logits = model(tokens, actions).logits  # [:, t] is of frame t + 1

    def changed(new_tokens, new_actions):
        return ((model(new_tokens, new_actions).logits - logits).abs().amax(-1) > 1e-6)[0].flatten(1)

    window = CONFIG.num_blocks * (CONFIG.context_frames - 1)  # frames back through all layers' sliding windows
    for frame in range(steps):
        for place in range(6):
            other = tokens.clone()
            other[0, frame, place // 3, place % 3] = (other[0, frame, place // 3, place % 3] + 1) % 7
            hit = changed(other, actions)  # (steps - 1, 6): frames 1 ... by place
            for target in range(1, steps):
                if target < frame or target > frame + window + 1:
                    assert not hit[target - 1].any()
                elif target == frame:  # within the frame: raster order, strictly later places only
                    assert not hit[target - 1, : place + 1].any()
                    assert hit[target - 1, place + 1 :].all()
                else:
                    assert hit[target - 1].all()
    for step in range(steps):
        other = actions.clone()
        other[0, step] = (other[0, step] + 1) % 2 if kind != "box" else other[0, step] + 1
        hit = changed(tokens, other)
        assert not hit[:step].any()  # actions[step] leads into frame step + 1, which is logits[step]
        assert step >= steps - 1 or hit[step].all()


@pytest.mark.parametrize("kind", SPACES)
@torch.no_grad()
def test_streaming_with_the_ring_cache_equals_the_full_pass(kind):
    model, steps = make(kind), 11  # the ring of 3 turns over several times
    tokens, actions = torch.randint(7, (2, steps, 2, 3)), random_actions(SPACES[kind], 2, steps)
    full, state = model.context(tokens, actions), model.start(2)
    for t in range(steps):
        one = model.observe(tokens[:, t], actions[:, t], state)
        torch.testing.assert_close(one.context[:, 0], full.context[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.rewards[:, 0], full.rewards[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.termination[:, 0], full.termination[:, t], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_box_actions_enter_between_minus_one_and_one():
    inf, huge = float("inf"), 1e308  # a float64 that no float32 holds
    bounds = [(0, 255), (-1, 1), (-1e-3, 3e-3), (1000, 1001), (-999_999, 999_999)]
    as_they_are = [(-inf, inf), (-inf, 2), (0, inf), (-huge, huge), (-3.4028234663852886e38, 3.4028234663852886e38)]
    low, high = (np.array(side, float) for side in zip(*bounds, *as_they_are, (3, 3), strict=True))
    embedding = ActionEmbedding(ActionSpace("box", low=tuple(low), high=tuple(high)), len(low))
    assert not [name for name in embedding.state_dict() if "map" not in name]
    torch.nn.init.eye_(embedding.map.weight)
    torch.nn.init.zeros_(embedding.map.bias)
    rng, n = np.random.default_rng(0), len(bounds)
    actions = rng.uniform(-5, 5, (2, 4, len(low)))
    actions[..., :n] = rng.uniform(low[:n], high[:n], (2, 4, n))
    actions[0, 0, :n], actions[0, 1, :n] = low[:n], high[:n]
    actions[..., -1] = 3
    actions = actions.astype(np.float32)
    expected = actions.astype(float)
    expected[..., :n] = 2 * (expected[..., :n] - low[:n]) / (high[:n] - low[:n]) - 1
    expected[..., -1] = 0
    np.testing.assert_allclose(embedding(torch.from_numpy(actions)), expected, rtol=1e-6, atol=1e-6)
