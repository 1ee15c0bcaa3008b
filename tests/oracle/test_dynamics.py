"""Causality by brute force, cached = uncached, sampling against the model's own probabilities."""

import numpy as np
import pytest
import torch

from worldvq.config import DynamicsConfig, PriorConfig, SamplingConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.prior import gumbel_noise, sample, truncate
from worldvq.models.transformer import TransformerPrior
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


@pytest.mark.parametrize("context_dim", [0, 5])
@torch.no_grad()
def test_drawing_token_by_token_sees_the_logits_of_the_full_pass(context_dim):
    prior = TransformerPrior(CONFIG.prior, (3, 4), 7, context_dim).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(7, (2, 3, 4))
    context = torch.randn(2, 3, 4, context_dim) if context_dim else None
    full, cache = prior(tokens, context).flatten(1, 2), prior.start(2, context)
    for index in range(12):
        step = cache.step(tokens.flatten(1)[:, index - 1] if index else None, index)
        torch.testing.assert_close(step, full[:, index], rtol=1e-4, atol=1e-5)


def test_samples_follow_the_models_own_probabilities():
    scipy_stats = pytest.importorskip("scipy.stats")
    prior = TransformerPrior(CONFIG.prior, (1, 2), 3, 0).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    draws = 6000
    drawn = sample(prior, draws, None, SamplingConfig(temperature=0.8), torch.Generator().manual_seed(1)).flatten(1)
    pairs = torch.tensor([[[a, b]] for a in range(3) for b in range(3)])  # every grid there is
    with torch.no_grad():
        log = (prior(pairs) / 0.8).log_softmax(-1)  # (9, 1, 2, 3)
    probability = log.gather(-1, pairs[..., None]).sum((1, 2, 3)).exp().double().numpy()
    counts = np.bincount((drawn[:, 0] * 3 + drawn[:, 1]).numpy(), minlength=9)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert scipy_stats.chisquare(counts, probability / probability.sum() * draws).pvalue > 1e-3


def test_truncation_keeps_what_it_says():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert truncate(logits, SamplingConfig(top_k=2)).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, SamplingConfig(top_p=0.75)).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, SamplingConfig(top_p=0.1)).isfinite().tolist() == [[True, False, False, False]]
    torch.testing.assert_close(truncate(logits, SamplingConfig(temperature=0.5)), logits * 2)


def test_same_seed_same_sample_and_temperature_zero_is_greedy():
    prior = TransformerPrior(CONFIG.prior, (2, 3), 7, 0).eval()
    draw = [sample(prior, 4, None, SamplingConfig(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    greedy = [sample(prior, 2, None, SamplingConfig(temperature=0), torch.Generator()) for _ in range(2)]
    with torch.no_grad():
        assert torch.equal(prior(greedy[0]).argmax(-1), greedy[1])


def test_gumbel_noise_is_finite_and_has_the_right_mean():
    noise = gumbel_noise((200_000,), torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
