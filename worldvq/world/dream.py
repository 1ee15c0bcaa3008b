"""A dream in progress: rows that take one action at a time, each for itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.errors import UsageError, plural
from worldvq.models.config import SamplingConfig
from worldvq.models.dynamics import DynamicsOutput, DynamicsState
from worldvq.models.sampling import Drafts, Drawn, WholeGrid, choose, draw, draw_noise
from worldvq.nn.devices import resolve_precision
from worldvq.nn.noise import stream_keys
from worldvq.nn.symlog import expected_reward
from worldvq.types import as_tensor, frames_from_model
from worldvq.world.actions import stored_actions
from worldvq.world.engine import Engine


class Step(NamedTuple):
    """What one step of a dream gave, on the CPU.

    Attributes:
        tokens: (B, h, w) int64 of the next frame.
        rewards: (B,) predicted reward of the transition into it.
        termination: (B,) probability that this transition ended the task.
        passes: (B,) passes through the prior that it took.
    """

    tokens: Tensor
    rewards: Tensor
    termination: Tensor
    passes: Tensor


R = TypeVar("R")
P = ParamSpec("P")


def _in_its_precision(method: Callable[Concatenate[Dream, P], R]) -> Callable[Concatenate[Dream, P], R]:
    """Run a method of a dream without gradients, multiplying in bf16 where its sampling says so."""

    @functools.wraps(method)
    def run(dream: Dream, *arguments: P.args, **named: P.kwargs) -> R:
        half = dream.sampling.precision == "bf16"
        casts = torch.autocast(dream.engine.device.type, torch.bfloat16) if half else contextlib.nullcontext()
        with torch.no_grad(), casts:
            return method(dream, *arguments, **named)

    return run


def _packed(x: Tensor) -> Tensor:
    """Copy x so that its strides follow from its shape: for any others a compiled step would be compiled again."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


