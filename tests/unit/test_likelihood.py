"""Bits per dimension: probabilities that add up, a bound that brute force confirms, numbers that are counted twice."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.episodes import write
from support.worlds import HEIGHT, WIDTH, make_frames, make_world

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.errors import UsageError
from worldvq.evaluation import likelihood
from worldvq.evaluation.likelihood import JPEG_XL, LOSSLESS, SCORED, lossless_bytes, measure_likelihood
from worldvq.models.config import ImagePriorConfig, PriorConfig, TokenizerConfig
from worldvq.models.image_prior import ImagePrior
from worldvq.models.likelihood import bound, decode_means, fit_log_scale, logistic_nats, uniform_nats
from worldvq.models.priors import make_prior
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.types import Episode, frames_to_model
from worldvq.world.images import ImageModel

VALUES = torch.arange(256)[:, None, None, None].expand(256, 3, 1, 1) / 127.5 - 1  # every value of a pixel


def logistic(values: np.ndarray, mean: float, scale: float) -> np.ndarray:
    """Probabilities of the 256 values in float64, straight from eq. 2 of the paper."""
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    with np.errstate(over="ignore"):
        return np.diff(1 / (1 + np.exp(-(edges - mean) / scale)))


@settings(max_examples=60, deadline=None)
@given(mean=st.floats(-1.5, 1.5), log_scale=st.floats(-6, 1.5))
def test_the_logistic_is_that_of_the_paper_and_its_values_add_up(mean, log_scale):
    nats = logistic_nats(VALUES, torch.full((1, 3, 1, 1), mean), torch.full((3,), log_scale)).double()
    assert nats.shape == (256, 3, 1, 1)
    np.testing.assert_allclose(torch.exp(-nats).sum(0), 1, rtol=2e-4)
    expected = logistic(np.arange(256) / 127.5 - 1, mean, math.exp(log_scale))
    seen = expected > 1e-9  # where the difference of two sigmoids is more than rounding
    np.testing.assert_allclose(torch.exp(-nats[:, 0, 0, 0]).numpy()[seen], expected[seen], rtol=2e-3)


def test_the_scale_is_the_most_probable_one():
    rng = np.random.default_rng(0)
    true = np.array([0.01, 0.05, 0.3])[:, None, None]
    mean = rng.uniform(-0.5, 0.5, (20, 3, 16, 16))
    frames = np.clip(np.round((mean + rng.logistic(size=mean.shape) * true + 1) * 127.5), 0, 255) / 127.5 - 1
    x, said = torch.from_numpy(frames).float(), torch.from_numpy(mean).float()
    found = fit_log_scale(x, said)
    np.testing.assert_allclose(found.exp(), true[:, 0, 0], rtol=0.1)
    best = logistic_nats(x, said, found).sum((0, 2, 3))
    for step in (-0.05, 0.05):
        assert (logistic_nats(x, said, found + step).sum((0, 2, 3)) > best).all()


# ------------------------------------------------------------------------------------------------ the bound


@pytest.fixture(params=["transformer", "pixelcnn"])
def toy(request):
    """A tokenizer of 3 codes on a grid of 2x2, all of its 81 grids, and a prior over them."""
    torch.manual_seed(3)
    quantizer = QuantizerConfig(num_codes=3, code_dim=2)
    sizes = {"frame_size": (8, 8), "downsample": 4, "width": 8, "encoder_blocks": 0, "decoder_blocks": 0}
    tokenizer = Tokenizer(TokenizerConfig(quantizer=quantizer, **sizes)).eval()
    prior = make_prior(PriorConfig(kind=request.param, width=8, num_blocks=1, num_heads=2), (2, 2), 3).eval()
    for parameter in (*tokenizer.parameters(), *prior.parameters()):
        torch.nn.init.normal_(parameter, std=0.5)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)

    def prior_nats(tokens):
        with torch.no_grad():
            logits = prior(tokens).double().log_softmax(-1)
        return -logits.gather(-1, tokens[..., None])[..., 0].sum((1, 2))

    return tokenizer, every, prior_nats


def all_grids(tokenizer, every, frames, log_scale, prior_nats):
    """Nats of every frame by every grid, (N, 81), and the true nats of every frame, (N,)."""
    found = [bound(tokenizer, frame.expand(81, 8, 8, 3), every, log_scale, prior_nats) for frame in frames.split(1)]
    joint = torch.stack([one.reconstruction + one.prior for one in found])
    return joint, -torch.logsumexp(-joint, 1)


@pytest.mark.parametrize("scale", [0.02, 0.2, 2.0])
def test_the_bound_lies_below_the_truth_and_above_no_better_grid(toy, scale):
    tokenizer, every, prior_nats = toy
    assert torch.exp(-prior_nats(every)).sum() == pytest.approx(1)
    assert torch.exp(-uniform_nats(3)(every)).sum() == pytest.approx(1)
    frames = torch.randint(256, (6, 8, 8, 3), dtype=torch.uint8)
    log_scale = torch.full((3,), math.log(scale))
    for prior in (prior_nats, uniform_nats(3)):
        joint, true = all_grids(tokenizer, every, frames, log_scale, prior)
        own = tokenizer.encode(frames_to_model(frames))
        nats = bound(tokenizer, frames, own, log_scale, prior)
        total = nats.reconstruction + nats.prior
        place = (own.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
        torch.testing.assert_close(total, joint.gather(1, place[:, None])[:, 0])
        assert (total >= true - 1e-6).all()
        if scale == 2.0:  # every grid explains every frame a little: the bound is loose
            assert (total > true + 0.5).all()


def test_the_bound_is_the_truth_where_one_grid_alone_explains_the_frame(toy):
    tokenizer, every, prior_nats = toy
    chosen = every[::9]
    means = decode_means(tokenizer, chosen)
    frames = ((means + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    log_scale = torch.full((3,), math.log(0.002))
    _, true = all_grids(tokenizer, every, frames, log_scale, prior_nats)
    nats = bound(tokenizer, frames, chosen, log_scale, prior_nats)
    torch.testing.assert_close(nats.reconstruction + nats.prior, true, rtol=1e-9, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the table


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(likelihood, "FITTED", 16)


def episodes(world, steps=30, count=4):
    space, rows = world.action_space, []
    for seed in range(count):
        torch.manual_seed(seed)
        frames, rng = make_frames(1, steps + 1)[0].numpy(), np.random.default_rng(seed)
        actions, rewards = rng.integers(0, space.nvec[0], steps), np.zeros(steps, np.float32)
        rows.append(Episode(frames, actions, rewards, False, True, seed=seed))
    return rows


def dataset(path, world, steps=30, count=4):
    return write(path, world.action_space, episodes(world, steps, count))


def test_the_numbers_are_those_that_are_added_up_by_hand(tmp_path):
    world, context = make_world(), 3
    store = dataset(tmp_path / "data", world)
    found = measure_likelihood(world, tmp_path / "data", 4)
    clip = read_clips(store, heldout_clips(store, 4, context + SCORED), context + SCORED)
    frames, dims = clip.frames[:, context:].flatten(0, 1), HEIGHT * WIDTH * 3
    assert found.num_frames == len(frames) == 4 * SCORED
    assert found.priors["all codes equally probable"] == pytest.approx(6 * math.log2(11) / dims)
    tokens = world.tokenize(clip.frames)
    with torch.no_grad():
        logits = world.dynamics(tokens, clip.actions).logits.double().log_softmax(-1)  # of frames 1 ...
    nats = -logits.gather(-1, tokens[:, 1:, ..., None])[:, context - 1 :].sum() / len(frames)
    assert found.priors["the dynamics, given the past"] == pytest.approx(float(nats) / math.log(2) / dims, rel=1e-6)
    means = decode_means(world.tokenizer, tokens[:, context:].flatten(0, 1)).numpy()
    scale, values = np.array(found.scale) / 127.5, np.arange(256) / 127.5 - 1
    for frame, mean in zip(frames[:3].numpy(), means[:3], strict=True):
        for place in ((0, 0, 0), (5, 7, 1), (15, 23, 2)):
            row, column, channel = place
            p = logistic(values, mean[channel, row, column], scale[channel])[frame[place]]
            one = logistic_nats(
                frames_to_model(torch.from_numpy(frame)), torch.from_numpy(mean), torch.from_numpy(scale).log().float()
            )[channel, row, column]
            assert float(one) == pytest.approx(-math.log(p), rel=1e-3)


def test_a_tokenizer_alone_scores_single_frames(tmp_path):
    world = make_world()
    dataset(tmp_path / "data", world, steps=5, count=3)  # too short for the dynamics
    dataset(tmp_path / "other", world, steps=7)
    found = measure_likelihood(world.tokenizer, tmp_path / "data", 1)
    assert found.num_frames == 6 and list(found.priors) == ["all codes equally probable"]  # all of the one episode
    again = measure_likelihood(world.tokenizer, tmp_path / "data", 1, fit_on=tmp_path / "other")
    assert again.priors == found.priors and again.scale != found.scale and again.psnr == found.psnr
    small = TokenizerConfig(frame_size=(8, 8), downsample=4, width=8)
    with pytest.raises(UsageError, match="frame_size: the dataset has 16x24, the tokenizer expects 8x8"):
        measure_likelihood(Tokenizer(small), tmp_path / "data", 1)


@pytest.mark.parametrize("labels", [("cat", "dog"), ("", "")])
def test_an_image_prior_scores_the_tokens_of_single_frames(tmp_path, labels):
    world, classes = make_world(), sorted({label or "Toy-v0" for label in labels})
    rows = [dataclasses.replace(episode, meta={"label": labels[n % 2]}) for n, episode in enumerate(episodes(world))]
    store = write(tmp_path / "data", world.action_space, rows, heldout_every=2)
    torch.manual_seed(3)
    prior = ImagePrior(ImagePriorConfig(width=16, num_blocks=1), world.tokenizer.grid, 11, len(classes))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model = ImageModel(world.tokenizer, prior, classes, {})
    found = measure_likelihood(world, tmp_path / "data", 4, prior=model)
    ids = heldout_clips(store, 4, 3 + SCORED)
    tokens = world.tokenize(read_clips(store, ids, 3 + SCORED).frames)[:, 3:]
    nats = 0.0
    for (number, _), grids in zip(ids.tolist(), tokens, strict=True):
        label = classes.index(labels[number % 2] or "Toy-v0")
        with torch.no_grad():
            logits = prior(grids, torch.full((SCORED,), label)).logits
        nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 2), grids.flatten(), reduction="sum"))
    name = "the image prior, " + ("given the class" if len(classes) > 1 else "of single frames")
    dims = SCORED * len(ids) * HEIGHT * WIDTH * 3
    assert found.priors[name] == pytest.approx(nats / math.log(2) / dims, rel=1e-5)
    with pytest.raises(UsageError, match="tokens of another tokenizer"):
        torch.nn.init.normal_(world.tokenizer.decoder[0].weight)
        measure_likelihood(world, tmp_path / "data", 4, prior=ImageModel(make_world().tokenizer, prior, classes, {}))


@pytest.mark.parametrize("name", LOSSLESS)
def test_files_are_lossless_and_counted_whole(name):
    if name == JPEG_XL:
        pytest.importorskip("pillow_jxl")
    frames, counted = make_frames(1, 3)[0], 0
    for frame in frames.numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, **LOSSLESS[name])
        counted += len(file.getvalue())
        read = Image.open(file)
        assert read.format == LOSSLESS[name]["format"] and read.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(read), frame)
    assert lossless_bytes(frames, name) == counted > frames.numel()  # noise
    assert lossless_bytes(torch.zeros_like(frames), name) < counted / 5


def test_what_does_not_fit_is_refused(tmp_path):
    world = make_world()
    dataset(tmp_path / "short", world, steps=9)
    with pytest.raises(UsageError, match=r"no held-out episode has 11 frames, the longest .* has 10"):
        measure_likelihood(world, tmp_path / "short", 4)
    dataset(tmp_path / "data", world)
    with pytest.raises(UsageError, match="does not fit the world"):
        measure_likelihood(make_world("multi_discrete"), tmp_path / "data", 4)
