"""``configs/dmlab.yaml``, the size of the figure in the VQ-VAE paper: it builds, and draws that figure."""

import numpy as np
import torch
from PIL import Image
from support.command_line import succeed

from worldvq.media.pictures import CONTEXT, IMAGINED
from worldvq.models.dynamics import Dynamics
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.experiment import load_config
from worldvq.types import ActionSpace


def test_it_is_the_size_of_the_paper():
    """84x84x3 to 21x21 of 512 codes; 6 frames are given, 10 imagined (section 4.4, figure 7)."""
    config = load_config("dmlab").for_frames((84, 84), "env.size")
    assert config.env.size == (84, 84) and config.tokenizer.quantizer.num_codes == 512
    assert (config.evaluate.context, config.evaluate.horizon) == (6, 10)
    with torch.device("meta"):
        tokenizer = Tokenizer(config.tokenizer)
        dynamics = Dynamics(config.dynamics, tokenizer.grid, tokenizer.num_codes, ActionSpace("discrete", (7,)))
        assert tokenizer.grid == (21, 21)
        assert tokenizer.decode(torch.zeros(1, 21, 21, dtype=torch.int64)).shape == (1, 3, 84, 84)
    assert sum(p.numel() for p in dynamics.parameters()) > 10_000_000


def test_its_road_ends_in_the_figure(tmp_path, monkeypatch):
    """Narrow and untrained, but with its sizes: a context of 6, then 10 frames all forward and 10 all to the right."""
    monkeypatch.chdir(tmp_path)
    narrow = ["tokenizer.width=8", "tokenizer.quantizer.code_dim=8", "dynamics.width=16", "dynamics.num_blocks=1"]
    narrow += ["dynamics.num_heads=2", "dynamics.prior.width=16", "dynamics.prior.num_blocks=1"]
    narrow += ["dynamics.prior.num_heads=2", "tokenizer_training.batch_size=4", "dynamics_training.batch_size=1"]
    narrow += ["dynamics_training.clip_frames=8", "evaluate.context=2", "evaluate.horizon=2"]
    split = ["record.heldout_every=2"]
    succeed("record", "--config", "dmlab", "--out", "data", "--frames", 150, "--workers", 1, "env.max_steps=40", *split)
    with_config = ["--config", "dmlab", "--steps", 1, *narrow]
    succeed("train", "tokenizer", "--data", "data", "--out", "tokenizer", *with_config)
    succeed("tokenize", "--tokenizer", "tokenizer", "--data", "data", "--out", "tokens")
    succeed("train", "dynamics", "--tokens", "tokens", "--tokenizer", "tokenizer", "--out", "dynamics", *with_config)
    succeed("imagine", "--world", "world", "--data", "data", "--actions", "paper", "--out", "paper.png")
    picture = np.asarray(Image.open("paper.png"))
    # Frames have an edge of two pixels; along a line through both rows a frame begins and ends one each.
    assert frames_across(picture, CONTEXT) == {6} and frames_across(picture, IMAGINED) == {10}
    assert frames_across(picture.transpose(1, 0, 2), IMAGINED) == {2}
    said = succeed("reconstruct", "--tokenizer", "world", "--data", "data", "--out", "back.png", "--frames", 2)
    assert f"{21 * 21 * 9:,} in 441 tokens" in said


def frames_across(picture, edge, side=84):
    """How many frames with an edge of this colour stand beside each other, of the lines that cross any."""
    hits = (picture == edge).all(-1)
    counts = set()
    for line in hits:
        lengths = np.diff(np.flatnonzero(np.diff(np.pad(line.astype(int), 1))))[::2]
        if len(lengths) and (lengths < side).all():  # not along an edge, but across
            counts.add(int(lengths.sum()) // 4)
    return counts
