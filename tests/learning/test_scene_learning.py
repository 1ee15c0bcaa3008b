"""Scene codes learn what a frame is of: two kinds of grids are told apart, and knowing which makes tokens cheaper."""

import torch

from worldvq.models.config import SceneConfig, ScenePriorConfig, SceneQuantizerConfig
from worldvq.models.losses import scene_loss
from worldvq.models.scene import SceneModel
from worldvq.types import TokenClip

GRID = (4, 4)


def two_scenes(batch, generator):
    """Grids of coins: of one kind nine in ten are 1, of the other one in ten; and which kind each is."""
    kind = torch.randint(2, (batch,), generator=generator)
    share = torch.where(kind == 1, 0.9, 0.1)[:, None, None]
    tokens = (torch.rand(batch, *GRID, generator=generator) < share).long()
    yes = torch.ones(batch, 1, dtype=torch.bool)
    return TokenClip(tokens[:, None], yes.long(), yes.float(), ~yes, yes, yes), kind


def train(count):
    torch.manual_seed(0)
    quantizer = SceneQuantizerConfig(num_codes=2, code_dim=2)
    prior = ScenePriorConfig(width=16, num_blocks=1)
    config = SceneConfig(num_codes_per_frame=count, quantizer=quantizer, width=16, prior=prior)
    model = SceneModel(config, GRID, 2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        loss, _ = scene_loss(model, two_scenes(32, generator)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def cost(model, tokens, codes):
    """Nats a token."""
    with torch.no_grad():
        return float(model.nats(tokens, codes)[0].mean())


def test_codes_tell_scenes_apart_and_make_tokens_cheaper():
    clip, kind = two_scenes(512, torch.Generator().manual_seed(1))
    tokens = clip.tokens[:, 0]
    told = train(1)
    codes = told.encode(tokens)[:, 0]
    agree = float((codes == kind).float().mean())
    assert max(agree, 1 - agree) > 0.97, agree
    blind = train(0)
    with_codes, without = (cost(model, tokens, model.encode(tokens)) for model in (told, blind))
    # The entropy of a coin is 0.325 nats; without the code, the first of 16 coins costs log 2, and neighbours tell.
    assert 0.3 < with_codes < 0.36 < without, (with_codes, without)
    wrong = cost(told, tokens, 1 - codes[:, None])
    assert wrong > 2 * with_codes, wrong
