"""Worlds of random weights, and what goes into them."""

from __future__ import annotations

import torch
from torch import Tensor

from support.tokenizers import tokenizer_config
from worldvq.models.config import DynamicsConfig, PriorConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.symlog import NUM_BINS
from worldvq.types import ActionSpace
from worldvq.world.model import WorldModel

SPACES = {
    "discrete": ActionSpace("discrete", nvec=(3,), names=("left", "stay", "right")),
    "multi_discrete": ActionSpace("multi_discrete", nvec=(3, 2)),
    "box": ActionSpace("box", low=(-1.0, -1.0), high=(1.0, float("inf"))),
}
HEIGHT, WIDTH, CODES, WINDOW = 16, 24, 11, 3


def make_world(
    kind: str = "discrete", num_blocks: int = 2, prior: str = "transformer", recall: bool = True, merge: int = 1
) -> WorldModel:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(num_codes=CODES, code_dim=4)
    downsample = 8 if merge == 1 else 4  # 2x3 or 4x6 tokens
    tokenizer = Tokenizer(tokenizer_config(quantizer, frame_size=(HEIGHT, WIDTH), downsample=downsample))
    inner = PriorConfig(kind=prior, width=16, num_blocks=1, num_heads=2)  # type: ignore[arg-type]
    sizes = {"context_frames": WINDOW, "recall": recall, "num_blocks": num_blocks, "merge": merge}
    config = DynamicsConfig(width=16, num_heads=2, prior=inner, **sizes)
    dynamics = Dynamics(config, tokenizer.grid, CODES, SPACES[kind])
    torch.manual_seed(0)  # whatever was drawn to build them
    for module in (tokenizer, dynamics):
        for parameter in module.parameters():  # nothing may be hidden by zero-initialised branches
            torch.nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():  # huge rewards are improbable, or rounding them would drown all others
        dynamics.reward.bias -= 2 * torch.linspace(-20, 20, NUM_BINS).abs()
    return WorldModel(tokenizer, dynamics, {"env_id": "Toy-v0"})


def make_frames(batch: int, steps: int) -> Tensor:
    return torch.randint(256, (batch, steps, HEIGHT, WIDTH, 3), dtype=torch.uint8)


def make_actions(kind: str, batch: int, steps: int) -> Tensor:
    if kind == "box":
        return torch.rand(batch, steps, 2) * 2 - 1
    factors = [torch.randint(n, (batch, steps)) for n in SPACES[kind].nvec]
    return factors[0] if kind == "discrete" else torch.stack(factors, -1)
