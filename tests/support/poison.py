"""Losses into which NaN or Inf is put at one step, and what a run that meets it must leave as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from support.batches import Noted
from support.tokenizers import make_tokenizer
from worldvq.errors import RunError
from worldvq.models.losses import tokenizer_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.training.config import TrainConfig


class Poison:
    """A loss function that is poisoned once, and remembers model and optimizer as they were before that step."""

    def __init__(self, batches: Noted, place: str, value: float, step: int, call: int = 0):
        self.batches, self.place, self.value, self.step, self.call = batches, place, value, step, call
        self.optimizer: Any = None
        self.before: list[Tensor] = []
        self.calls = 0

    def state(self, network: nn.Module) -> list[Tensor]:
        """Every tensor that a step may change."""
        inner: Any = getattr(network, "module", network)
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in [*inner.state_dict().values(), *moments]]

    def __call__(self, network: nn.Module, clip: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if not network.training or self.batches.seen[-1] != self.step:
            return tokenizer_loss(network, clip)
        if not self.before:
            self.before = self.state(network)
        if not torch.is_grad_enabled():  # the pass from which codes start: what they were must come back
            return tokenizer_loss(network, clip)
        self.calls += 1
        if self.calls - 1 != self.call:
            return tokenizer_loss(network, clip)
        inner: Any = getattr(network, "module", network)
        hooks: list[Any] = []
        if self.place == "encoder output":
            hooks.append(inner.quantizer.register_forward_pre_hook(self._spoil))
        loss, metrics = tokenizer_loss(network, clip)
        for hook in hooks:
            hook.remove()
        if self.place == "loss":
            loss = loss + self.value
        elif self.place == "gradient":
            next(inner.parameters()).register_hook(lambda gradient: torch.full_like(gradient, self.value))
        return loss, metrics

    def _spoil(self, quantizer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        z_e = arguments[0].clone()
        z_e[0, 0, 0, 0] = self.value
        return (z_e,)


def network(kind: str = "ema", **changes: Any) -> Tokenizer:
    """The small tokenizer, whose codes die and are revived within a few steps."""
    sizes: dict[str, Any] = {"levels": (4, 4)} if kind == "fsq" else {"num_codes": 16, "code_dim": 4, "revive_after": 2}
    return make_tokenizer(QuantizerConfig(kind=kind, **sizes, **changes))  # type: ignore[arg-type]


def train_poisoned(
    out: str, settings: dict[str, Any], kind: str, place: str, value: float, step: int, rank: int, call: int = 0
) -> None:
    """Train, poisoned on one process at one step; notes whether all is as it was before that step, then fails."""
    from worldvq.training import fit as module

    here = int(os.environ.get("RANK", "0"))
    tokenizer = network(kind)
    Path(out).mkdir(parents=True, exist_ok=True)
    batches = Noted(settings["batch_size"], Path(out) / f"ids.{here}")
    poison = Poison(batches, place if here == rank else "nowhere", value, step, call)
    make_optimizer = module.make_optimizer

    def remember(*arguments: Any) -> Any:
        poison.optimizer = make_optimizer(*arguments)
        return poison.optimizer

    module.make_optimizer = remember
    try:
        module.fit(tokenizer, poison, batches, TrainConfig(**settings), Path(out) / "run", summary="test")
    except RunError as error:
        after = poison.state(tokenizer)
        same = len(after) == len(poison.before) and all(map(torch.equal, after, poison.before))
        (Path(out) / f"outcome.{here}").write_text(json.dumps([same, len(after), str(error)]))
        raise
    finally:
        module.make_optimizer = make_optimizer
