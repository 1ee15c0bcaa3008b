"""A world of random weights with sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from support.episodes import make_episode, make_meta
from support.tokenizers import tokenizer_config
from support.worlds import CODES, HEIGHT, SPACES, WIDTH, WINDOW
from worldvq.config.env import SoundFormat
from worldvq.data.episodes import EpisodeStore
from worldvq.models.config import DynamicsConfig, PriorConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.layout import SoundTokens
from worldvq.models.sound import SoundTokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.experiment import load_config
from worldvq.types import ActionSpace
from worldvq.world.codec import SoundCodec
from worldvq.world.model import WorldModel

HOP, TOKENS, SOUND_CODES, RATE = 8, 4, 7, 400
SAMPLES = HOP * TOKENS


def make_codec(rate: int = RATE) -> SoundCodec:
    torch.manual_seed(1)
    sound = load_config("tiny", ["sound.strides=[4,2]", f"sound.quantizer.num_codes={SOUND_CODES}"]).sound
    model = SoundTokenizer(sound, 1, rate)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return SoundCodec(model, rate, ["Toy-v0"], {})


def make_heard_world(prior: str = "transformer") -> WorldModel:
    """Frames of 2x3 tokens, and 4 of sound below, so that two places are left over."""
    codec = make_codec()
    torch.manual_seed(0)
    quantizer = QuantizerConfig(num_codes=CODES, code_dim=4)
    tokenizer = Tokenizer(tokenizer_config(quantizer, frame_size=(HEIGHT, WIDTH), downsample=8))
    inner = PriorConfig(kind=prior, width=16, num_blocks=1, num_heads=2)  # type: ignore[arg-type]
    config = DynamicsConfig(width=16, num_heads=2, prior=inner, context_frames=WINDOW, num_blocks=1)
    sound = SoundTokens(TOKENS, SOUND_CODES)
    dynamics = Dynamics(config, tokenizer.grid, CODES, SPACES["discrete"], sound)
    for module in (tokenizer, dynamics):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.4)
    return WorldModel(tokenizer, dynamics, {"env_id": "Toy-v0"}, codec)


def write_store(path: Path, steps: int, space: ActionSpace | None = None) -> EpisodeStore:
    """Two episodes with sound, of which the second is held out, frames as the world takes them."""
    meta = make_meta(size=(HEIGHT, WIDTH), sound=SoundFormat(rate=RATE, samples=SAMPLES), heldout_every=2)
    if space is not None:
        meta = meta.model_copy(update={"action_space": space.to_json()})
    with EpisodeStore.create(path, meta) as store:
        for number in range(2):
            store.commit(number, make_episode(number, steps, size=(HEIGHT, WIDTH), samples=SAMPLES))
    return EpisodeStore.open(path)


def make_sounds(batch: int, steps: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(-(2**15), 2**15, (batch, steps, SAMPLES), np.int16))
