"""Scene codes: encoder, codes, decoder and prior fit each other, and what is saved comes back or is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import make_tokenizer

from worldvq.errors import CorruptFileError, UsageError
from worldvq.evaluation.scene_codes import entropies, measure
from worldvq.files.reading import read_sealed, seal
from worldvq.models.config import SamplingConfig, SceneConfig, ScenePriorConfig, SceneQuantizerConfig
from worldvq.models.losses import scene_loss
from worldvq.models.scene import SceneModel, bits_of, resolutions, scene_size
from worldvq.types import TokenClip
from worldvq.world.scenes import Scenes

QUANTIZERS = [
    SceneQuantizerConfig(num_codes=8, code_dim=4),
    SceneQuantizerConfig(kind="sgd", num_codes=8, code_dim=4, cosine=True),
    SceneQuantizerConfig(kind="fsq", levels=(4, 3)),
]


def make(grid=(5, 7), count=3, quantizer=QUANTIZERS[0], prior="pixelcnn", **changes):
    """Different weights wherever a model would start at zero: nothing is equal by chance."""
    torch.manual_seed(0)
    prior = ScenePriorConfig(kind=prior, width=8, num_blocks=2, num_heads=2)
    config = SceneConfig(num_codes_per_frame=count, quantizer=quantizer, width=8, prior=prior, **changes)
    model = SceneModel(config, grid, 16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def some_tokens(grid=(5, 7), batch=6):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 16, (batch, *grid)))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda config: config.kind)
@pytest.mark.parametrize("grid", [(5, 7), (13, 9), (1, 2)])
def test_a_training_pass_is_encode_then_decode_then_prior(quantizer, grid):
    model, tokens = make(grid, quantizer=quantizer), some_tokens(grid)
    output = model(tokens)
    codes = model.encode(tokens)
    assert torch.equal(output.codes, codes) and codes.shape == (6, 3) and codes.max() < quantizer.num_codes
    context = model.context(codes)
    assert context.shape == (6, *grid, 8)
    torch.testing.assert_close(output.logits, model.prior(tokens, context))
    prior, forecast = model.nats(tokens, codes)
    for nats, logits in ((prior, output.logits), (forecast, output.forecast)):
        expected = -np.take_along_axis(log_softmax(logits.detach().numpy()), tokens.numpy()[..., None], -1)[..., 0]
        np.testing.assert_allclose(nats.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_same_tokens_have_the_same_codes_in_whatever_batch():
    model, tokens = make(), some_tokens()
    whole = model.encode(tokens)
    assert torch.equal(whole, torch.cat([model.encode(row[None]) for row in tokens]))
    assert torch.equal(model.encode(tokens.flip(0)), whole.flip(0)) and len(whole.unique(dim=0)) > 1


def test_each_code_says_something_everywhere_and_the_head_sees_nothing_else():
    model, tokens = make(), some_tokens()
    codes = model.encode(tokens)
    for number in range(3):
        changed = codes.clone()
        changed[:, number] = (changed[:, number] + 1) % 8
        moved = (model.context(changed) - model.context(codes)).abs().amax(-1)
        assert (moved > 1e-4).all()
    other = (tokens + 1) % 16
    model.encode = lambda _: codes  # type: ignore[method-assign]
    ours, theirs = (model.nats(some, codes)[1] for some in (tokens, tokens))
    assert torch.equal(ours, theirs) and not torch.equal(model.nats(other, codes)[1], ours)


def test_without_codes_every_frame_has_the_same_map():
    model, tokens = make(count=0), some_tokens()
    assert model.encode(tokens).shape == (6, 0) and bits_of(model.config) == 0
    output = model(tokens)
    assert output.quantizer_loss == 0 and output.codes.shape == (6, 0)
    context = model.context(model.encode(tokens))
    assert torch.equal(context, context[:1].expand_as(context)) and context.std(dim=(0, 1, 2)).min() > 0
    torch.testing.assert_close(output.logits, model.prior(tokens, context))


@pytest.mark.parametrize("prior", ["pixelcnn", "transformer"])
@pytest.mark.parametrize("count", [0, 3])
def test_draws_are_the_same_one_by_one_and_at_once_and_row_by_row(count, prior):
    model = make(count=count, prior=prior)
    codes = model.encode(some_tokens())
    ways = [model.draw(codes, 3, SamplingConfig(method=method)) for method in ("auto", "predictive", "sequential")]
    assert torch.equal(ways[0].tokens, ways[1].tokens) and torch.equal(ways[1].tokens, ways[2].tokens)
    assert ways[2].passes.tolist() == [35] * 6 and ways[1].passes.max() <= 35
    assert not torch.equal(model.draw(codes, 4, SamplingConfig()).tokens, ways[0].tokens)
    alone = model.draw(codes[2:3], 3, SamplingConfig(), np.array([2]))
    assert torch.equal(alone.tokens[0], ways[0].tokens[2])


def test_the_loss_is_that_of_the_frames_that_exist():
    model = make(forecast_weight=0.5)
    tokens = some_tokens(batch=6).unflatten(0, (3, 2))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    clip = TokenClip(tokens, mask.long(), mask.float(), ~mask, mask, mask)
    loss, metrics = scene_loss(model, clip)
    output = model(tokens[mask])
    nats, forecast = (one.mean() for one in model.nats(tokens[mask], output.codes))
    torch.testing.assert_close(loss, (nats + 0.5 * forecast + output.quantizer_loss) * 5 / 6)
    torch.testing.assert_close(metrics["nats_per_token"], nats.detach())
    perplexity = [np.exp2(bits) for bits in entropies(output.codes, 8)]
    assert float(metrics["perplexity"]) == pytest.approx(np.mean(perplexity), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=40))
def test_entropy_against_counting(rows):
    for column, bits in zip(zip(*rows, strict=True), entropies(torch.tensor(rows), 6), strict=True):
        shares = [column.count(value) / len(column) for value in set(column)]
        assert bits == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        SceneConfig,
        num_codes_per_frame=st.integers(0, 9),
        quantizer=st.one_of(
            st.builds(SceneQuantizerConfig, num_codes=st.integers(1, 5000), code_dim=st.integers(1, 500)),
            st.builds(SceneQuantizerConfig, kind=st.just("fsq"), levels=st.just((8, 8, 9))),
        ),
        width=st.sampled_from([1, 8, 40, 256]),
        num_blocks=st.integers(0, 4),
        prior=st.builds(
            ScenePriorConfig,
            kind=st.sampled_from(["transformer", "pixelcnn"]),
            width=st.sampled_from([8, 40, 256]),
            num_blocks=st.integers(1, 5),
            num_heads=st.sampled_from([1, 2]),
        ),
    ),
    st.tuples(st.integers(1, 70), st.integers(1, 24)),
    st.integers(1, 5000),
)
def test_the_bound_on_its_size_holds(config, grid, num_codes):
    with torch.device("meta"):
        model = SceneModel(config, grid, num_codes)
    assert sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())) <= scene_size(
        config, grid, num_codes
    )


def test_maps_get_smaller_until_they_are_small():
    assert resolutions((21, 21)) == [(21, 21), (11, 11), (6, 6)]
    assert resolutions((4, 6)) == [(4, 6)] and resolutions((1, 32)) == [(1, 32), (1, 16), (1, 8), (1, 4)]


@pytest.fixture
def scenes():
    return Scenes(make_tokenizer(), make((4, 4)), {"dataset": {"env": "toy"}})


def test_what_is_saved_comes_back(scenes, tmp_path):
    scenes.save(tmp_path)
    loaded = Scenes.load(tmp_path, "cpu")
    tokens = some_tokens((4, 4))
    codes = scenes.encode(tokens)
    assert torch.equal(loaded.encode(tokens), codes) and loaded.meta == scenes.meta
    assert torch.equal(loaded.draw(codes, 5).tokens, scenes.draw(codes, 5).tokens)
    assert np.array_equal(loaded.render(tokens), scenes.render(tokens))
    assert measure(loaded, tokens) == measure(scenes, tokens)


def test_many_rows_are_drawn_as_few_are(scenes, monkeypatch):
    codes = scenes.encode(some_tokens((4, 4)))
    whole = scenes.draw(codes, 1).tokens
    monkeypatch.setattr("worldvq.world.scenes.AT_ONCE", 4)
    assert torch.equal(scenes.draw(codes, 1).tokens, whole)


def test_codes_that_are_nearest(scenes):
    codes = torch.tensor([[0, 1, 2], [7, 7, 0]])
    others = torch.tensor([[0, 1, 2], [1, 1, 2], [7, 0, 0], [7, 7, 0]])
    books = [quantizer.codebook.numpy() for quantizer in scenes.model.quantizers]
    expected = [
        [
            sum(((book[a] - book[b]) ** 2).sum() for book, a, b in zip(books, one, other, strict=True))
            for other in others
        ]
        for one in codes
    ]
    found = scenes.model.code_distances(codes, others)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert found.argmin(1).tolist() == [0, 3]


def change(path, **values):
    path.write_bytes(seal({**read_sealed(path), **values}))


@pytest.mark.parametrize(
    ("wreck", "error", "words"),
    [
        (lambda out: (out / "scene.json").unlink(), UsageError, "no trained scene model in .*`worldvq scene train"),
        (lambda out: change(out / "scene.json", format_version=9), UsageError, "of format 9"),
        (lambda out: change(out / "scene.json", scene={"width": -1}), CorruptFileError, r"scene\.json.*width"),
        (lambda out: change(out / "scene.json", meta=3), CorruptFileError, r"scene\.json is damaged"),
        (lambda out: change(out / "scene.json", scene_hash="0"), CorruptFileError, r"scene\.safetensors is damaged"),
        (
            lambda out: change(out / "scene.json", tokenizer_hash="0"),
            CorruptFileError,
            r"tokenizer\.safetensors is dam",
        ),
        (lambda out: (out / "scene.json").write_text(json.dumps({"a": 1})[:-1]), CorruptFileError, "not valid JSON"),
        (lambda out: (out / "scene.safetensors").unlink(), UsageError, "no such file"),
        (lambda out: (out / "tokenizer.json").unlink(), UsageError, "no trained tokenizer"),
        (lambda out: (out / "scene.safetensors").write_bytes(b"\x80\x04"), CorruptFileError, r"scene\.safetensors"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(scenes, tmp_path, wreck, error, words):
    scenes.save(tmp_path)
    wreck(tmp_path)
    with pytest.raises(error, match=words) as caught:
        Scenes.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def test_a_description_that_asks_for_gigabytes_is_refused_before_they_are_taken(scenes, tmp_path):
    scenes.save(tmp_path)
    large = {**scenes.model.config.model_dump(mode="json"), "width": 2**15}
    change(tmp_path / "scene.json", scene=large)
    with pytest.raises(CorruptFileError, match=r"scene\.safetensors does not fit this model"):
        Scenes.load(tmp_path, "cpu")


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(UsageError, match="grid: the tokenizer has 4x4, the scene model expects 5x7"):
        Scenes(make_tokenizer(), make(), {})
    with pytest.raises(UsageError, match="this scene model takes 3 a frame, each from 0 to 7"):
        Scenes(make_tokenizer(), make((4, 4)), {}).check_codes(torch.tensor([[1, 2, 8]]))
