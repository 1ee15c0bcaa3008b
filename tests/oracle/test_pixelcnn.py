"""PixelCNN against masked convolutions; causality and reach by brute force; what the cache draws = the full pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.models.config import PriorConfig
from worldvq.models.priors.pixelcnn import PixelCNN

NUM_CODES = 7


def make(grid, num_layers=3, context_dim=0, width=16):
    """A prior in float64 in which nothing is zero or small: what starts at zero hides no mistake."""
    prior = PixelCNN(PriorConfig(width=width, num_blocks=num_layers, num_heads=1), grid, NUM_CODES, context_dim)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return prior.double().eval()


def make_inputs(grid, batch=1, context_dim=0):
    context = torch.randn(batch, *grid, context_dim, dtype=torch.float64) if context_dim else None
    return torch.randint(NUM_CODES, (batch, *grid)), context


def places(grid):
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


@pytest.mark.parametrize(("grid", "num_layers"), [((5, 5), 4), ((5, 5), 2), ((4, 6), 1), ((3, 4), 3), ((1, 6), 5)])
@torch.no_grad()
def test_a_logit_sees_all_earlier_tokens_within_reach_and_no_other(grid, num_layers):
    prior = make(grid, num_layers)
    tokens, _ = make_inputs(grid)
    logits = prior(tokens)
    for row, column in places(grid):
        other = tokens.clone()
        other[0, row, column] = (other[0, row, column] + 1) % NUM_CODES
        hit = (prior(other) - logits)[0].abs().amax(-1) > 1e-12
        for target in places(grid):
            down, right = target[0] - row, target[1] - column
            later = down > 0 or (down == 0 and right > 0)
            # Four layers reach all of a 5 x 5 grid: then there is no blind spot, whatever lies before is seen.
            assert bool(hit[target]) == (later and down <= num_layers and abs(right) <= num_layers), (row, column)


def masked_convolution(x, weight, mask):
    """Full 3x3 convolution of x (B, C, h, w) whose weights (O, C, 3, 3) are zeroed where mask (3, 3) is 0."""
    return F.conv2d(x, weight * torch.tensor(mask, dtype=weight.dtype), padding=1)


def embed_taps(matrix, where):
    """Put a layer's matrix (O, taps * C) at the taps ``where`` of a 3x3 kernel (O, C, 3, 3); noise elsewhere."""
    taps = matrix.unflatten(1, (len(where), -1))
    kernel = torch.randn(len(matrix), taps.shape[-1], 3, 3, dtype=matrix.dtype)
    for tap, (row, column) in enumerate(where):
        kernel[:, :, row, column] = taps[:, tap]
    return kernel


def masked_pixelcnn(prior, tokens, context):
    """The paper's figure 2 with masks A and B, channels first, as it is mostly written."""

    def one_by_one(linear, x):
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)

    def gated(x):
        half = x.shape[1] // 2
        return torch.tanh(x[:, :half]) * torch.sigmoid(x[:, half:])

    summary = prior.position.permute(2, 0, 1)[None]
    if context is not None:
        summary = summary + one_by_one(prior.from_context, context.permute(0, 3, 1, 2))
    above, own_row = [(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), (1, 2)]
    vertical = horizontal = prior.embed.weight[tokens].permute(0, 3, 1, 2)
    total = 0
    for number, layer in enumerate(prior.layers):
        first = number == 0
        width = vertical.shape[1]
        kernel = embed_taps(layer.vertical.weight, above if first else above + own_row)
        features = masked_convolution(vertical, kernel, [[1] * 3, [0 if first else 1] * 3, [0] * 3])
        kernel = embed_taps(layer.horizontal.weight, [(1, 0)] if first else [(1, 0), (1, 1)])
        left = masked_convolution(horizontal, kernel, [[0] * 3, [1, 0 if first else 1, 0], [0] * 3])
        extra = one_by_one(layer.condition, summary)
        features = features + extra[:, : 2 * width]
        out = one_by_one(layer.out, gated(left + one_by_one(layer.link, features) + extra[:, 2 * width :]))
        horizontal = out[:, :width] if first else horizontal + out[:, :width]
        total = total + out[:, width:]
        vertical = gated(features)
    return one_by_one(prior.head[1], torch.relu(total)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("context_dim", [0, 5])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
@torch.no_grad()
def test_equals_masked_convolutions_with_the_same_weights(num_layers, context_dim):
    prior = make((4, 5), num_layers, context_dim)
    tokens, context = make_inputs((4, 5), 3, context_dim)
    torch.testing.assert_close(prior(tokens, context), masked_pixelcnn(prior, tokens, context))


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    batch=st.integers(1, 3),
    num_layers=st.integers(1, 3),
    context_dim=st.sampled_from([0, 3]),
    seed=st.integers(0, 10_000),
    windows=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 7)), max_size=8),
)
@torch.no_grad()
def test_cached_windows_see_the_logits_of_the_full_pass(grid, batch, num_layers, context_dim, seed, windows):
    torch.manual_seed(seed)
    prior = make(grid, num_layers, context_dim, width=4)
    tokens, context = make_inputs(grid, batch, context_dim)
    full, tokens = prior(tokens, context).flatten(1, 2), tokens.flatten(1)
    length, cache, first = tokens.shape[1], prior.start(batch, context), 0
    for size, settled, kept in [*windows, (length, length, 7)]:
        if first == length:
            break
        last = min(first + size, length)
        guess = tokens.clone()
        guess[:, first:] = torch.randint(NUM_CODES, (len(tokens), length - first))
        cache.logits(guess, first, last)  # then the same window again with the tokens that stay
        seen = tokens.clone()
        seen[:, last - 1 :] = -1  # whoever looks at a later token fails: it is no code
        torch.testing.assert_close(cache.logits(seen, first, last), full[:, first:last])
        first = min(first + settled, last)
        rows = torch.tensor([bool(kept >> row & 1) for row in range(len(tokens))])
        if rows.any():
            cache.keep(rows)
            tokens, full = tokens[rows], full[rows]


