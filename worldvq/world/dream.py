"""A dream in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from worldvq.errors import UsageError
from worldvq.models.config import SamplingConfig
from worldvq.models.dynamics import Dynamics, DynamicsOutput, DynamicsState
from worldvq.models.sampling import Drafts, WholeGrid, draw, draw_noise
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.symlog import symexp
from worldvq.types import frames_from_model

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel


class Steps(NamedTuple):
    """The costly parts of a step, plain or compiled.

    Attributes:
        observe: As :meth:`Dynamics.observe`.
        logits: As :meth:`Prior.forward`, for passes of one fixed shape; None has the prior cache what is settled.
        decode: As :meth:`Tokenizer.decode`.
    """

    observe: Callable[[Tensor, Tensor, DynamicsState], DynamicsOutput]
    logits: Callable[[Tensor, Tensor], Tensor] | None
    decode: Callable[[Tensor], Tensor]


def make_steps(tokenizer: Tokenizer, dynamics: Dynamics, compile: bool) -> Steps:
    """Return the steps of a dream; compiled ones are compiled at their first call, and again for another batch.

    On a GPU the prior and the decoder run as CUDA graphs. ``observe`` writes into the rings, which a graph may not.
    """
    if not compile:
        return Steps(dynamics.observe, None, tokenizer.decode)
    on_gpu = next(dynamics.parameters()).is_cuda
    observe = torch.compile(dynamics.observe, dynamic=False)
    mode = "reduce-overhead" if on_gpu else None  # CUDA graphs
    logits = torch.compile(dynamics.prior, mode=mode, dynamic=False)
    decode = torch.compile(tokenizer.decode, mode=mode, dynamic=False)
    if not on_gpu:
        return Steps(observe, logits, decode)

    def owned(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Copy what a graph returns, which its next replay overwrites."""

        def call(*arguments: Tensor) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return part(*arguments).clone()

        return call

    return Steps(observe, owned(logits), owned(decode))


def _packed(x: Tensor) -> Tensor:
    """Copy x so that its strides follow from its shape: for any others a compiled step would be compiled again."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


class Session:
    """A dream in progress: B worlds that take one action at a time, for as long as you like.

    Attributes:
        tokens: (B, h, w) of the newest frame.
        passes: (B,) passes through the prior that the newest frame took; empty before the first.
    """

    def __init__(self, world: WorldModel, tokens: Tensor, actions: Tensor, seed: int, sampling: SamplingConfig):
        if actions.shape[1] != tokens.shape[1] - 1:
            raise UsageError(
                f"{tokens.shape[1]} context frames have {tokens.shape[1] - 1} actions between them, "
                f"got {actions.shape[1]}"
            )
        self.world = world
        if sampling.compile and sampling.method == "auto":  # passes are of one shape: fewer are faster
            sampling = sampling.model_copy(update={"method": "predictive"})
        self.sampling = sampling
        self.steps = world.steps(sampling.compile)
        self.generator = torch.Generator().manual_seed(seed)
        self.drafts = Drafts()
        self.state = world.dynamics.start(len(tokens))
        tokens, actions = tokens.to(world.device), actions.to(world.device)
        self.tokens, self.passes = _packed(tokens[:, -1]), torch.empty(0, dtype=torch.int64)
        with torch.no_grad():
            for index in range(actions.shape[1]):
                world.check_step(actions[:, index], len(tokens))
                self.steps.observe(_packed(tokens[:, index]), _packed(actions[:, index]), self.state)

    @torch.no_grad()
    def step_tokens(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take actions (B, ...).

        Returns:
            Tokens (B, h, w), rewards (B,), termination probabilities (B,), and passes through the prior (B,).
        """
        dynamics = self.world.dynamics
        self.world.check_step(actions, len(self.tokens))
        output = self.steps.observe(self.tokens, _packed(actions.to(self.world.device)), self.state)
        context = output.context[:, 0]  # (B, h, w, D)
        forecast = dynamics.forecast(context)
        noise = draw_noise(dynamics.prior, len(context), self.sampling, self.generator)
        pace = self.world.pace(len(context))
        logits = self.steps.logits
        cache = WholeGrid(logits, context) if logits is not None else dynamics.prior.start(len(context), context)
        drawn = draw(cache, forecast, self.tokens, noise, self.sampling, self.drafts, pace)
        self.tokens, self.passes = drawn.tokens, drawn.passes
        rewards = symexp(output.rewards[:, 0].float())
        return drawn.tokens.cpu(), rewards.cpu(), output.termination[:, 0].float().sigmoid().cpu(), drawn.passes

    @torch.no_grad()
    def step(self, actions: Tensor) -> Tensor:
        """Take actions (B, ...); returns the next frames (B, H, W, 3) uint8."""
        self.step_tokens(actions)
        return frames_from_model(self.steps.decode(self.tokens)).cpu()
