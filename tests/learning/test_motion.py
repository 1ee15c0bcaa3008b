"""Does the motion term keep what is small and moves?"""

import numpy as np
import torch
from support.tokenizers import tokenizer_config

from worldvq.evaluation.regions import small_region_recall
from worldvq.models.config import TokenizerLossConfig
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.tokenizer_losses import make_tokenizer_loss
from worldvq.nn.config import QuantizerConfig
from worldvq.types import Clip, frames_from_model, frames_to_model


def dots(num_clips, steps, seed):
    """Walls of random colours, the same within a clip, and a small white dot that jumps."""
    rng = np.random.default_rng(seed)
    walls = rng.integers(40, 216, (num_clips, 1, 2, 2, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    frames = walls.repeat(steps, 1)
    for clip in frames:
        for frame, (y, x) in zip(clip, rng.integers(0, 15, (steps, 2)), strict=True):
            frame[y : y + 2, x : x + 2] = 255
    yes, zeros = torch.ones(num_clips, steps, dtype=torch.bool), torch.zeros(num_clips, steps)
    return Clip(torch.from_numpy(frames), zeros.long(), zeros, zeros.bool(), yes, yes)


def test_with_the_motion_term_a_small_moving_dot_survives():
    """64 codes for a quarter of the frame: too few for the colour of the wall and the place of the dot."""
    train, test = [dots(16, 2, seed) for seed in range(32)], dots(256, 3, 99)
    config = tokenizer_config(QuantizerConfig(num_codes=64, code_dim=8), width=32, downsample=8)
    recall = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(1)
        model, loss_function = make_tokenizer_loss(Tokenizer(config), TokenizerLossConfig(motion=weight))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(150):
            loss, _ = loss_function(model, train[step % len(train)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        before, now, after = test.frames.unbind(1)
        with torch.no_grad():
            rebuilt = frames_from_model(model.eval()(frames_to_model(now)).frames)
        recalled, total = small_region_recall(before, now, rebuilt, after)
        assert total > 200
        recall[weight] = recalled / total
    assert recall[0.0] < 0.1 and recall[1.0] > 0.6, recall