class Dream:
    """B dreams that take one action at a time, for as long as you like; made by :meth:`WorldModel.start`.

    Rows are independent. What a row dreams is a function of the dream's seed, the row's own seed, its context and its
    actions: the same alone or among others, whatever happens to those.

    Attributes:
        engine: What dreams.
        sampling: How tokens are drawn.
        seed: Of the whole dream.
        row_seeds: (B,) int64, of each row.
        steps: (B,) int64, frames that each row has imagined since it began.
        tokens: (B, h, w) of each row's newest frame.
        context: (B, h, w, D), what the context network said of each row's newest frame before it was drawn; zeros
            where no frame came before it.
        passes: (B,) passes through the prior that the newest frames took; empty before the first step.
    """

    def __init__(
        self,
        engine: Engine,
        tokens: Tensor,
        actions: ArrayLike | Tensor,
        seed: int,
        sampling: SamplingConfig,
        row_seeds: ArrayLike | None = None,
    ):
        """Begin.

        Args:
            engine: What dreams.
            tokens: (B, C, h, w) int64, the context.
            actions: (B, C - 1, ...), those between its frames.
            seed: Of the whole dream.
            sampling: How tokens are drawn.
            row_seeds: (B,) integers; 0 … B - 1 where they are left out.

        Raises:
            UsageError: Something does not fit.
        """
        if sampling.compile and sampling.method == "auto":  # passes are of one shape: fewer are faster
            sampling = sampling.model_copy(update={"method": "predictive"})
        precision = resolve_precision(sampling.precision, engine.device)
        sampling = sampling.model_copy(update={"precision": precision})
        self.engine, self.sampling, self.seed = engine, sampling, seed
        self.row_seeds = _seeds(np.arange(len(tokens)) if row_seeds is None else row_seeds, len(tokens))
        self.steps = np.zeros(len(tokens), np.int64)
        self.tokens, self.context, self.state = self._observe_context(tokens, actions)
        self.passes = torch.empty(0, dtype=torch.int64)
        self._drafts = Drafts(torch.zeros(len(tokens), dtype=torch.bool, device=engine.device))

    def __len__(self) -> int:
        """Number of rows B."""
        return len(self.tokens)

    @_in_its_precision
    def _observe_context(self, tokens: Tensor, actions: ArrayLike | Tensor) -> tuple[Tensor, Tensor, DynamicsState]:
        """Take in a context (n, C, h, w) but for its last frame; returns that, what was said of it, and the memory."""
        engine, (batch, context) = self.engine, tokens.shape[:2]
        actions = as_tensor(actions)
        between = tuple(actions.shape[1:2])
        if between and between != (context - 1,):
            frames = plural(context, "frame")
            raise UsageError(
                f"a context of {frames} has {plural(context - 1, 'action')} between them, got {between[0]}"
            )
        taken = stored_actions(actions, engine.action_space, (batch, context - 1), "the context").to(engine.device)
        state, observe = engine.dynamics.start(batch), engine.steps(self.sampling.compile).observe
        tokens = tokens.to(engine.device)
        said = engine.dynamics.position.new_zeros(*tokens[:, 0].shape, engine.dynamics.config.width)
        for index in range(context - 1):
            said = observe(_packed(tokens[:, index]), _packed(taken[:, index]), state).context[:, 0]
        return _packed(tokens[:, -1]), said, state

    @_in_its_precision
    def step_tokens(self, actions: ArrayLike | Tensor) -> Step:
        """Take actions (B, ...), or one action for all rows; draw the tokens of the next frames.

        Raises:
            UsageError: There is no such action.
        """
        engine, batch, prior = self.engine, len(self), self.engine.dynamics.prior
        output = self._observe(actions)
        logits, context = engine.steps(self.sampling.compile).logits, output.context[:, 0]  # (B, h, w, D)
        cache = WholeGrid(logits, context) if logits is not None else prior.start(batch, context)
        forecast = engine.dynamics.forecast(context)  # (B, h, w, K)
        drawn = draw(cache, forecast, self.tokens, self._noise(), self.sampling, self._drafts, engine.pace(batch))
        return self._advance(drawn, output)

    @_in_its_precision
    def forecast(self, actions: ArrayLike | Tensor) -> Step:
        """Go on like :meth:`step_tokens`, but draw each token of the next frames alone, from the parallel head.

        For whoever wants numbers rather than pictures: rewards and endings are as good for the same tokens, but tokens
        that were not drawn in sight of each other fit together less well. Counts as no pass through the prior.

        Raises:
            UsageError: There is no such action.
        """
        output = self._observe(actions)
        logits = self.engine.dynamics.forecast(output.context[:, 0]).flatten(1, 2)  # (B, h w, K)
        tokens = choose(logits, self._noise(), self.sampling).view_as(self.tokens)
        return self._advance(Drawn(tokens, torch.zeros(len(self), dtype=torch.int64)), output)

    def _observe(self, actions: ArrayLike | Tensor) -> DynamicsOutput:
        """Take in the newest frames and the actions (B, ...) out of them."""
        taken = stored_actions(actions, self.engine.action_space, (len(self),), "one step").to(self.engine.device)
        return self.engine.steps(self.sampling.compile).observe(self.tokens, _packed(taken), self.state)

    def _noise(self) -> Tensor | None:
        """Return what the next tokens are drawn with, (B, h w, K); None at temperature 0."""
        keys = stream_keys(self.seed, self.row_seeds, self.steps)
        return draw_noise(self.engine.dynamics.prior, keys, self.sampling)

    def _advance(self, drawn: Drawn, output: DynamicsOutput) -> Step:
        """Make what was drawn the newest frames."""
        self.tokens, self.passes, self.context = drawn.tokens, drawn.passes, output.context[:, 0]
        self.steps += 1
        rewards, ends = expected_reward(output.rewards[:, 0]), output.termination[:, 0].float().sigmoid()
        return Step(drawn.tokens.cpu(), rewards.cpu(), ends.cpu(), drawn.passes)

    @_in_its_precision
    def entropy(self) -> Tensor:
        """Return how unsure the prior was of each token of the newest frames, given those before it: (B, h, w) in nats.

        Of what is seen, not of what is heard.

        At temperature 1 and without truncation, whatever they were drawn with; one pass through the prior.
        """
        logits = self.engine.dynamics.prior(self.tokens, self.context).float().log_softmax(-1)  # (B, h, w, K)
        return self.engine.layout.seen(-(logits.exp() * logits).sum(-1)).cpu()

    def step(self, actions: ArrayLike | Tensor) -> Tensor:
        """Take actions (B, ...), or one action for all rows; returns the next frames (B, H, W, 3) uint8."""
        self.step_tokens(actions)
        return self.render()

    @_in_its_precision
    def render(self) -> Tensor:
        """Return the newest frames (B, H, W, 3) uint8."""
        seen = self.engine.layout.seen(self.tokens)
        return frames_from_model(self.engine.steps(self.sampling.compile).decode(seen)).cpu()

    def reset(
        self,
        rows: ArrayLike,
        frames: ArrayLike | Tensor,
        actions: ArrayLike | Tensor,
        row_seeds: ArrayLike | None = None,
        sounds: ArrayLike | Tensor | None = None,
    ) -> None:
        """Let some rows begin again, from other contexts; the others do not notice.

        Args:
            rows: (n,) indices, or (B,) bool.
            frames: (n, C, H, W, 3) uint8, their contexts; C may be another than before.
            actions: (n, C - 1, ...), those between the context frames.
            row_seeds: (n,) new seeds; where they are left out, rows keep theirs, and dream again what they would from
                the same context under the same actions.
            sounds: (n, C, S) int16, what was heard before each of the frames; silence where left out.

        Raises:
            UsageError: There is no such row, or something does not fit; nothing has changed.
        """
        chosen = self._rows(rows)
        if not len(chosen):  # a mask of what has ended, when nothing has
            return
        seeds = self.row_seeds[chosen] if row_seeds is None else _seeds(row_seeds, len(chosen))
        tokens = self.engine.tokenize(as_tensor(frames), None if sounds is None else as_tensor(sounds))
        if len(tokens) != len(chosen):
            raise UsageError(f"{len(chosen)} rows begin again, but there are contexts for {len(tokens)}")
        newest, said, state = self._observe_context(tokens, actions)
        on_device = torch.from_numpy(chosen).to(self.engine.device)
        self.state.put(on_device, state)
        self.tokens = self.tokens.index_copy(0, on_device, newest)  # not in place: steps that were returned keep theirs
        self.context = self.context.index_copy(0, on_device, said.to(self.context.dtype))
        self._drafts.previous_wins[on_device] = False
        self.row_seeds[chosen], self.steps[chosen] = seeds, 0

    def fork(self, rows: ArrayLike, row_seeds: ArrayLike | None = None) -> Dream:
        """Return a dream of copies of some rows, which goes on by itself; this one stays as it is.

        Args:
            rows: (n,) indices, of which one may stand more than once, or (B,) bool.
            row_seeds: (n,) seeds of the copies; where they are left out, those of the rows, so that under the same
                actions a copy dreams what its row does.
        """
        chosen = self._some(self._rows(rows, repeated=True))
        copy = object.__new__(Dream)
        copy.engine, copy.sampling, copy.seed = self.engine, self.sampling, self.seed
        copy.row_seeds = self.row_seeds[chosen] if row_seeds is None else _seeds(row_seeds, len(chosen))
        copy._take(self, chosen)
        return copy

    @staticmethod
    def join(dreams: Sequence[Dream]) -> Dream:
        """Return a dream of copies of all rows of some dreams, one after the other; those stay as they are.

        Rows dream on as they would have in their own: what is stepped at the same time is stepped as one batch.

        Raises:
            UsageError: They are of different worlds, or of different seeds or sampling.
        """
        first, joined = dreams[0], object.__new__(Dream)
        for other in dreams:
            if other.engine is not first.engine or (other.seed, other.sampling) != (first.seed, first.sampling):
                raise UsageError("dreams that are joined are of one world, one seed and one way of sampling")
        joined.engine, joined.sampling, joined.seed = first.engine, first.sampling, first.seed
        joined.row_seeds = np.concatenate([dream.row_seeds for dream in dreams])
        joined.steps = np.concatenate([dream.steps for dream in dreams])
        joined.tokens = torch.cat([dream.tokens for dream in dreams])
        joined.context = torch.cat([dream.context for dream in dreams])
        wins = torch.cat([dream._drafts.previous_wins for dream in dreams])
        joined._drafts, joined.passes = Drafts(wins), torch.empty(0, dtype=torch.int64)
        joined.state = first.engine.dynamics.start(len(joined))
        joined.state.clock.copy_(first.state.clock)
        rows = torch.arange(len(joined), device=first.engine.device).split([len(dream) for dream in dreams])
        for own, dream in zip(rows, dreams, strict=True):
            joined.state.put(own, dream.state)
        return joined

    def keep(self, rows: ArrayLike) -> None:
        """Drop all rows but these, (n,) indices in their new order, or (B,) bool."""
        chosen = self._some(self._rows(rows))
        self.row_seeds = self.row_seeds[chosen]
        self._take(self, chosen)

    def _take(self, other: Dream, chosen: np.ndarray) -> None:
        """Become the chosen rows of a dream, but for their seeds."""
        on_device = torch.from_numpy(chosen).to(self.engine.device)
        self.steps = other.steps[chosen]
        self.tokens, self.state = other.tokens[on_device], other.state.select(on_device)
        self.context = other.context[on_device]
        self.passes = other.passes[torch.from_numpy(chosen)] if len(other.passes) else other.passes
        self._drafts = Drafts(other._drafts.previous_wins[on_device])

    def _rows(self, rows: ArrayLike, repeated: bool = False) -> np.ndarray:
        """Return indices (n,) int64 of rows that are there."""
        given = np.atleast_1d(as_tensor(rows).cpu().numpy())
        if given.dtype == bool and given.shape == (len(self),):
            return np.flatnonzero(given)
        whole = given.ndim == 1 and np.issubdtype(given.dtype, np.integer)
        if not whole or ((given < 0) | (given >= len(self))).any():
            raise UsageError(f"rows {given.tolist()}: this dream has rows 0 to {len(self) - 1}")
        if not repeated and len(np.unique(given)) < len(given):
            raise UsageError(f"rows {given.tolist()}: one stands there twice; fork makes copies")
        return given.astype(np.int64)

    @staticmethod
    def _some(chosen: np.ndarray) -> np.ndarray:
        if not len(chosen):
            raise UsageError("no row is chosen: a dream has at least one")
        return chosen


def _seeds(row_seeds: ArrayLike, count: int) -> np.ndarray:
    """Check seeds of rows; returns a copy (count,) int64."""
    seeds = np.array(row_seeds)
    if seeds.shape != (count,) or not np.issubdtype(seeds.dtype, np.integer):
        raise UsageError(f"row_seeds are {seeds.dtype}{list(seeds.shape)}, {count} integers are needed")
    return seeds.astype(np.int64)
