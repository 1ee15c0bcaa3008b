"""Muon and AdamW as one optimizer: against the two on their own, and saved half-way."""

import copy

import pytest
import torch
from torch import nn

from worldvq.nn.matrix import Matrix
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.hidden = Matrix(8, 8)
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        return self.head(self.hidden(self.embed(x)).relu())


def train(model, optimizers, steps):
    for step in steps:
        x = (torch.arange(16) * (step + 3)) % 7
        nn.functional.cross_entropy(model(x), (x + 1) % 7).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (step + 1)
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture
def config():
    return OptimizerConfig(kind="muon", learning_rate=0.5, weight_decay=0.1)


def assert_equal(one, other):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0)


def test_it_is_muon_on_the_hidden_matrix_and_adamw_on_the_rest(config):
    together = Model()
    apart = copy.deepcopy(together)
    train(together, [make_optimizer(together, config)], range(5))
    muon = torch.optim.Muon([apart.hidden.weight], lr=1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed = torch.optim.AdamW([apart.head.weight], lr=1, betas=config.betas, weight_decay=0.1)
    plain = torch.optim.AdamW([apart.embed.weight, apart.head.bias], lr=1, betas=config.betas, weight_decay=0)
    train(apart, [muon, decayed, plain], range(5))
    assert_equal(together, apart)


def test_a_checkpoint_half_way_changes_nothing(config, tmp_path):
    through, stopped = Model(), Model()
    stopped.load_state_dict(through.state_dict())
    train(through, [make_optimizer(through, config)], range(6))
    first = make_optimizer(stopped, config)
    train(stopped, [first], range(3))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, stopped, first)
    resumed = Model()
    second = make_optimizer(resumed, config)
    assert checkpoints.load_newest(resumed, second) == 3
    train(resumed, [second], range(3, 6))
    assert_equal(through, resumed)


def test_without_hidden_matrices_it_is_adamw(config):
    assert type(make_optimizer(nn.Conv2d(3, 4, 3), config)) is torch.optim.AdamW
