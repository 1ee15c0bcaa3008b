"""The image prior: a distribution over grids for each class, drawn alike in every way and whatever stands beside."""

import itertools
import json

import numpy as np
import pytest
import torch
from support.tokenizers import make_tokenizer

from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.reading import seal
from worldvq.models.config import ImagePriorConfig
from worldvq.models.image_prior import ImagePrior
from worldvq.models.losses import FORECAST_WEIGHT, image_prior_loss
from worldvq.types import TokenImages
from worldvq.world.images import ImageModel

KINDS = ("transformer", "pixelcnn")


def make_prior(kind, grid=(4, 4), num_codes=16, num_classes=3, std=0.4):
    torch.manual_seed(2)
    prior = ImagePrior(ImagePriorConfig(kind=kind, width=16, num_blocks=2, num_heads=2), grid, num_codes, num_classes)
    for parameter in prior.parameters():  # nothing may be hidden by zero-initialised branches
        torch.nn.init.normal_(parameter, std=std)
    return prior.eval()


def make_model(kind="pixelcnn", classes=("cat", "dog", "elk")):
    return ImageModel(make_tokenizer(), make_prior(kind, num_classes=len(classes)), classes, {"env_ids": ["Toy-v0"]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [1, 2])
@torch.no_grad()
def test_probabilities_of_all_grids_of_a_class_add_up_to_one(kind, num_classes):
    prior = make_prior(kind, (2, 2), 3, num_classes)
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    found = []
    for label in range(2):
        logits = prior(grids, torch.full((len(grids),), label % num_classes)).logits.log_softmax(-1)
        found.append(logits.gather(-1, grids[..., None]).sum((1, 2, 3)))
        assert float(found[-1].exp().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(*found) == (num_classes == 1)  # the class is what tells the two apart


@pytest.mark.parametrize("num_classes", [1, 3])
@torch.no_grad()
def test_the_loss_is_the_cross_entropy_by_hand(num_classes):
    prior = make_prior("transformer", num_classes=num_classes)
    images = TokenImages(torch.randint(16, (5, 4, 4)), torch.randint(num_classes, (5,)))
    loss, metrics = image_prior_loss(prior, images)
    prediction, wanted = prior(images.tokens, images.labels), []
    for logits in (prediction.logits, prediction.forecast):
        p = np.exp(logits.detach().double().numpy())
        p /= p.sum(-1, keepdims=True)
        wanted.append(-np.log(np.take_along_axis(p, images.tokens.numpy()[..., None], -1)).mean())
    assert float(metrics["nats_per_token"]) == pytest.approx(wanted[0], rel=1e-5)
    assert float(metrics["forecast"]) == pytest.approx(wanted[1], rel=1e-5)
    assert float(loss) == pytest.approx(wanted[0] + FORECAST_WEIGHT * wanted[1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.8}, {"temperature": 0}])
def test_both_methods_draw_the_same_and_rows_know_nothing_of_each_other(kind, sampling):
    model = make_model(kind)
    labels, seeds = np.arange(9) % 3, np.arange(9) // 3
    one = model.sample(labels, seeds, 5, method="sequential", **sampling)
    other = model.sample(labels, seeds, 5, method="predictive", **sampling)
    assert torch.equal(one.tokens, other.tokens)
    assert (one.passes == 16).all() and (other.passes <= 16).all() and other.passes.float().mean() < 16
    some = [7, 1, 4]
    alone = model.sample(labels[some], seeds[some], 5, method="predictive", **sampling)
    assert torch.equal(alone.tokens, one.tokens[some]) and torch.equal(alone.passes, other.passes[some])
    if sampling != {"temperature": 0}:
        again = model.sample(labels, seeds, 6, method="predictive", **sampling)
        assert not torch.equal(again.tokens, one.tokens)


def test_many_rows_are_drawn_in_parts(monkeypatch):
    model = make_model()
    labels, seeds = np.zeros(7, int), np.arange(7)
    whole = model.sample(labels, seeds, method="predictive")
    monkeypatch.setattr("worldvq.world.images._MOST_NOISE", 2 * 16 * 16)
    parts = model.sample(labels, seeds, method="auto")
    assert torch.equal(whole.tokens, parts.tokens) and parts.passes.shape == (7,)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    model = make_model()
    model.save(tmp_path)
    loaded = ImageModel.load(tmp_path, "cpu")
    assert (loaded.classes, loaded.meta, loaded.prior.config) == (model.classes, model.meta, model.prior.config)
    drawn = [each.sample([0, 2], [4, 4], method="predictive").tokens for each in (model, loaded)]
    assert torch.equal(*drawn) and torch.equal(*(each.tokenizer.render(drawn[0]) for each in (model, loaded)))
    assert loaded.number("dog") == 1
    with pytest.raises(UsageError, match=r"no class 'dogs' \(did you mean 'dog'\?\): this prior knows cat, dog, elk"):
        loaded.number("dogs")


def test_damage_is_named(tmp_path):
    make_model().save(tmp_path)
    path = tmp_path / "prior.json"
    good = json.loads(path.read_text())
    del good["checksum"]
    for change, words in (
        ({"classes": []}, "no list of names"),
        ({"classes": ["cat", "cat", "dog"]}, "one name"),
        ({"classes": ["cat", "dog"]}, "does not fit this model: embed_class.weight"),
        ({"prior_hash": "0" * 64}, r"prior\.safetensors is damaged"),
        ({"meta": 3}, r"prior\.json is damaged"),
        ({"prior": good["prior"] | {"width": 60_000}}, r"prior\.safetensors"),
    ):
        path.write_bytes(seal(good | change))
        with pytest.raises(CorruptFileError, match=words) as caught:
            ImageModel.load(tmp_path, "cpu")
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    path.write_bytes(seal(good | {"format_version": 9}))
    with pytest.raises(UsageError, match="is of format 9"):
        ImageModel.load(tmp_path, "cpu")
    path.unlink()
    with pytest.raises(UsageError, match="no image prior in"):
        ImageModel.load(tmp_path, "cpu")


def test_a_prior_of_another_grid_is_refused():
    with pytest.raises(UsageError, match="grid: the tokenizer has 4x4, the prior expects 2x4"):
        ImageModel(make_tokenizer(), make_prior("pixelcnn", (2, 4)), ("a", "b", "c"), {})
