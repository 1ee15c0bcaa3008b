"""tools/compare_vae.py: its bound is that of a VAE, and it walks from a world to a table."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from support.episodes import write
from support.worlds import make_frames, make_world
from torch.distributions import Normal, kl_divergence

from worldvq.evaluation import likelihood
from worldvq.models.likelihood import logistic_nats
from worldvq.types import Clip, Episode, frames_to_model

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/compare_vae.py"))


def test_the_loss_is_the_bound():
    model, frames = TOOL["GaussianAutoencoder"](make_world().tokenizer.config), make_frames(4, 1)
    ones = torch.ones(4, 1, dtype=torch.bool)
    clip = Clip(frames, torch.zeros(4, 1), torch.zeros(4, 1), ones, ones, ones)
    torch.manual_seed(1)
    loss, metrics = TOOL["vae_loss"](model, clip)
    x = frames_to_model(frames[:, 0])
    mean, log_variance = model.encoder(x).chunk(2, 1)
    assert mean.shape == (4, 4, 2, 3)  # code_dim numbers on the grid
    posterior = Normal(mean, (0.5 * log_variance).exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum() / x.numel()
    torch.manual_seed(1)
    z = posterior.mean + posterior.stddev * torch.randn_like(mean)
    nats = logistic_nats(x, model.decoder(z), model.log_scale).sum() / x.numel()
    torch.testing.assert_close(loss, kl + nats, rtol=1e-5, atol=0)
    torch.testing.assert_close(metrics["kl_bits"], kl.detach() / math.log(2), rtol=1e-5, atol=0)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_from_a_world_to_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(likelihood, "FITTED", 8)
    world, rng, rows = make_world(), np.random.default_rng(0), []
    world.save(tmp_path / "world")
    for seed in range(4):
        frames, zeros = make_frames(1, 21)[0].numpy(), np.zeros(20, np.float32)
        rows.append(Episode(frames, rng.integers(0, 3, 20), zeros, False, True, seed=seed))
    write(tmp_path / "data", world.action_space, rows)
    command = ["compare_vae.py", "--clips", "2", "--config", "tiny", "tokenizer_training.steps=3"]
    for name in ("world", "data", "out"):
        command += [f"--{name}", str(tmp_path / name)]
    monkeypatch.setattr(sys, "argv", command)
    TOOL["main"]()
    first = capsys.readouterr().out
    assert "VAE, 24 Gaussian numbers" in first and "the dynamics, given the past" in first
    TOOL["main"]()  # it is done: the same numbers at once
    again = capsys.readouterr().out
    assert "training" not in again and first.endswith(again)