@pytest.mark.parametrize("context_dim", [0, 3])
@torch.no_grad()
def test_drawing_one_by_one_reuses_all_that_is_settled(context_dim, monkeypatch):
    grid = (3, 4)
    prior = make(grid, 3, context_dim)
    tokens, context = make_inputs(grid, 2, context_dim)
    full, tokens = prior(tokens, context).flatten(1, 2), tokens.flatten(1)
    rows, convolve = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *a, **k: (rows.append(index // grid[1]), convolve(x, *a, **k))[1])
    cache = prior.start(2, context)
    for index in range(12):
        seen = torch.full_like(tokens, -1)  # no code: only the newest token may be looked at
        if index:
            seen[:, index - 1] = tokens[:, index - 1]
        torch.testing.assert_close(cache.logits(seen, index, index + 1), full[:, index : index + 1])
    assert rows == [0] * 3 + [1] * 3 + [2] * 3  # the vertical stack: once a row, in each of the three layers


@torch.no_grad()
def test_one_cache_serves_a_frozen_prefix_with_changing_ends():
    """Predictive sampling's calls: the whole rest again and again, while the settled prefix grows."""
    prior = make((3, 4), 3, 3)
    tokens, context = make_inputs((3, 4), 2, 3)
    tokens, cache = tokens.flatten(1), prior.start(2, context)
    for first in (0, 0, 1, 3, 3, 4, 4, 7, 8, 11):
        tokens[:, first:] = torch.randint(NUM_CODES, (2, 12 - first))
        full = prior(tokens.view(2, 3, 4), context).flatten(1, 2)
        torch.testing.assert_close(cache.logits(tokens, first, 12), full[:, first:])


def test_learns_a_few_grids_by_heart():
    prior = PixelCNN(PriorConfig(width=32, num_blocks=4, num_heads=1), (4, 4), NUM_CODES)
    tokens = torch.randint(NUM_CODES, (6, 4, 4))
    optimizer = torch.optim.AdamW(prior.parameters(), lr=2e-3)
    for _ in range(150):
        loss = F.cross_entropy(prior(tokens).flatten(0, 2), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Which of the six grids it is takes log 6 nats, once; then every token is known.
    assert math.log(6) / 16 - 1e-3 < float(loss.detach()) < math.log(6) / 16 + 0.02


def test_every_weight_has_a_part_and_none_changes_in_a_pass():
    prior = make((4, 4), 3, 5)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    tokens, context = make_inputs((4, 4), 8, 5)
    prior(tokens, context).square().sum().backward()
    with torch.no_grad():
        prior.start(8, context).logits(tokens.flatten(1), 0, 16)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    for name, parameter in prior.named_parameters():
        used = parameter.grad.ne(0)
        if name == "layers.2.out.weight":  # after the last layer there is no one to read the residual
            used = used[16:]
        assert used.any(-1).all() if name == "embed.weight" else used.all(), name


@pytest.mark.parametrize("context_dim", [0, 5])
def test_a_context_where_none_belongs_or_none_where_one_does_is_refused(context_dim):
    prior = make((2, 3), 2, context_dim)
    tokens, context = make_inputs((2, 3), 1, 5 - context_dim)
    with pytest.raises(ValueError, match="with" if context_dim else "without"):
        prior(tokens, context)
    with pytest.raises(ValueError, match="a context"):
        prior.start(1, context)
