"""Both ways of drawing a grid give the same tokens, and the tokens have the model's own probabilities."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worldvq.models.config import PriorConfig, SamplingConfig, WaveNetConfig
from worldvq.models.priors import make_prior
from worldvq.models.priors.wavenet import WaveNet
from worldvq.models.sampling import (
    Drafts,
    Pace,
    WholeGrid,
    choose,
    draw,
    draw_noise,
    predictive,
    sequential,
    truncate,
)
from worldvq.nn.noise import stream_keys

KINDS = ("transformer", "pixelcnn", "wavenet")


def keys(batch, seed=5, step=0):
    return stream_keys(seed, np.arange(batch), np.full(batch, step))


def make(kind, grid=(2, 3), num_codes=7, context_dim=0, dtype=torch.float32, std=0.4):
    if kind == "wavenet":
        prior = WaveNet(
            WaveNetConfig(width=16, skip_width=16, num_stacks=2, stack_layers=3), grid, num_codes, context_dim
        )
    else:
        config = PriorConfig(kind=kind, width=16, num_blocks=2, num_heads=2)
        prior = make_prior(config, grid, num_codes, context_dim)
    prior.eval()
    for parameter in prior.parameters():  # nothing may be hidden by zero-initialised branches
        torch.nn.init.normal_(parameter, std=std)
    return prior.to(dtype)


def edges(logits, sampling, tolerance):
    """Where another rounding may keep other codes: two tie for the last place, or the mass before one is near top_p."""
    ordered = (logits.float() / (sampling.temperature or 1)).sort(-1, descending=True).values
    found = torch.zeros(logits.shape[:-1], dtype=torch.bool)
    if sampling.top_k:
        found |= ordered[..., sampling.top_k - 1] - ordered[..., sampling.top_k] <= tolerance
        ordered[..., sampling.top_k :] = -torch.inf
    if sampling.top_p:
        mass = ordered.softmax(-1)
        before = mass.cumsum(-1) - mass
        found |= ((before - sampling.top_p).abs() <= tolerance / 2).any(-1)
        last = (before < sampling.top_p).sum(-1, keepdim=True) - 1
        following = ordered.gather(-1, (last + 1).clamp(max=ordered.shape[-1] - 1))
        found |= (ordered.gather(-1, last) - following <= tolerance)[..., 0] & (last[..., 0] + 1 < ordered.shape[-1])
    return found


def ties(prior, context, noise, sampling, one, other):
    """How many rows differ, and how many of them do not first differ where two scores nearly tie.

    The same weights in fp32 say how far rounding moves a score; two tie where twice that, of each, is between them.
    """
    differing, wrong = 0, 0
    with torch.no_grad():
        rounded = prior(one, context).flatten(1, 2)
        logits = copy.deepcopy(prior).float()(one, context.float()).flatten(1, 2)
    tolerance = max(1e-4, 4 * float((rounded - logits).abs().max())) / (sampling.temperature or 1)
    scores = truncate(logits, sampling) + (0 if noise is None else noise)
    edge = edges(logits, sampling, tolerance)
    for row, (a, b) in enumerate(zip(one.flatten(1), other.flatten(1), strict=True)):
        if torch.equal(a, b):
            continue
        differing += 1
        place = int((a != b).nonzero()[0])
        apart = abs(float(scores[row, place, a[place]] - scores[row, place, b[place]])) > tolerance
        wrong += apart and not bool(edge[row, place])
    return differing, wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@example(
    grid=(3, 4), batch=4, temperature=0.3, top_k=1, top_p=None, seed=1902, draft_seed=0, window=None
)  # a WaveNet's logits in bf16 are up to 0.19 off
@example(
    grid=(5, 5), batch=4, temperature=1.0, top_k=None, top_p=0.5, seed=10_000, draft_seed=0, window=None
)  # two tie for the last place in top_p
@example(
    grid=(4, 4), batch=1, temperature=2.0, top_k=3, top_p=0.5, seed=910, draft_seed=0, window=None
)  # at the edge of top_p
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 3]),
    top_p=st.sampled_from([None, 0.5, 0.9]),
    seed=st.integers(0, 10_000),
    draft_seed=st.integers(0, 10_000),
    window=st.sampled_from([None, 1, 2, 5, 9]),
)
def test_predictive_draws_the_tokens_that_sequential_draws(
    kind, dtype, grid, batch, temperature, top_k, top_p, seed, draft_seed, window
):
    torch.manual_seed(seed)
    prior = make(kind, grid, context_dim=3, dtype=dtype)
    context = torch.randn(batch, *grid, 3, dtype=dtype)
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    noise = draw_noise(prior, keys(batch, seed), sampling)
    torch.manual_seed(draft_seed)
    draft = torch.randint(7, (batch, *grid))
    one = sequential(prior.start(batch, context), (batch, *grid), noise, sampling)
    other = predictive(prior.start(batch, context), draft, noise, sampling, window)
    assert one.tokens.shape == other.tokens.shape == (batch, *grid)
    assert (one.passes == grid[0] * grid[1]).all()
    assert (other.passes >= 1).all() and (other.passes <= grid[0] * grid[1]).all()
    differing, wrong = ties(prior, context, noise, sampling, one.tokens, other.tokens)
    assert not wrong, f"{differing} rows of {batch} differ, {wrong} of them where no two scores tie"
    if dtype == torch.float32:
        assert not differing, "a tie in fp32 in so few tokens is less likely than a mistake"


@pytest.mark.parametrize("kind", KINDS)
def test_most_rows_in_bf16_are_equal_too(kind):
    torch.manual_seed(0)
    prior, sampling = make(kind, (4, 4), context_dim=3, dtype=torch.bfloat16), SamplingConfig()
    context = torch.randn(64, 4, 4, 3, dtype=torch.bfloat16)
    noise = draw_noise(prior, keys(64, 0), sampling)
    one = sequential(prior.start(64, context), (64, 4, 4), noise, sampling).tokens
    other = predictive(prior.start(64, context), torch.randint(7, (64, 4, 4)), noise, sampling).tokens
    assert (one == other).flatten(1).all(1).float().mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_passes_of_a_fixed_shape_draw_the_same(kind):
    torch.manual_seed(4)
    prior, sampling = make(kind, (3, 3), context_dim=2), SamplingConfig()
    context, draft = torch.randn(6, 3, 3, 2), torch.randint(7, (6, 3, 3))
    noise = draw_noise(prior, keys(6, 0), sampling)
    cached = predictive(prior.start(6, context), draft, noise, sampling)
    whole = predictive(WholeGrid(prior, context), draft, noise, sampling)
    assert torch.equal(cached.tokens, whole.tokens) and torch.equal(cached.passes, whole.passes)
    assert cached.passes.unique().numel() > 1  # so rows did leave at different times


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_draft_takes_one_pass_and_a_row_depends_on_no_other(kind):
    torch.manual_seed(1)
    prior, sampling = make(kind, (3, 4)), SamplingConfig(temperature=0.7)
    noise = draw_noise(prior, keys(5, 1), sampling)
    true = sequential(prior.start(5), (5, 3, 4), noise, sampling).tokens
    drafts = true.clone()
    drafts[1, 2, 3] = (drafts[1, 2, 3] + 1) % 7  # the last token is nobody's input
    drafts[2, 0, 0] = (drafts[2, 0, 0] + 1) % 7
    drawn = predictive(prior.start(5), drafts, noise, sampling)
    assert torch.equal(drawn.tokens, true)
    assert drawn.passes[[0, 1, 3, 4]].tolist() == [1, 1, 1, 1] and drawn.passes[2] > 1
    for row in range(5):
        alone = predictive(prior.start(1), drafts[row : row + 1], noise[row : row + 1], sampling)
        assert torch.equal(alone.tokens[0], true[row]) and alone.passes[0] == drawn.passes[row]


@pytest.mark.parametrize("method", ["sequential", "predictive"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_models_own_probabilities(kind, method):
    scipy_stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(2)
    prior, sampling, draws = make(kind, (1, 2), num_codes=3), SamplingConfig(temperature=0.8, method=method), 6000
    noise = draw_noise(prior, keys(draws, 1), sampling)
    if method == "sequential":
        drawn = sequential(prior.start(draws), (draws, 1, 2), noise, sampling).tokens.flatten(1)
    else:
        drawn = predictive(
            prior.start(draws), torch.zeros(draws, 1, 2, dtype=torch.int64), noise, sampling
        ).tokens.flatten(1)
    pairs = torch.tensor([[[a, b]] for a in range(3) for b in range(3)])  # every grid there is
    with torch.no_grad():
        log = (prior(pairs) / 0.8).log_softmax(-1)  # (9, 1, 2, 3)
    probability = log.gather(-1, pairs[..., None]).sum((1, 2, 3)).exp().double().numpy()
    counts = np.bincount((drawn[:, 0] * 3 + drawn[:, 1]).numpy(), minlength=9)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert scipy_stats.chisquare(counts, probability / probability.sum() * draws).pvalue > 1e-3


@pytest.mark.parametrize("context_dim", [0, 5])
@torch.no_grad()
def test_a_cache_sees_the_logits_of_the_full_pass(context_dim):
    prior = make("transformer", (3, 4), context_dim=context_dim)
    tokens = torch.randint(7, (2, 12))
    context = torch.randn(2, 3, 4, context_dim) if context_dim else None
    for windows in ([(i, i + 1) for i in range(12)], [(0, 12), (0, 12), (5, 12), (6, 9), (9, 10), (10, 12)]):
        cache = prior.start(2, context)
        for first, last in windows:
            guess = tokens.clone()
            guess[:, last - 1 :] = torch.randint(7, guess[:, last - 1 :].shape)
            full = prior(guess.unflatten(1, (3, 4)), context).flatten(1, 2)[:, first:last]
            torch.testing.assert_close(cache.logits(guess, first, last), full, rtol=1e-4, atol=1e-5)


def test_temperature_zero_is_greedy_and_needs_no_noise():
    prior, sampling = make("transformer"), SamplingConfig(temperature=0)
    assert draw_noise(prior, keys(2), sampling) is None
    greedy = sequential(prior.start(2), (2, 2, 3), None, sampling).tokens
    with torch.no_grad():
        assert torch.equal(prior(greedy).argmax(-1), greedy)


def test_truncation_keeps_what_it_says():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert truncate(logits, SamplingConfig(top_k=2)).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, SamplingConfig(top_p=0.75)).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, SamplingConfig(top_p=0.1)).isfinite().tolist() == [[True, False, False, False]]
    torch.testing.assert_close(truncate(logits, SamplingConfig(temperature=0.5)), logits * 2)
    assert choose(logits, torch.tensor([[0.0, 9.0, 0.0, 99.0]]), SamplingConfig(top_k=2)).tolist() == [1]


def test_the_draft_that_was_nearer_last_time_is_next():
    drafts = Drafts(torch.zeros(2, dtype=torch.bool))
    zeros, ones = torch.zeros(2, 1, 2, dtype=torch.int64), torch.ones(2, 1, 2, dtype=torch.int64)
    assert torch.equal(drafts.draft(zeros, ones), zeros)  # nothing known yet: the forecast
    drafts.judge(torch.tensor([[[0, 0]], [[1, 1]]]), zeros, ones)
    assert drafts.draft(zeros, ones).tolist() == [[[0, 0]], [[1, 1]]]


def test_the_faster_way_is_taken_and_the_slower_tried_again():
    for fast in ("predictive", "sequential"):
        pace, taken = Pace(), []
        for _ in range(2 * Pace.AGAIN):
            taken.append(pace.method())
            pace.measured(taken[-1], 0.1 if taken[-1] == fast else 0.2)
        assert taken[:4] == ["predictive"] * 2 + ["sequential"] * 2
        assert taken[4:].count(fast) == len(taken) - 5 and taken[Pace.AGAIN] != fast
    assert pace.method() == "predictive"  # 2 AGAIN: the slower one's turn
    pace.measured("predictive", 0.01)
    assert pace.method() == "predictive"  # it has become the faster one, and is believed at once


def test_draw_gives_the_same_whatever_the_method():
    torch.manual_seed(3)
    prior, previous = make("transformer", context_dim=4), torch.randint(7, (3, 2, 3))
    context, forecast = torch.randn(3, 2, 3, 4), torch.randn(3, 2, 3, 7)

    def tokens(method):
        drafts, pace = Drafts(torch.zeros(3, dtype=torch.bool)), Pace()
        sampling = SamplingConfig(temperature=0.5, method=method)

        def one(step):
            noise = draw_noise(prior, keys(3, step=step), sampling)
            return draw(prior.start(3, context), forecast, previous, noise, sampling, drafts, pace).tokens

        return torch.stack([one(step) for step in range(6)])

    sequence = tokens("sequential")
    assert torch.equal(tokens("predictive"), sequence) and torch.equal(tokens("auto"), sequence)
    assert not torch.equal(sequence[0], sequence[1])
