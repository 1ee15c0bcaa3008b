"""The optional terms of the tokenizer's loss: their formulas, their gradients, and that training with them works."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.episodes import write
from support.tokenizers import tokenizer_config
from torch import nn

from worldvq.config.env import EnvConfig
from worldvq.data.joined import JoinedSampler
from worldvq.errors import UsageError
from worldvq.files.weights import hash_module
from worldvq.models.config import TokenizerLossConfig
from worldvq.models.loading import load_tokenizer
from worldvq.models.losses import tokenizer_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.tokenizer_losses import (
    CHANGE,
    AdversarialTokenizer,
    TokenizerLoss,
    hinge,
    make_tokenizer_loss,
    motion_error,
    rare_error,
)
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.experiment import ExperimentConfig, load_config
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.training.config import TrainConfig
from worldvq.types import ActionSpace, Clip, Episode, frames_to_model

SMALL = tokenizer_config(QuantizerConfig(kind="ema", num_codes=16, code_dim=4))


def clip_of(frames, lengths=None):
    """A Clip of frames (B, T, H, W, 3), of which each row has so many."""
    batch, steps = frames.shape[:2]
    exists = torch.arange(steps) < torch.tensor(lengths or [steps] * batch)[:, None]
    zeros = torch.zeros(batch, steps)
    return Clip(frames * exists[..., None, None, None], zeros.long(), zeros, zeros.bool(), exists, exists)


def random_clip(batch=5, steps=3, lengths=None, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (batch, 1, 16, 16, 3)).repeat(steps, 1)
    moved = rng.random((batch, steps, 16, 16, 1)) < rng.random((batch, steps, 1, 1, 1)) ** 2
    frames = np.where(moved, rng.integers(0, 256, frames.shape), frames).astype(np.uint8)
    return clip_of(torch.from_numpy(frames), lengths)


def tokenizer(config=SMALL):
    torch.manual_seed(1)
    return Tokenizer(config)


def gradients(module, loss):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def test_without_weights_it_is_the_plain_loss_to_the_bit(tmp_path):
    one, two = tokenizer(), tokenizer()
    model, loss_function = make_tokenizer_loss(one, ExperimentConfig().tokenizer_loss)
    assert model is one and loss_function is tokenizer_loss
    clip = random_clip()
    # Nor does the class that adds terms change anything where it has none to add.
    for model, function in ((one, tokenizer_loss), (two, TokenizerLoss(TokenizerLossConfig()))):
        torch.manual_seed(2)
        loss, metrics = function(model, clip)
        loss.backward()
        model.result = (loss.detach(), metrics)
    assert torch.equal(one.result[0], two.result[0]) and one.result[1] == two.result[1]
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert hash_module(one) == hash_module(two)


def test_the_motion_term_is_its_formula_and_respects_masks():
    lengths = [3, 2, 1, 3, 3]
    clip = random_clip(lengths=lengths)
    clip.frames[3] = clip.frames[3, :1]  # nothing changes
    clip.frames[4, 1] = 255 - clip.frames[4, 0] // 2  # nearly everything does
    error = torch.rand(sum(lengths), 16, 16)
    terms, index = [], 0
    for row, length in enumerate(lengths):
        for t in range(length):
            if t:
                now, before = (clip.frames[row, s].numpy().astype(int) for s in (t, t - 1))
                changed = abs(now - before).max(-1) > CHANGE
                mean = error[index].numpy()[changed].mean() if changed.any() else 0.0
                terms.append((1 - changed.mean()) * mean)
            index += 1
    assert 0 in terms and len(terms) == 7
    assert float(motion_error(error, clip)) == pytest.approx(np.mean(terms), rel=1e-5)

    model = tokenizer().eval()
    loss, metrics = TokenizerLoss(TokenizerLossConfig(motion=0.7))(model, clip)
    plain, _ = tokenizer_loss(model, clip)
    torch.testing.assert_close(loss, plain + 0.7 * metrics["motion"] * len(terms) / 10)  # of 10 pairs 7 exist
    torch.testing.assert_close(plain, (metrics["reconstruction"] + metrics["quantizer_loss"]) * sum(lengths) / 15)
    frames = frames_to_model(clip.frames[clip.mask])
    error = (model(frames).frames - frames).square().mean(1)
    torch.testing.assert_close(metrics["motion"], motion_error(error, clip).detach())


def test_clips_in_which_nothing_has_a_frame_before_it_add_nothing():
    clip = random_clip(lengths=[1] * 5)
    error = torch.rand(5, 16, 16, requires_grad=True)
    motion = motion_error(error, clip)
    motion.backward()
    assert motion == 0 and not error.grad.any()


def test_clips_of_one_frame_are_refused_with_motion():
    with pytest.raises(UsageError, match="clip_frames to 2 or more"):
        motion_error(torch.rand(5, 16, 16), random_clip(steps=1))
    with pytest.raises(UsageError, match=r"tokenizer_loss.motion 0.5 .*clip_frames to 2 or more, got 1"):
        load_config("doom", ["tokenizer_loss.motion=0.5"])
    config = load_config("doom", ["tokenizer_loss.motion=0.5", "tokenizer_training.clip_frames=2"])
    assert config.tokenizer_loss.motion == 0.5


def test_the_discriminator_learns_from_the_plain_hinge_and_the_tokenizer_against_it():
    weight, clip = 0.3, random_clip()
    model = AdversarialTokenizer(tokenizer(), weight).eval()
    loss, metrics = TokenizerLoss(TokenizerLossConfig(adversarial=weight))(model, clip)
    frames = frames_to_model(clip.frames[clip.mask])
    rebuilt = model.tokenizer(frames).frames
    game = hinge(model.discriminator(frames), model.discriminator(rebuilt))  # no reversal
    plain, _ = tokenizer_loss(model.tokenizer, clip)
    torch.testing.assert_close(metrics["adversarial"], game.detach())
    torch.testing.assert_close(loss, plain + game)
    for ours, expected in zip(gradients(model.discriminator, loss), gradients(model.discriminator, game), strict=True):
        torch.testing.assert_close(ours, expected)
    parts = (gradients(model.tokenizer, value) for value in (loss, plain, game))
    for ours, reconstruction, against in zip(*parts, strict=True):
        torch.testing.assert_close(ours, reconstruction - weight * against, rtol=1e-4, atol=1e-6)
    assert any(g.any() for g in gradients(model.tokenizer, game))


def test_a_discriminator_learns_to_tell():
    torch.manual_seed(0)
    model = AdversarialTokenizer(tokenizer(), 0.0)  # the tokenizer does not fight back
    optimizer = torch.optim.AdamW(model.discriminator.parameters(), lr=3e-3)
    frames = frames_to_model(random_clip(8, 1).frames[:, 0])
    model.tokenizer.eval()
    for _ in range(40):
        output = model(frames)
        loss = hinge(output.real, output.fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert output.real.shape == (8, 1, 4, 4) and loss.item() < 0.2, loss


class Distance(nn.Module):
    """Stands in for LPIPS: the same interface, frozen by whoever uses it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, a, b):
        assert not self.training
        return self.scale * (a - b).abs().mean((1, 2, 3), keepdim=True)


