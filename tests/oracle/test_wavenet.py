"""WaveNet against dilated convolutions; causality and reach by brute force; what the queues draw = the full pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.models.config import WaveNetConfig
from worldvq.models.priors.wavenet import WaveNet

NUM_CODES = 7


def make(num_stacks=2, stack_layers=3, context_dim=0, hop=1, width=8, length=12):
    """A prior in float64 in which nothing is zero or small: what starts at zero hides no mistake."""
    config = WaveNetConfig(width=width, skip_width=width + 2, num_stacks=num_stacks, stack_layers=stack_layers)
    prior = WaveNet(config, (1, length), NUM_CODES, context_dim, hop)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    torch.nn.init.constant_(prior.head[1].bias, 3.0)  # nor do units that are always 0
    return prior.double().eval()


def make_inputs(length, batch=1, context_dim=0, hop=1):
    context = torch.randn(batch, 1, length // hop, context_dim, dtype=torch.float64) if context_dim else None
    return torch.randint(NUM_CODES, (batch, 1, length)), context


@pytest.mark.parametrize(("num_stacks", "stack_layers", "reach"), [(1, 1, 2), (1, 3, 8), (2, 3, 15), (3, 2, 10)])
@torch.no_grad()
def test_a_logit_sees_all_earlier_tokens_within_reach_and_no_other(num_stacks, stack_layers, reach):
    prior, length = make(num_stacks, stack_layers), 20
    assert prior.reach == reach == 1 + num_stacks * (2**stack_layers - 1)
    tokens, _ = make_inputs(length)
    logits = prior(tokens)
    for place in range(length):
        other = tokens.clone()
        other[0, 0, place] = (other[0, 0, place] + 1) % NUM_CODES
        hit = (prior(other) - logits)[0, 0].abs().amax(-1) > 1e-12
        assert hit.tolist() == [0 < target - place <= reach for target in range(length)], place


@torch.no_grad()
def test_a_vector_of_the_context_is_for_its_hop_of_tokens_and_what_they_reach():
    prior = make(1, 2, context_dim=3, hop=4)
    tokens, context = make_inputs(20, context_dim=3, hop=4)
    logits = prior(tokens, context)
    for place in range(5):
        other = context.clone()
        other[0, 0, place] += 1
        hit = (prior(tokens, other) - logits)[0, 0].abs().amax(-1) > 1e-12
        first, last = 4 * place, 4 * place + 3 + 2  # the second layer looks two steps back at the first one's output
        assert hit.tolist() == [first <= target <= last for target in range(20)]


def dilated_wavenet(prior, tokens, context):
    """The paper's figure 4, channels first, of ``F.conv1d`` with a dilation."""

    def one_by_one(linear, x):
        return F.conv1d(x, linear.weight[:, :, None], linear.bias)

    told = prior.position[None, :, None].expand(len(tokens), -1, tokens.shape[-1])
    if context is not None:
        every = context[:, 0].transpose(1, 2).repeat_interleave(prior.hop, dim=2)
        told = told + one_by_one(prior.from_context, every)
    x = prior.embed.weight[tokens[:, 0]].transpose(1, 2)
    x = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], dim=2)
    width, total = x.shape[1], 0
    for number, layer in enumerate(prior.layers):
        dilation = (1, 2, 4)[number % 3]
        kernel = torch.stack([layer.taps.weight[:, :width], layer.taps.weight[:, width:]], dim=2)
        features = F.conv1d(F.pad(x, (dilation, 0)), kernel, dilation=dilation) + one_by_one(layer.condition, told)
        out = one_by_one(layer.out, torch.tanh(features[:, :width]) * torch.sigmoid(features[:, width:]))
        x, total = x + out[:, :width], total + out[:, width:]
    hidden = one_by_one(prior.head[1], torch.relu(total))
    return one_by_one(prior.head[3], torch.relu(hidden)).transpose(1, 2)[:, None]


@pytest.mark.parametrize(("context_dim", "hop"), [(0, 1), (5, 1), (5, 4)])
@torch.no_grad()
def test_equals_dilated_convolutions_with_the_same_weights(context_dim, hop):
    prior = make(2, 3, context_dim, hop)
    tokens, context = make_inputs(24, 3, context_dim, hop)
    torch.testing.assert_close(prior(tokens, context), dilated_wavenet(prior, tokens, context))


