"""Tokens of sound under those of a frame: nothing is lost, nothing impossible is drawn or costs anything."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.heard import CODES, SOUND_CODES, TOKENS, make_heard_world
from support.worlds import make_actions, make_world

from worldvq.models.config import SamplingConfig
from worldvq.models.layout import SoundTokens, TokenLayout
from worldvq.models.losses import dynamics_loss
from worldvq.models.sampling import draw_noise, predictive, sequential
from worldvq.nn.noise import stream_keys
from worldvq.types import TokenClip

SIZES = {"h": st.integers(1, 4), "w": st.integers(1, 5), "a": st.integers(1, 12), "k": st.integers(1, 5)}


@settings(deadline=None)
@given(**SIZES, codes=st.integers(1, 5), seed=st.integers(0, 99))
def test_frame_and_sound_come_back_and_only_what_can_stand_there_is_possible(h, w, a, k, codes, seed):
    layout = TokenLayout((h, w), k, SoundTokens(a, codes))
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randint(k, (2, 3, h, w), generator=generator)
    sound = torch.randint(codes, (2, 3, a), generator=generator)
    tokens = layout.join(frame, sound)
    assert tokens.shape == (2, 3, *layout.grid) and layout.grid[0] * w - h * w - a in range(w)
    assert torch.equal(layout.seen(tokens), frame) and torch.equal(layout.heard(tokens), sound)
    possible = [
        set(range(k)) if place < h * w else set(range(k, k + codes)) if place < h * w + a else {0}
        for place in range(layout.grid[0] * w)
    ]
    assert [set((~row).nonzero()[:, 0].tolist()) for row in layout.impossible().flatten(0, 1)] == possible
    assert all(int(token) in few for token, few in zip(tokens[0, 0].flatten(), possible, strict=True))


def test_without_sound_nothing_changes():
    layout = TokenLayout((2, 3), 5)
    tokens = torch.randint(5, (4, 2, 3))
    assert (layout.grid, layout.num_codes) == ((2, 3), 5) and layout.join(tokens, None) is tokens
    assert torch.equal(layout.seen(tokens), tokens) and not layout.impossible().any()
    names = set(make_world().dynamics.state_dict())
    assert {"prior.head.1.weight", "forecast.weight"} <= names and not any("possible" in name for name in names)


@pytest.mark.parametrize("prior", ["transformer", "pixelcnn"])
def test_every_way_of_drawing_draws_the_same_possible_tokens(prior):
    dynamics = make_heard_world(prior).dynamics
    impossible, (height, width) = dynamics.layout.impossible(), dynamics.grid
    context, keys = torch.randn(5, height, width, 16), stream_keys(0, torch.arange(5).numpy(), torch.zeros(5).numpy())
    for sampling in (
        SamplingConfig(),
        SamplingConfig(temperature=3.0),
        SamplingConfig(temperature=0),
        SamplingConfig(top_k=9),
    ):
        noise = draw_noise(dynamics.prior, keys, sampling)
        drawn = sequential(dynamics.prior.start(5, context), (5, height, width), noise, sampling).tokens
        draft = torch.zeros_like(drawn)
        assert torch.equal(predictive(dynamics.prior.start(5, context), draft, noise, sampling).tokens, drawn)
        assert not impossible.expand(5, -1, -1, -1).gather(-1, drawn[..., None]).any()
    logits = dynamics.prior(drawn, context)
    chances = logits.softmax(-1)
    assert chances[impossible.expand_as(chances)].max() == 0 and not chances.isnan().any()
    assert dynamics.forecast(context).softmax(-1)[impossible.expand_as(chances)].max() == 0


def test_a_place_that_is_left_over_costs_nothing_and_teaches_nothing():
    dynamics = make_heard_world().dynamics.train()
    layout = dynamics.layout
    tokens = layout.join(torch.randint(CODES, (2, 4, 2, 3)), torch.randint(SOUND_CODES, (2, 4, TOKENS)))
    yes = torch.ones(2, 4, dtype=torch.bool)
    clip = TokenClip(tokens, make_actions("discrete", 2, 4), torch.zeros(2, 4), ~yes, yes, yes)
    loss, metrics = dynamics_loss(dynamics, clip)
    logits = dynamics(tokens, clip.actions).logits.detach().log_softmax(-1)
    nats = -logits.gather(-1, tokens[:, 1:, ..., None])[..., 0]
    places = list(itertools.product(range(layout.grid[0]), range(3)))
    assert [place for place in places if not nats[:, :, place[0], place[1]].any()] == [(3, 1), (3, 2)]
    assert metrics["nats_per_token"] == pytest.approx(float(nats.mean()), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in dynamics.parameters())
    start = len(dynamics.prior.embed.weight) - SOUND_CODES
    assert dynamics.embed.weight.grad is not None and dynamics.embed.weight.grad[start:].any()