def test_the_perceptual_term_moves_the_tokenizer_but_not_its_network(monkeypatch):
    network = Distance()
    monkeypatch.setattr("worldvq.models.tokenizer_losses.load_lpips", lambda: network)
    base = tokenizer()
    model, loss_function = make_tokenizer_loss(base, TokenizerLossConfig(perceptual=0.5))
    assert model is base
    model.eval()
    clip = random_clip()
    loss, metrics = loss_function(model, clip)
    frames = frames_to_model(clip.frames[clip.mask])
    distance = 3 * (model(frames).frames - frames).abs().mean()
    torch.testing.assert_close(metrics["perceptual"], distance.detach())
    torch.testing.assert_close(loss, tokenizer_loss(model, clip)[0] + 0.5 * distance)
    loss.backward()
    assert network.scale.grad is None and all(p.grad is not None for p in model.parameters())
    assert not any("lpips" in name or "scale" in name for name in model.state_dict())


@pytest.mark.parametrize("missing", ["torchmetrics.image.lpip", "torchvision", "weights"])
def test_a_perceptual_loss_that_cannot_be_had_says_why(monkeypatch, missing):
    if missing == "weights":
        lpip = pytest.importorskip("torchmetrics.image.lpip")

        def offline(**_):
            raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

        monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", offline)
    else:
        if missing == "torchvision":
            lpip = pytest.importorskip("torchmetrics.image.lpip")
            monkeypatch.setattr(lpip, "_TORCHVISION_AVAILABLE", False)
        else:
            monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError) as caught:
        make_tokenizer_loss(tokenizer(), TokenizerLossConfig(perceptual=1.0))
    text = str(caught.value)
    assert "\n" not in text and "tokenizer_loss.perceptual=0" in text and "checkpoints" in text, text
    assert {"torchvision": "torchvision is installed", "weights": "name resolution"}.get(missing, missing) in text, text


