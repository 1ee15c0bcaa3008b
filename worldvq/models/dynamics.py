"""Action-conditioned dynamics in token space: a context network over past frames, and a prior over the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldvq.models.config import DynamicsConfig
from worldvq.models.layout import Possible, PossiblePrior, SoundTokens, TokenLayout
from worldvq.models.priors import make_prior
from worldvq.nn.attention import Attention, FeedForward, RingCache, grid_angles, ring_ages, rotary_angles
from worldvq.nn.initialize import start_as_embeddings, start_like_codes
from worldvq.nn.merge import Merge
from worldvq.nn.recall import Recall, RecallRing
from worldvq.nn.symlog import NUM_BINS
from worldvq.types import UNBOUNDED, ActionSpace


class Prediction(NamedTuple):
    """What a teacher-forced pass over clips says.

    Attributes:
        logits: (B, T - 1, h, w, K) of the tokens of frames 1 … T - 1, each given the true past.
        forecast: (B, T - 1, h, w, K) likewise, of every token alone: without the tokens before it in its frame.
        rewards: (B, T, bins) logits of the reward of the transition out of each frame; its mean is
            :func:`worldvq.nn.symlog.expected_reward`.
        termination: (B, T) logit that this transition ends the task.
    """

    logits: Tensor
    forecast: Tensor
    rewards: Tensor
    termination: Tensor


class DynamicsOutput(NamedTuple):
    """What the context network says of the transition out of each frame.

    Attributes:
        context: (B, T, h, w, D) features that describe the next frame.
        rewards: (B, T, bins) logits of the reward.
        termination: (B, T) logit that the task ends.
    """

    context: Tensor
    rewards: Tensor
    termination: Tensor


class ActionEmbedding(nn.Module):
    """Stored actions (B, T, ...) to (B, T, width): one table a factor, or a linear map of a box.

    An axis of a box enters scaled from its bounds to [-1, 1]; as it is where a side has none (see
    :data:`worldvq.types.UNBOUNDED`), and as 0 where both are the same.
    """

    def __init__(self, space: ActionSpace, width: int):
        super().__init__()
        self.kind = space.kind
        self.register_buffer("offsets", torch.tensor([0, *space.nvec[:-1]]).cumsum(0), persistent=False)
        self.offsets: Tensor
        if space.kind == "box":
            self.map: nn.Module = nn.Linear(len(space.low), width)
            low, high = torch.tensor([space.low, space.high], dtype=torch.float64)
            bounded = torch.maximum(low.abs(), high.abs()) < UNBOUNDED
            centre = ((low + high) / 2).where(bounded, 0)
            reach = ((high - low) / 2).where(bounded, 1).where(low < high, torch.inf)
            self.register_buffer("centre", centre.float(), persistent=False)
            self.register_buffer("reach", reach.float(), persistent=False)
            self.centre: Tensor
            self.reach: Tensor
        else:
            self.map = nn.Embedding(sum(space.nvec), width)

    def forward(self, actions: Tensor) -> Tensor:
        """Embed actions."""
        if self.kind == "box":
            scaled = (actions - self.centre) / self.reach
            return self.map(scaled.to(self.map.weight.dtype))  # type: ignore[arg-type]
        if self.kind == "discrete":
            actions = actions[..., None]
        return self.map(actions + self.offsets).sum(-2)


class SpaceTimeBlock(nn.Module):
    """Attention within a frame, causal attention over time per position, feed-forward."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.space = Attention(width, num_heads)
        self.time = Attention(width, num_heads)
        self.feed_forward = FeedForward(width)


class DynamicsState:
    """The last ``context_frames`` frames of B rows as the network remembers them; grows no further.

    All rows write into the same slot of the ring at the same time, so a step has fixed shapes. How many slots hold
    frames of its own, each row knows for itself: rows may have begun at different times.

    Attributes:
        caches: One a block, its rows the positions (or squares of them) of the B worlds, B-major.
        recalled: Of whole frames, its rows the B worlds; None where the network has no such layer.
        clock: (1,) int64, frames written so far; it says which slot is next.
        ages: (B,) int64, frames that each row has observed.
    """

    def __init__(self, caches: list[RingCache], recalled: RecallRing | None, clock: Tensor, ages: Tensor):
        self.caches, self.recalled, self.clock, self.ages = caches, recalled, clock, ages

    @property
    def size(self) -> int:
        """Frames that fit."""
        return self.caches[0].keys.shape[2]

    def _positions(self, rows: Tensor) -> Tensor:
        """Rows of the caches that belong to rows (n,) of the batch: (n N,)."""
        per_row = len(self.caches[0].keys) // len(self.ages)
        return (rows[:, None] * per_row + torch.arange(per_row, device=rows.device)).flatten()

    def select(self, rows: Tensor) -> DynamicsState:
        """Return a copy of rows (n,) int64, in that order; one may be there more than once."""
        positions = self._positions(rows)
        caches = [cache.select(positions) for cache in self.caches]
        recalled = self.recalled and self.recalled.select(rows)
        return DynamicsState(caches, recalled, self.clock.clone(), self.ages[rows])

    def put(self, rows: Tensor, other: DynamicsState) -> None:
        """Overwrite rows (n,) int64, in place, by the n rows of another state."""
        positions, turn = self._positions(rows), int(self.clock - other.clock)
        for cache, new in zip(self.caches, other.caches, strict=True):
            cache.put(positions, new, turn)
        if self.recalled is not None and other.recalled is not None:
            self.recalled.put(rows, other.recalled, turn)
        self.ages[rows] = other.ages


