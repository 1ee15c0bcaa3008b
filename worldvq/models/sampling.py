"""Drawing a token grid from any prior: one token after the other, or all at once until they agree.

Both ways draw the same tokens from the same noise: a grid is a function of noise, context and model alone. That holds
up to ties: where the two best scores of a position lie closer than the model's precision rounds (about 1e-5 in fp32,
0.05 in bf16), a pass over another number of positions may round them the other way round. Either token is then as good
a sample, because what decides between them is rounded no better.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldvq.models.config import SamplingConfig
from worldvq.models.priors.contract import GridCache, Prior
from worldvq.nn.noise import gumbel_noise


class Drawn(NamedTuple):
    """Token grids, and how many passes through the prior each took.

    Attributes:
        tokens: (B, h, w) int64.
        passes: (B,) int64.
    """

    tokens: Tensor
    passes: Tensor


def draw_noise(prior: Prior, keys: np.ndarray, sampling: SamplingConfig, length: int | None = None) -> Tensor | None:
    """Return all noise (B, h*w, K) that one grid a row needs; None at temperature 0, which needs none.

    Args:
        prior: What is to be drawn from; the noise is computed where it is.
        keys: (B, 2) int32, of :func:`~worldvq.nn.noise.stream_keys`.
        sampling: Its temperature.
        length: Places to draw, of a prior that draws any number of them; those of its grid where None. More places
            begin with the noise of fewer.
    """
    if sampling.temperature == 0:
        return None
    length = prior.grid[0] * prior.grid[1] if length is None else length
    on_device = torch.from_numpy(keys).to(prior.embed.weight.device)
    return gumbel_noise(on_device, length * prior.num_codes).unflatten(1, (length, prior.num_codes))


def truncate(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return float logits (..., K) over temperature, with what top-k and top-p leave out at minus infinity."""
    logits = logits.float()
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the more probable ones
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def choose(logits: Tensor, noise: Tensor | None, sampling: SamplingConfig) -> Tensor:
    """Return the tokens (...) that logits and noise (..., K) decide on (Gumbel-max); of equal scores, the first."""
    if noise is not None and sampling.top_k is None and sampling.top_p is None:
        return torch.add(noise, logits, alpha=1 / sampling.temperature).argmax(-1)
    scores = truncate(logits, sampling)
    return (scores if noise is None else scores + noise).argmax(-1)


@torch.no_grad()
def sequential(cache: GridCache, size: tuple[int, int, int], noise: Tensor | None, sampling: SamplingConfig) -> Drawn:
    """Draw token grids one token after the other (ancestral sampling).

    Args:
        cache: What :meth:`Prior.start` returned.
        size: (B, h, w).
        noise: (B, h*w, K) Gumbel noise, None at temperature 0.
        sampling: Temperature and truncation; temperature 0 takes the most probable token.
    """
    batch, height, width = size
    tokens = torch.zeros(batch, height * width, dtype=torch.int64, device=cache.device)
    draw_next(cache, tokens, 0, noise, height * width, sampling)
    return Drawn(tokens.view(size), torch.full((batch,), height * width))


@torch.no_grad()
def draw_next(
    cache: GridCache, tokens: Tensor, first: int, noise: Tensor | None, count: int, sampling: SamplingConfig
) -> None:
    """Draw ``count`` places of tokens (B, N) from ``first`` on, in place; those before are drawn already.

    As :func:`sequential`, of a row so long that its noise, here (B, count, K), is made part by part.
    """
    for index in range(count):
        logits = cache.logits(tokens, first + index, first + index + 1)[:, 0]  # (B, K)
        tokens[:, first + index] = choose(logits, None if noise is None else noise[:, index], sampling)


@torch.no_grad()
def predictive(
    cache: GridCache, draft: Tensor, noise: Tensor | None, sampling: SamplingConfig, window: int | None = None
) -> Drawn:
    """Draw token grids by fixed-point iteration from a draft; the same tokens as :func:`sequential`, in fewer passes.

    Wiggers & Hoogeboom 2020, *Predictive Sampling with Forecasting Autoregressive Models*, algorithm 1: every pass
    draws all open positions from the tokens guessed so far. A position is settled once all before it were guessed as
    they were drawn; settled positions are not computed again, and rows that are settled leave the batch.

    Args:
        cache: What :meth:`Prior.start` returned.
        draft: (B, h, w) int64, the first guess; decides how many passes it takes, never what is drawn.
        noise: (B, h*w, K) Gumbel noise, None at temperature 0.
        sampling: Temperature and truncation.
        window: How many places from the first open one on a pass looks at; all where None. Of a long grid, a pass
            settles little of what lies far ahead.
    """
    guess = draft.flatten(1).clone()  # (b, N), the rows still open
    batch, length = guess.shape
    tokens, passes = torch.empty_like(guess), torch.zeros(batch, dtype=torch.int64)
    open_rows = torch.arange(batch, device=guess.device)
    settled = torch.zeros(batch, 1, dtype=torch.int64, device=guess.device)  # leading tokens that are final
    places = torch.arange(length, device=guess.device)
    first, count = 0, 0
    while len(guess):
        count += 1
        last = length if window is None else min(first + window, length)
        drawn = choose(cache.logits(guess, first, last), None if noise is None else noise[:, first:last], sampling)
        drawn = torch.cat([guess[:, :first], drawn, guess[:, last:]], dim=1)
        drawn = torch.where(places < settled, guess, drawn)  # whatever rounding says the second time
        agreed = (drawn == guess).long().cumprod(1).sum(1, keepdim=True)
        settled = (agreed + 1).clamp_max(last)  # what agrees was the right input for the token after it
        guess = drawn
        done = settled[:, 0] == length
        if done.any():
            tokens[open_rows[done]] = guess[done]
            passes[open_rows[done].cpu()] = count
            still = ~done
            guess, settled, open_rows = guess[still], settled[still], open_rows[still]
            noise = None if noise is None else noise[still]
            cache.keep(still)
        first = int(settled.min()) if len(guess) else length
    return Drawn(tokens.view(draft.shape), passes)


