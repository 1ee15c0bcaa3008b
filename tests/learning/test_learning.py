"""Does it learn? One batch can be overfitted, and what actions do is picked up."""

import torch
from support.tokenizers import tokenizer_config

from worldvq.models.config import DynamicsConfig, PriorConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.losses import dynamics_loss, tokenizer_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.symlog import expected_reward
from worldvq.types import ActionSpace, Clip, TokenClip


def full_clip(kind, items, actions):
    batch, steps = actions.shape
    yes = torch.ones(batch, steps, dtype=torch.bool)
    return kind(items, actions, torch.zeros(batch, steps), torch.zeros(batch, steps, dtype=torch.bool), yes, yes)


def test_the_tokenizer_overfits_one_batch():
    frames = torch.zeros(8, 1, 16, 16, 3, dtype=torch.uint8)
    for row in range(8):  # a bright square somewhere else in each frame
        frames[row, 0, row : row + 6, 2 * (row % 4) : 2 * (row % 4) + 6] = torch.tensor([250, 40 * (row % 5), 90])
    clip = full_clip(Clip, frames, torch.zeros(8, 1, dtype=torch.int64))
    config = tokenizer_config(QuantizerConfig(num_codes=64, code_dim=8), width=16)
    model = Tokenizer(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(250):
        loss, metrics = tokenizer_loss(model, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(metrics["psnr"]))
    assert history[0] < 12 and max(history[-10:]) > 26, (history[0], max(history[-10:]))
    assert float(metrics["perplexity"]) > 4


def moving_dot(batch, steps, generator):
    """A dot on a ring of 8 places that steps left or right as the action says: the future is known only from it."""
    actions = torch.randint(2, (batch, steps), generator=generator)
    start = torch.randint(8, (batch, 1), generator=generator)
    place = (start + torch.cat([torch.zeros(batch, 1, dtype=torch.int64), (2 * actions - 1)[:, :-1].cumsum(1)], 1)) % 8
    tokens = torch.nn.functional.one_hot(place, 8).view(batch, steps, 2, 4)
    return full_clip(TokenClip, tokens, actions)


def test_the_dynamics_learn_what_actions_do_and_shuffling_them_hurts():
    config = DynamicsConfig(
        context_frames=4, width=32, num_blocks=2, num_heads=2, prior=PriorConfig(width=32, num_blocks=1, num_heads=2)
    )
    model = Dynamics(config, (2, 4), 2, ActionSpace("discrete", nvec=(2,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        loss, _ = dynamics_loss(model, moving_dot(16, 6, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = moving_dot(64, 6, generator)
    shuffled = TokenClip(**{**vars(held_out), "actions": held_out.actions.roll(1, 0)})
    with torch.no_grad():
        nats = [float(dynamics_loss(model, clip)[1]["nats_per_token"]) for clip in (held_out, shuffled)]
    assert nats[0] < 0.03, nats  # without the action: log 2 nats a frame, 0.087 a token
    assert nats[1] > 10 * nats[0], nats


def test_the_outcome_heads_learn_reward_and_termination():
    model = Dynamics(DynamicsConfig(width=32, num_blocks=1, num_heads=2), (1, 2), 4, ActionSpace("discrete", nvec=(2,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        tokens = torch.randint(4, (32, 3, 1, 2), generator=generator)
        actions = torch.randint(2, (32, 3), generator=generator)
        paid = (tokens[:, :, 0, 0] == 3) & (actions == 1)
        clip = full_clip(TokenClip, tokens, actions)
        clip = TokenClip(**{**vars(clip), "rewards": paid.float(), "terminated": paid})
        loss, metrics = dynamics_loss(model, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = expected_reward(model(clip.tokens, clip.actions).rewards)
    assert float((expected - clip.rewards).abs().mean()) < 0.05 and float(metrics["termination"]) < 0.1, metrics