def vgg16(weights):
    """The layers of torchvision's VGG16, with random weights."""
    assert weights == "ImageNet"
    layers, width = [], 3
    for group in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for out in group:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        layers.append(nn.MaxPool2d(2))
    return SimpleNamespace(features=nn.Sequential(*layers))


def test_lpips_of_torchmetrics_works_once_torchvision_is_there(monkeypatch):
    """Real but for the network that torchvision would bring."""
    modules = [pytest.importorskip(f"torchmetrics.{name}") for name in ("image.lpip", "functional.image.lpips")]
    for module in modules:
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True, raising=False)
    models = SimpleNamespace(vgg16=vgg16, VGG16_Weights=SimpleNamespace(DEFAULT="ImageNet"))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    model, loss_function = make_tokenizer_loss(tokenizer(), TokenizerLossConfig(perceptual=1.0))
    clip = random_clip(2, 1)
    loss, metrics = loss_function(model.eval(), clip)
    plain, _ = tokenizer_loss(model, clip)
    assert float(metrics["perceptual"]) > 0
    torch.testing.assert_close(loss.detach(), plain.detach() + metrics["perceptual"])
    frames = frames_to_model(clip.frames[:, 0])
    assert float(loss_function.lpips(frames, frames).abs().max()) < 1e-6
    moved = (a - b for a, b in zip(gradients(model, loss), gradients(model, plain), strict=True))
    assert any(g.abs().max() > 0 for g in moved) and not any(p.requires_grad for p in loss_function.lpips.parameters())


def record_clips(path, episodes=6):
    played = []
    for number in range(episodes):
        frames = random_clip(1, 5, seed=number).frames[0].numpy()
        played.append(Episode(frames, np.zeros(4, np.int64), np.zeros(4, np.float32), False, True))
    return write(path, ActionSpace("discrete", (2,)), played, heldout_every=3).path


def test_all_terms_train_resume_and_leave_a_plain_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("worldvq.models.tokenizer_losses.load_lpips", Distance)
    data = record_clips(tmp_path / "data")
    training = TrainConfig(steps=6, batch_size=4, clip_frames=2, log_every=2, save_every=2, picture_every=3)
    config = ExperimentConfig(
        env=EnvConfig(size=(16, 16)),
        tokenizer=SMALL,
        tokenizer_training=training,
        tokenizer_loss=TokenizerLossConfig(perceptual=0.1, adversarial=0.1, motion=1.0),
    )
    whole = train_tokenizer(config, data, tmp_path / "whole")
    read = JoinedSampler.batch

    def interrupted(sampler, step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        return read(sampler, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JoinedSampler, "batch", interrupted)
        train_tokenizer(config, data, tmp_path / "cut")
    resumed = train_tokenizer(config, data, tmp_path / "cut")
    assert isinstance(resumed, Tokenizer) and hash_module(resumed) == hash_module(whole)
    assert hash_module(load_tokenizer(tmp_path / "cut")) == hash_module(whole)
    pictures = (tmp_path / "cut" / "pictures").glob("*.png")
    assert sorted(path.stem for path in pictures) == ["00000003", "00000006"]
    row = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()[-1]
    assert all(f'"{name}"' in row for name in ("motion", "perceptual", "adversarial", "psnr"))
    assert hash_module(train_tokenizer(config, data, tmp_path / "cut")) == hash_module(whole)  # done: nothing to do
    with pytest.raises(UsageError, match=r"trained with another config.*motion"):
        changed = config.model_copy(update={"tokenizer_loss": TokenizerLossConfig(perceptual=0.1, adversarial=0.1)})
        train_tokenizer(changed, data, tmp_path / "cut")


def test_rare_colours_weigh_more_as_numpy_has_it():
    frames = torch.zeros(2, 3, 4, 4)
    frames[0, :, 0, 0] = torch.tensor([1.0, -1.0, -1.0])  # one red pixel among 31 of grey
    error = torch.rand(2, 4, 4)
    weight = np.full((2, 4, 4), (31) ** -0.5)
    weight[0, 0, 0] = 1.0
    expected = (error.numpy() * weight).sum() / weight.sum()
    assert float(rare_error(error, frames)) == pytest.approx(expected, rel=1e-5)
    assert float(rare_error(torch.ones(2, 4, 4), frames)) == pytest.approx(1.0)  # a mean
