"""The loss of the dynamics: what padding and the weights of clips do to it."""

import dataclasses

import numpy as np
import pytest
import torch
from support.training import dynamics

from worldvq.models.losses import FORECAST_WEIGHT, dynamics_loss
from worldvq.types import TokenClip

STEPS = 5


@pytest.fixture(scope="module")
def model():
    made = dynamics().eval()
    for parameter in made.parameters():  # nothing may be hidden by what starts at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def clip():
    random = np.random.default_rng(0)
    lengths = torch.tensor([5, 2, 4, 5])  # frames that exist
    mask = torch.arange(STEPS) < lengths[:, None]
    action_mask = torch.arange(STEPS) < torch.tensor([5, 1, 3, 4])[:, None]
    tokens = torch.from_numpy(random.integers(0, 16, (4, STEPS, 4, 4)))
    actions = torch.from_numpy(random.integers(0, 3, (4, STEPS)))
    rewards = torch.from_numpy(random.choice([0.0, 1.0, -30.0], (4, STEPS))).float() * action_mask
    terminated = action_mask & (torch.arange(STEPS) == torch.tensor([9, 0, 2, 9])[:, None])
    weight = torch.tensor([1.3, 0.2, 0.7, 2.0])
    return TokenClip(tokens, actions, rewards, terminated, mask, action_mask, weight)


def rows(clip, index):
    return TokenClip(**{name: value[index : index + 1] for name, value in vars(clip).items()})


@torch.no_grad()
def test_every_term_of_a_clip_counts_by_its_weight(model, clip):
    loss, metrics = dynamics_loss(model, clip)
    light = dataclasses.replace(clip, weight=torch.ones(4))
    alone = [dynamics_loss(model, rows(light, index)) for index in range(4)]
    weight = clip.weight.tolist()
    assert float(loss) == pytest.approx(np.mean([w * float(each[0]) for w, each in zip(weight, alone, strict=True)]))
    for name, value in metrics.items():
        expected = np.mean([w * float(each[1][name]) for w, each in zip(weight, alone, strict=True)])
        assert float(value) == pytest.approx(expected), name


@torch.no_grad()
def test_padding_adds_zeros_and_counts_in_the_mean(model, clip):
    one = dataclasses.replace(rows(clip, 2), weight=torch.ones(1))  # 4 of 5 frames, 3 transitions
    loss, metrics = dynamics_loss(model, one)
    short = TokenClip(**{k: v if k == "weight" else v[:, :4] for k, v in vars(one).items()})
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(
        {k: float(v) for k, v in dynamics_loss(model, short)[1].items()}, rel=1e-5
    )
    frames = float(metrics["nats_per_token"] + FORECAST_WEIGHT * metrics["forecast"]) * 3 / 4
    transitions = float(metrics["reward"] + metrics["termination"]) * 3 / 5
    assert float(loss) == pytest.approx(frames + transitions, rel=1e-5)
