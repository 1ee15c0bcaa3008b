"""Optimizers over the parameters of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from worldvq.nn.conv import Convolution, Convolution1d, TransposedConvolution
from worldvq.nn.matrix import Matrix
from worldvq.training.config import OptimizerConfig
from worldvq.training.muon import Muon


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return AdamW over all parameters, or Muon over the hidden matrices with AdamW over the rest.

    Weight decay is on the weights of linear layers and convolutions only: not on tables (of embeddings, of positions),
    gains and biases.
    """
    kernels = Convolution | Convolution1d | TransposedConvolution
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | kernels)}
    inner = {id(m.weight) for m in model.modules() if isinstance(m, Matrix | kernels)}
    hidden = [p for p in model.parameters() if id(p) in inner and config.kind == "muon"]
    others = [p for p in model.parameters() if id(p) not in inner or config.kind != "muon"]
    groups = [
        {"params": [p for p in others if id(p) in weights], "weight_decay": config.weight_decay},
        {"params": [p for p in others if id(p) not in weights], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    if not hidden:
        return adamw
    return Together(Muon(hidden, config.learning_rate, config.weight_decay), adamw)


class Together(torch.optim.Optimizer):
    """Two optimizers, each of its own parameters, as one: for a loop, a checkpoint and Accelerate, which take one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer):
        self._parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on the groups and the state that are saved and loaded as one."""
        first, second = self._parts
        count = len(first.param_groups)
        first.param_groups, second.param_groups = self.param_groups[:count], self.param_groups[count:]
        first.state = second.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load; see :class:`torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Let both take a step."""
        for part in self._parts:
            part.step(closure)


def state_layout(optimizer: torch.optim.Optimizer) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every state that an optimizer of :func:`make_optimizer` keeps, by ``index.key``.

    The index counts parameters as ``optimizer.state_dict()`` does. A parameter without a gradient so far has no state.
    """
    layout = {}
    parameters = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    for index, (group, p) in enumerate(parameters):
        if "momentum" in group:  # Muon
            layout[f"{index}.momentum_buffer"] = (p.shape, p.dtype)
            continue
        layout[f"{index}.step"] = (torch.Size(), torch.float32)
        layout[f"{index}.exp_avg"] = layout[f"{index}.exp_avg_sq"] = (p.shape, p.dtype)
    return layout