class Dynamics(nn.Module):
    """Context network + prior; ``context[:, t]`` has seen frames <= t and actions <= t and describes frame t + 1.

    Where frames are heard as well, what is said here of a frame's tokens (h, w) is meant of both: see ``layout``.
    """

    def __init__(
        self,
        config: DynamicsConfig,
        grid: tuple[int, int],
        num_codes: int,
        action_space: ActionSpace,
        sound: SoundTokens | None = None,
    ):
        """Start with random weights.

        Args:
            config: Sizes.
            grid: Height and width of a frame in tokens.
            num_codes: How many different ones there are.
            action_space: What an action is.
            sound: What is heard in a step, if anything.

        Raises:
            UsageError: The grid does not divide into squares of ``config.merge`` tokens.
        """
        super().__init__()
        self.config = config
        self.layout = TokenLayout(grid, num_codes, sound)
        self.grid = grid = self.layout.grid
        self.num_codes = num_codes = self.layout.num_codes
        self.action_space = action_space
        width, length, coarse = config.width, grid[0] * grid[1], config.merged(grid)
        self.embed = nn.Embedding(num_codes, width)
        self.position = nn.Parameter(0.02 * torch.randn(coarse[0] * coarse[1], width))
        self.embed_action = ActionEmbedding(action_space, width)
        self.blocks: list[SpaceTimeBlock] = nn.ModuleList(  # type: ignore[assignment]
            SpaceTimeBlock(width, config.num_heads) for _ in range(config.num_blocks)
        )
        self.recall = Recall(width, config.num_heads, length) if config.recall else None
        self.merge = Merge(grid, config.merge, width) if config.merge > 1 else None
        self.norm = nn.LayerNorm(width)
        self.prior = make_prior(config.prior, grid, num_codes, context_dim=width)
        self.forecast: nn.Module = nn.Linear(width, num_codes)
        self.outcome = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.salience = nn.Linear(width, 1)
        self.reward = nn.Linear(width, NUM_BINS)
        self.termination = nn.Linear(width, 1)
        angles = grid_angles(coarse, width // config.num_heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        _initialize(self)
        if sound is not None:
            self.prior = PossiblePrior(self.prior, self.layout)
            self.forecast = nn.Sequential(self.forecast, Possible(self.layout))

    def initialize_embeddings(self, *codebooks: Tensor) -> None:
        """Start token embeddings as random projections of the codes (K, D), so that like codes start alike.

        Args:
            codebooks: Of frames, and of sound where there is any.
        """
        for embed in (self.embed, self.prior.embed):
            tables = embed.weight.detach().split([len(codes) for codes in codebooks])
            for table, codebook in zip(tables, codebooks, strict=True):
                start_like_codes(table, codebook)

    def _inputs(self, frames: Tensor, actions: Tensor, recalled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum up what the blocks work on.

        Args:
            frames: (..., N, width), embedded.
            actions: (..., width), embedded.
            recalled: (..., N, width), if anything is.

        Returns:
            (..., n, width), that of positions or, where they are merged, of squares; and what :meth:`Merge.split` needs
            of each position (..., N, width).
        """
        if self.merge is not None:
            frames = frames if recalled is None else frames + recalled
            return self.merge.join(frames) + self.position + actions[..., None, :], frames
        x = frames + self.position + actions[..., None, :]
        return (x if recalled is None else x + recalled), frames

    def forward(self, tokens: Tensor, actions: Tensor) -> Prediction:
        """Predict every next frame of whole clips in parallel, teacher-forced.

        Args:
            tokens: (B, T, h, w) int64.
            actions: (B, T, ...), ``actions[:, t]`` leads out of frame t.
        """
        output = self.context(tokens, actions)
        batch, steps = tokens.shape[:2]
        context = output.context[:, :-1]  # (B, T-1, h, w, D)
        logits = self.prior(tokens[:, 1:].flatten(0, 1), context.flatten(0, 1)).unflatten(0, (batch, steps - 1))
        return Prediction(logits, self.forecast(context), output.rewards, output.termination)

    def context(self, tokens: Tensor, actions: Tensor) -> DynamicsOutput:
        """Run the context network over whole clips in parallel.

        Args:
            tokens: (B, T, h, w) int64.
            actions: (B, T, ...), ``actions[:, t]`` leads out of frame t.
        """
        steps = tokens.shape[1]
        frames, taken = self.embed(tokens.flatten(2)), self.embed_action(actions)
        recalled = None if self.recall is None else self.recall(frames, taken, self.config.context_frames)
        x, known = self._inputs(frames, taken, recalled)  # (B, T, n, W), (B, T, N, W)
        angles = rotary_angles(torch.arange(steps, device=x.device)[:, None].float(), self.blocks[0].time.head_dim)
        cos, sin = angles.cos(), angles.sin()
        # Each frame sees itself and the context_frames - 1 before it: what the ring cache holds when streaming.
        ones = torch.ones(steps, steps, dtype=torch.bool, device=x.device)
        window = ones.tril() & ones.triu(1 - self.config.context_frames)
        for block in self.blocks:
            x = x + block.space(x, self.cos, self.sin, axis=2)
            x = x + block.time(x, cos, sin, window, axis=1)
            x = x + block.feed_forward(x)
        return self._output(x, known)

    def _output(self, x: Tensor, known: Tensor) -> DynamicsOutput:
        """Return what is said of frames, of x (B, T, n, W) and ``known`` (B, T, N, W); see :meth:`_inputs`."""
        normed = self.norm(x)
        context = normed if self.merge is None else self.merge.split(x, known)  # (B, T, N, W)
        outcome = self.outcome(normed)
        # A mean over positions would drown an object about to be touched, which fills one of them.
        outcome = (self.salience(outcome).softmax(2) * outcome).sum(2)  # (B, T, W)
        return DynamicsOutput(context.unflatten(2, self.grid), self.reward(outcome), self.termination(outcome)[..., 0])

    def start(self, batch: int) -> DynamicsState:
        """Return an empty state for streaming ``batch`` worlds."""
        size, like = self.config.context_frames, self.position
        caches = [RingCache.empty(batch * len(like), block.time, size, like) for block in self.blocks]
        recalled = None if self.recall is None else RecallRing.for_frames(batch, size, self.recall, like)
        zeros = torch.zeros(1 + batch, dtype=torch.int64, device=like.device)
        return DynamicsState(caches, recalled, zeros[:1].clone(), zeros[1:].clone())

    def observe(self, tokens: Tensor, actions: Tensor, state: DynamicsState) -> DynamicsOutput:
        """Take in one frame and the action that leads out of it; equals the last step of :meth:`context`.

        Args:
            tokens: (B, h, w) int64.
            actions: (B, ...).
            state: Updated in place.

        Returns:
            As :meth:`context`, with T = 1.
        """
        return self.advance(self.embed(tokens.flatten(1)), self.embed_action(actions[:, None])[:, 0], state)

    def advance(self, frame: Tensor, taken: Tensor, state: DynamicsState) -> DynamicsOutput:
        """As :meth:`observe`, of what is embedded already: a frame (B, N, width) and the action (B, width)."""
        recalled = None
        if self.recall is not None:
            assert state.recalled is not None
            recalled = state.recalled.recall(self.recall, frame, taken, state.clock, state.ages)
        x, known = self._inputs(frame, taken, recalled)  # (B, n, W), (B, N, W)
        ages, slot = ring_ages(state.clock, state.size)
        angles = rotary_angles(-ages[:, None].float(), self.blocks[0].time.head_dim)
        cos, sin = angles.cos(), angles.sin()
        filled = (ages <= state.ages[:, None]).repeat_interleave(x.shape[1], 0)[:, None, None]  # (B n, 1, 1, size)
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x = x + block.space(x, self.cos, self.sin)
            rows = x.reshape(-1, 1, x.shape[-1])  # (B n, 1, W)
            x = x + cache.attend(block.time, rows, slot, cos, sin, filled).view_as(x)
            x = x + block.feed_forward(x)
        state.clock += 1
        state.ages += 1
        return self._output(x[:, None], known[:, None])


def _initialize(dynamics: Dynamics) -> None:
    """The network starts as its embeddings; rewards start at 0, looking everywhere."""
    start_as_embeddings(dynamics)
    for layer in (dynamics.reward, dynamics.salience):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
