"""A step is one look at the global batch, in however many passes and processes: weights and codebook are the same."""

import numpy as np
import pytest
import torch
from support.batches import Batches
from support.tokenizers import make_tokenizer
from support.training import finish, start

from worldvq.files.weights import read_tensors, save_module
from worldvq.models.config import TokenizerLossConfig
from worldvq.models.losses import tokenizer_loss
from worldvq.models.tokenizer_losses import make_tokenizer_loss
from worldvq.nn.config import QuantizerConfig
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit
from worldvq.types import Clip

BATCH = 8
KINDS = {
    "ema": {"kind": "ema"},
    "sgd": {"kind": "sgd"},
    "ema-kmeans": {"kind": "ema", "initialize": "kmeans"},
    "sgd-cosine": {"kind": "sgd", "cosine": True},
}


class Short(Batches):
    """Clips of up to three frames: every share of a batch has another number of them.

    After the first steps they are grey, so that most codes are far from everything and die.
    """

    def batch(self, step, rank=0, world=1):
        random = np.random.default_rng(step)
        contrast = 120 if step < 2 else 30
        frames = random.integers(128 - contrast, 128 + contrast, (BATCH, 3, 16, 16, 3), dtype=np.uint8)
        frames = torch.from_numpy(frames)
        mask = torch.arange(3) < torch.from_numpy(random.integers(1, 4, BATCH))[:, None]
        share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        frames[~mask], frames, mask = 0, frames[share], mask[share]
        return Clip(frames, mask.long(), mask.float(), ~mask, mask, mask)


def network(options, revive_after=2):
    """Few codes for some 250 vectors: that one is drawn twice, for two codes that are nearest in turns, is unlikely."""
    return make_tokenizer(QuantizerConfig(num_codes=16, code_dim=3, revive_after=revive_after, **options))


def train(out, accumulate, names=tuple(KINDS), revive_after=2):
    """Train with every kind of quantizer; leaves all tensors."""
    for name in names:
        settings = TrainConfig(steps=8, batch_size=BATCH, accumulate=accumulate, precision="no")
        trained = network(KINDS[name], revive_after)
        fit(trained, tokenizer_loss, Short(BATCH), settings, out / name, summary="test")
        save_module(out / f"{name}.safetensors", trained)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process leaves that takes each global batch in one pass."""
    out = tmp_path_factory.mktemp("whole")
    train(out, 1)
    return {name: read_tensors(out / f"{name}.safetensors") for name in KINDS}


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (1, 4), (2, 1), (2, 2)])
def test_the_codebook_is_that_of_one_pass_of_one_process(tmp_path, whole, processes, accumulate):
    jobs = start(processes, tmp_path / "log", train, tmp_path, accumulate)
    assert finish(jobs) == [0] * processes, jobs[0].log.read_text()
    for name in KINDS:
        assert_same(read_tensors(tmp_path / f"{name}.safetensors"), whole[name])


@pytest.mark.parametrize("name", ["ema", "sgd"])
def test_codes_are_revived_on_the_way(tmp_path, whole, name):
    train(tmp_path, 1, [name], revive_after=1000)
    codebook = "quantizer.codebook" if name == "ema" else "quantizer.table.weight"
    never = read_tensors(tmp_path / f"{name}.safetensors")[codebook]
    moved = (never - whole[name][codebook]).abs().amax(1) > 0.01
    assert moved.sum() >= 3


def test_gradients_of_padded_shares_add_up_to_those_of_the_whole():
    """With all terms but the one that needs a download: the mean over shares is the mean over the global batch."""
    options = TokenizerLossConfig(motion=0.7, adversarial=0.3)
    clip = Short(BATCH).batch(3)

    def gradient(count):
        torch.manual_seed(2)
        model, loss_function = make_tokenizer_loss(network(KINDS["sgd"]), options)
        model.eval()
        for rank in range(count):
            loss, _ = loss_function(model, Short(BATCH).batch(3, rank, count))
            (loss / count).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert not clip.mask.all()
    expected = gradient(1)
    for count in (2, 8):
        torch.testing.assert_close(gradient(count), expected, rtol=1e-4, atol=1e-6)