class WholeGrid:
    """A cache that caches nothing: every pass has the same shape, for a compiled ``prior`` that wants no other."""

    def __init__(self, prior: Callable[[Tensor, Tensor], Tensor], context: Tensor):
        self._prior, self._context, self.device = prior, context, context.device
        self._tokens = torch.zeros(context.shape[:3], dtype=torch.int64, device=context.device)
        self._rows = torch.arange(len(context), device=context.device)

    def logits(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Return logits (b, last - first, K) of the rows kept; see :class:`GridCache`."""
        self._tokens.flatten(1)[self._rows] = tokens
        return self._prior(self._tokens, self._context).flatten(1, 2)[self._rows, first:last]

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self._rows = self._rows[rows]


class Drafts:
    """First guesses for predictive sampling: two compete, and in every row the one that did better last time wins.

    One is drawn from the parallel forecast with the noise of the grid, the other is the previous frame.

    Attributes:
        previous_wins: (B,) bool; a row that has drawn nothing yet takes the forecast.
    """

    def __init__(self, previous_wins: Tensor) -> None:
        self.previous_wins = previous_wins

    def draft(self, forecast: Tensor, previous: Tensor) -> Tensor:
        """Return the draft (B, h, w), given the forecast's choice (B, h, w) and the previous frame (B, h, w)."""
        return torch.where(self.previous_wins[:, None, None], previous, forecast)

    def judge(self, tokens: Tensor, forecast: Tensor, previous: Tensor) -> None:
        """Remember which of the two was nearer to the tokens (B, h, w) that were drawn."""
        hits = [(tokens == other).sum((1, 2)) for other in (forecast, previous)]
        self.previous_wins = hits[1] > hits[0]


class Pace:
    """Which way of drawing is faster here, by measurement: each is timed twice, and the slower again now and then."""

    AGAIN = 200

    def __init__(self) -> None:
        self._seconds = {"predictive": float("inf"), "sequential": float("inf")}
        self._count = 0

    def method(self) -> str:
        """Return the way to draw the next grid."""
        names = sorted(self._seconds, key=self._seconds.__getitem__)
        if self._count < 4:  # the first time of each is a warm-up
            return ("predictive", "sequential")[self._count // 2]
        return names[self._count % self.AGAIN == 0]

    def measured(self, method: str, seconds: float) -> None:
        """Take in how long a grid took."""
        known, tried_again = self._seconds[method], self._count % self.AGAIN == 0
        self._seconds[method] = seconds if self._count < 4 or tried_again else known + 0.1 * (seconds - known)
        self._count += 1


@torch.no_grad()
def draw(
    cache: GridCache,
    forecast: Tensor,
    previous: Tensor,
    noise: Tensor | None,
    sampling: SamplingConfig,
    drafts: Drafts,
    pace: Pace,
) -> Drawn:
    """Draw the next frame's tokens the way that is faster here.

    Args:
        cache: What :meth:`Prior.start` returned.
        forecast: (B, h, w, K) logits of every token alone.
        previous: (B, h, w) tokens of the frame before.
        noise: (B, h*w, K) Gumbel noise, None at temperature 0.
        sampling: Temperature and truncation; ``method`` may ask for one way.
        drafts: What competed as the first guess so far in this dream.
        pace: What was measured so far, for this model and batch.
    """
    method = pace.method() if sampling.method == "auto" else sampling.method
    begun = time.perf_counter()
    if method == "sequential":
        drawn = sequential(cache, tuple(previous.shape), noise, sampling)  # type: ignore[arg-type]
    else:
        guess = choose(forecast.flatten(1, 2), noise, sampling).view_as(previous)
        drawn = predictive(cache, drafts.draft(guess, previous), noise, sampling)
        drafts.judge(drawn.tokens, guess, previous)
    if sampling.method == "auto":
        if previous.device.type != "cpu":
            torch.accelerator.synchronize(previous.device)
        pace.measured(method, time.perf_counter() - begun)
    return drawn
