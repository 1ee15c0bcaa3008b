"""Things of the smallest size that fit each other, some that don't, and how a refusal is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support.episodes import write
from support.fault_tools import hashes
from worldvq.config.env import EnvConfig
from worldvq.errors import CorruptFileError, UsageError
from worldvq.models.loading import save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import load_config
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.types import ActionSpace, Episode

NAMED = ActionSpace("discrete", (4,), names=("noop", "forward", "left", "right"))
SPACES = {
    "fewer choices": ActionSpace("discrete", (3,), names=("noop", "forward", "left")),
    "other names": ActionSpace("discrete", (4,), names=("noop", "forward", "right", "left")),
    "several factors": ActionSpace("multi_discrete", (4, 2)),
    "a box": ActionSpace("box", low=(-1.0,), high=(1.0,)),
}
CONFIG = load_config(
    "tiny",
    [
        "env.size=[16,16]",
        "tokenizer={frame_size: [16, 16], width: 8, encoder_blocks: 0, decoder_blocks: 0, "
        "quantizer: {num_codes: 8, code_dim: 4}}",
        "tokenizer_training={steps: 2, batch_size: 4}",
        "dynamics={context_frames: 2, width: 16, num_blocks: 1, num_heads: 2, "
        "prior: {width: 16, num_blocks: 1, num_heads: 2}}",
        "dynamics_training={steps: 2, batch_size: 2, clip_frames: 4}",
        "evaluate={clips: 4, context: 2, horizon: 2}",
    ],
)


def make_data(folder: Path, space: ActionSpace = NAMED, side: int = 16, **changes) -> Path:
    rng, episodes = np.random.default_rng(0), []
    for _ in range(4):
        actions = rng.integers(0, 2, (8, *space.shape)).astype(space.dtype)
        frames = rng.integers(0, 256, (9, side, side, 3), np.uint8)
        episodes.append(Episode(frames, actions, np.zeros(8, np.float32), terminated=True, truncated=False))
    write(folder, space, episodes, **{"env": EnvConfig(size=(side, side)), **changes})
    return folder


def make_all(root: Path) -> None:
    """Write data, a tokenizer, its tokens, dynamics and a world that fit each other; and some that don't."""
    make_data(root / "data")
    train_tokenizer(CONFIG, root / "data", root / "tokenizer")
    tokenize(root / "tokenizer", root / "data", root / "tokens", "cpu")
    train_dynamics(CONFIG, root / "tokens", root / "tokenizer", root / "dynamics", root / "world")
    make_data(root / "large", side=32)
    for name, space in SPACES.items():
        make_data(root / name, space)
        tokenize(root / "tokenizer", root / name, root / f"tokens of {name}", "cpu")
    quantizers = {"another seed": {}, "more codes": {"num_codes": 12}}
    for name, quantizer in quantizers.items():
        torch.manual_seed(9)
        config = CONFIG.tokenizer.model_copy(
            update={"quantizer": CONFIG.tokenizer.quantizer.model_copy(update=quantizer)}
        )
        save_tokenizer(root / name, Tokenizer(config))
    save_tokenizer(root / "large tokenizer", Tokenizer(CONFIG.tokenizer.model_copy(update={"frame_size": (32, 32)})))


def refused(root: Path, use, *words: str) -> str:
    """The one-line error of something that leaves every file as it was."""
    before, names = hashes(root), sorted(root.rglob("*"))
    with pytest.raises((UsageError, CorruptFileError)) as caught:
        use()
    assert sorted(root.rglob("*")) == names and hashes(root) == before, "something was written"
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message
