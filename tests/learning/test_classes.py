"""Does a class change what is drawn? Two classes of different constant tokens, learnt from scratch."""

import numpy as np
import pytest
import torch
from support.tokenizers import make_tokenizer

from worldvq.models.config import ImagePriorConfig
from worldvq.models.image_prior import ImagePrior
from worldvq.models.losses import image_prior_loss
from worldvq.types import TokenImages
from worldvq.world.images import ImageModel

TOKENS = torch.tensor([3, 11])
"""What all tokens of a frame are, by class."""


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn"])
def test_each_class_is_drawn_as_it_was_shown(kind):
    torch.manual_seed(0)
    config = ImagePriorConfig(kind=kind, width=16, num_blocks=1, num_heads=2)
    model = ImagePrior(config, (4, 4), 16, 2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        labels = torch.randint(2, (16,))
        loss, metrics = image_prior_loss(model, TokenImages(TOKENS[labels][:, None, None].expand(-1, 4, 4), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(metrics["nats_per_token"]) < 0.02 and float(metrics["forecast"]) < 0.1, metrics
    trained = ImageModel(make_tokenizer(), model, ("first", "second"), {})
    labels = np.arange(32) % 2
    drawn = trained.sample(labels, np.arange(32), method="predictive")
    hits = drawn.tokens == TOKENS[labels][:, None, None]
    assert hits.float().mean() > 0.95, hits.float().mean()
    assert not (drawn.tokens == TOKENS[1 - labels][:, None, None]).any()