@settings(max_examples=25, deadline=None)
@given(
    spans=st.integers(1, 8),
    hop=st.integers(1, 3),
    batch=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    context_dim=st.sampled_from([0, 3]),
    seed=st.integers(0, 10_000),
    windows=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 7)), max_size=8),
)
@torch.no_grad()
def test_cached_windows_see_the_logits_of_the_full_pass(spans, hop, batch, shape, context_dim, seed, windows):
    torch.manual_seed(seed)
    length = spans * hop
    prior = make(*shape, context_dim, hop, width=4)
    tokens, context = make_inputs(length, batch, context_dim, hop)
    full, tokens = prior(tokens, context)[:, 0], tokens[:, 0]
    cache, first = prior.start(batch, context), 0
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


@pytest.mark.parametrize(("batch", "context_dim"), [(1, 0), (1, 3), (3, 3)])
@torch.no_grad()
def test_drawing_one_by_one_looks_at_the_newest_token_alone(batch, context_dim, monkeypatch):
    """Over several turns of every queue; no matrix product has more than one place in it."""
    prior = make(2, 3, context_dim, 4)
    tokens, context = make_inputs(40, batch, context_dim, 4)
    full, tokens, cache = prior(tokens, context)[:, 0], tokens[:, 0], prior.start(batch, context)
    monkeypatch.setattr("worldvq.models.priors.wavenet.DilatedLayer.forward", None)  # what computes windows
    for place in range(40):
        seen = torch.full_like(tokens, -1)  # no code
        if place:
            seen[:, place - 1] = tokens[:, place - 1]
        torch.testing.assert_close(cache.logits(seen, place, place + 1), full[:, place : place + 1])


@torch.no_grad()
def test_a_place_that_was_not_computed_is_not_taken_for_settled():
    cache, (tokens, _) = make().start(1), make_inputs(12)
    cache.logits(tokens[:, 0], 0, 3)
    with pytest.raises(AssertionError, match="not computed"):
        cache.logits(tokens[:, 0], 4, 5)


@torch.no_grad()
def test_weights_know_no_length():
    prior = make(length=3)
    tokens, _ = make_inputs(50, 2)
    torch.testing.assert_close(prior(tokens)[:, :, :20], prior(tokens[:, :, :20]))


def test_learns_a_few_rows_by_heart():
    torch.manual_seed(0)
    config = WaveNetConfig(width=32, skip_width=32, num_stacks=1, stack_layers=4)
    prior, tokens = WaveNet(config, (1, 16), NUM_CODES), torch.randint(NUM_CODES, (6, 1, 16))
    optimizer = torch.optim.AdamW(prior.parameters(), lr=5e-3)
    for _ in range(150):
        loss = F.cross_entropy(prior(tokens).flatten(0, 2), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Which of the six rows it is takes log 6 nats, once; then every token is known.
    assert math.log(6) / 16 - 1e-3 < float(loss.detach()) < math.log(6) / 16 + 0.02


def test_every_weight_has_a_part_and_none_changes_in_a_pass():
    prior = make(2, 2, 5)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    tokens, context = make_inputs(32, 8, 5)
    prior(tokens, context).square().sum().backward()
    with torch.no_grad():
        prior.start(8, context).logits(tokens[:, 0], 0, 32)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    for name, parameter in prior.named_parameters():
        used = parameter.grad.ne(0)
        if name == "layers.3.out.weight":  # after the last layer there is no one to read the residual
            used = used[8:]
        assert used.any(-1).all() if name == "embed.weight" else used.all(), name


def test_contexts_that_do_not_fit_are_refused():
    prior, (tokens, context) = make(1, 2, 5, hop=4), make_inputs(24, 1, 5, 4)
    for wrong in (tokens[..., :20], tokens[..., :22]):
        with pytest.raises(ValueError, match=r"tokens and a context of \(1, 6\) for 4 tokens each do not fit"):
            prior(wrong, context)
    with pytest.raises(ValueError, match="was built with a context"):
        prior(tokens)
    with pytest.raises(ValueError, match="was built with a context"):
        prior.start(1)
    with pytest.raises(ValueError, match="without a context"):
        make()(tokens, context)
