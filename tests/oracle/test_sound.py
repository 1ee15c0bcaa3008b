"""The VQ-VAE of sound: its encoder against PyTorch's layers and by hand, and what its decoder is told of what."""

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.sounds import write_sounds
from torch import nn

from worldvq.models.config import SamplingConfig, SoundTokenizerConfig, WaveNetConfig
from worldvq.models.losses import sound_loss
from worldvq.models.sampling import draw_noise, predictive, sequential
from worldvq.models.sound import SoundTokenizer, jitter
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.conv import Convolution1d
from worldvq.nn.mulaw import compress
from worldvq.nn.noise import stream_keys
from worldvq.nn.spectrograms import mel_filters
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer
from worldvq.types import SoundCrops
from worldvq.world.codec import SoundCodec

HOPS = {64: (2,) * 6, 128: (2,) * 7, 640: (*(2,) * 7, 5)}  # 64 as in the paper; 128 and 640 as in its talk
TINY = {
    "width": 8,
    "quantizer": QuantizerConfig(num_codes=16, code_dim=4),
    "decoder": WaveNetConfig(width=8, skip_width=8, num_stacks=1, stack_layers=3),
}


def make(strides=(2, 2), num_speakers=3, **settings):
    return SoundTokenizer(SoundTokenizerConfig(strides=strides, **{**TINY, **settings}), num_speakers, 8000).eval()


def shake(model):
    """So that nothing that starts at zero hides a mistake."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (4, 2), (10, 5), (6, 3)])
def test_a_convolution_is_pytorchs_own(size, stride):
    layer, other = Convolution1d(3, 5, size, stride), nn.Conv1d(3, 5, size, stride)
    with torch.no_grad():
        other.weight.copy_(layer.weight.reshape(5, size, 3).transpose(1, 2))
        other.bias.copy_(layer.bias.normal_())
    x = torch.randn(2, 3, 4 * stride)
    left = (size - stride) // 2
    torch.testing.assert_close(layer(x), other(F.pad(x, (left, size - stride - left))), rtol=1e-4, atol=1e-5)
    assert layer(x).shape == (2, 5, 4)


@pytest.mark.parametrize("hop", HOPS)
@torch.no_grad()
def test_a_token_for_every_hop_of_samples(hop):
    tokenizer = make(HOPS[hop])
    assert tokenizer.config.hop == hop
    waveform = torch.rand(2, 3 * hop) * 2 - 1
    found = tokenizer(waveform, torch.tensor([0, 2]))
    assert found.logits.shape == (2, 3 * hop, 256) and found.tokens.shape == (2, 3)
    assert torch.equal(found.tokens, tokenizer.encode(waveform)) and found.tokens.dtype == torch.int64
    assert torch.equal(found.classes, compress(waveform)) and found.quantizer_loss.shape == ()
    for length in (0, hop - 1, 3 * hop + 1):
        with pytest.raises(ValueError, match=f"^{length} samples do not divide into tokens of {hop}: cut or pad"):
            tokenizer.encode(waveform[:, :1].expand(2, length))


@pytest.mark.parametrize(("hop", "before", "after"), [(64, 63, 63), (128, 127, 127), (640, 127 + 256, 127 + 384)])
def test_what_a_token_sees_counted_by_hand(hop, before, after):
    """Stride 2: a window of 4 sees 1 input past each side of its 2, at a spacing of 1, 2, 4, ...: 1 + ... + 32 = 63.

    The window of 10 of stride 5 stands at a spacing of 128: 2 inputs before its 5 and 3 after them.
    """
    tokenizer = make(HOPS[hop])
    for parameter in tokenizer.encoder.parameters():
        nn.init.uniform_(parameter, 0.1, 0.2)  # all positive: no ReLU hides anything
    waveform = torch.rand(1, 5 * hop, requires_grad=True)
    tokenizer.encoder(waveform[:, None])[0, :, 2].sum().backward()
    seen = waveform.grad[0].nonzero()[:, 0]
    assert seen.tolist() == [*range(2 * hop - before, 3 * hop + after)]


def test_the_encoder_is_that_of_the_paper():
    """Section 4.3: "6 strided convolutions with stride 2 and window-size 4", K = 512, 64 times fewer tokens."""
    tokenizer = SoundTokenizer(SoundTokenizerConfig(), 3, 16000)
    windows = [(m.size, m.stride) for m in tokenizer.encoder if isinstance(m, Convolution1d)]
    assert windows == [(4, 2)] * 6 + [(1, 1)]
    assert tokenizer.config.hop == 64 and tokenizer.num_codes == 512
    width, dim = 128, 32
    by_hand = (4 * width + width) + 5 * (4 * width * width + width) + (width * dim + dim)
    assert sum(p.numel() for p in tokenizer.encoder.parameters()) == by_hand == 333_088


@torch.no_grad()
@pytest.mark.parametrize(("strides", "hop"), [((64,), 64), ((64, 2, 2), 256)])
def test_an_encoder_of_cepstra_sees_cepstral_coefficients(strides, hop):
    """That is SciPy's, of a spectrum around the middle of every first stride; the rest is convolutions."""
    from scipy.fft import dct

    tokenizer = make(strides, features="mfcc")
    waveform = torch.rand(2, 4 * hop) - 0.5
    seen = tokenizer.encoder[0](waveform[:, None])  # (2, 13, n)
    assert seen.shape == (2, 13, 4 * hop // 64) and tokenizer.config.hop == hop
    for number in (0, 1, 3):
        middle = number * 64 + 32
        piece = F.pad(waveform[1], (100, 100))[middle : middle + 200].numpy() * np.hanning(201)[:200]
        power = np.abs(np.fft.rfft(piece, 256)) ** 2 / 50**2
        mel = 10 * np.log10(power @ mel_filters(129, 8000, 40).numpy())
        cepstrum, order = dct(mel + 80, norm="ortho")[:13], np.arange(13)
        expected = cepstrum * (1 + 11 * np.sin(np.pi * order / 22)) / 90
        expected[0] = (mel + 80).mean() / 20
        np.testing.assert_allclose(seen[1, :, number], expected, rtol=1e-3, atol=1e-3)
    assert not tokenizer.encoder[0](torch.zeros(1, 1, hop)).any()
    tokens = tokenizer.encode(waveform)
    assert tokens.shape == (2, 4) and torch.equal(tokenizer(waveform, torch.tensor([0, 2])).tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encoder[0](waveform[:, None]), seen)


def test_jitter_puts_neighbours_in_the_place_of_codes():
    length, share = 4000, 0.3
    z_q = torch.arange(2.0 * length).view(2, 1, 1, length).expand(2, 3, 1, length)
    keys = torch.from_numpy(stream_keys(0, np.arange(2), np.zeros(2)))
    moved = jitter(z_q, keys, share) - z_q
    assert torch.equal(moved[:, :1].expand_as(moved), moved)  # all of a code
    for row in moved[:, 0, 0]:
        assert set(row.tolist()) == {-1.0, 0.0, 1.0} and row[0] >= 0 >= row[-1]
        for way in (-1, 1):
            assert (row == way).float().mean() == pytest.approx(share / 2, abs=0.02)
    assert torch.equal(jitter(z_q[1:], keys[1:], share), jitter(z_q, keys, share)[1:])  # whoever is beside it
    assert not torch.equal(moved[0], moved[1]) and torch.equal(jitter(z_q, keys, 0), z_q)


def test_jitter_is_asked_for_by_the_loss():
    tokenizer = shake(make((2, 2), jitter=0.5)).train()
    waveform, speakers = torch.rand(2, 400) * 2 - 1, torch.tensor([0, 2])
    losses = []
    for step in (0, 0, 1):
        keys = torch.from_numpy(stream_keys(0, np.arange(2), np.full(2, step)))
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(sound_loss(copy.deepcopy(tokenizer), SoundCrops(waveform, speakers, keys))[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_a_spectrum_every_other_sample_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"every strides\[0\] = 2 samples: .*sound.strides=\[64\]"):
        SoundTokenizerConfig(features="mfcc")


def test_codes_are_jittered_in_training_alone():
    tokenizer, keys = shake(make((2, 2), jitter=0.5)), torch.from_numpy(stream_keys(0, np.arange(2), np.zeros(2)))
    given = torch.rand(2, 400) * 2 - 1, torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(tokenizer(*given, keys).logits, tokenizer(*given).logits)
        found = []
        for noise in ((keys,), ()):
            torch.manual_seed(0)  # of what the codebook begins with
            found.append(copy.deepcopy(tokenizer).train()(*given, *noise))
        moved, still = found
        assert torch.equal(moved.tokens, still.tokens) and not torch.equal(moved.logits, still.logits)


@torch.no_grad()
def test_the_decoder_hears_codes_speaker_and_past_and_nothing_later():
    tokenizer, speaker = shake(make((2, 2))), torch.tensor([1])
    tokens = torch.randint(16, (1, 6))
    classes = torch.randint(256, (1, 1, 24))

    def logits(tokens=tokens, speaker=speaker, classes=classes):
        return tokenizer.start(tokens, speaker).logits(classes[:, 0], 0, 24)[0]

    def differing(other):
        return ((other - logits()).abs().amax(-1) > 1e-6).nonzero()[:, 0].tolist()

    other = tokens.clone()
    other[0, 3] = (other[0, 3] + 1) % 16
    assert differing(logits(tokens=other)) == [*range(8, 20 + 6)][:16]  # a code, its neighbours, and 2 + 4 samples more
    assert differing(logits(speaker=speaker + 1)) == [*range(24)]
    later = classes.clone()
    later[0, 0, 10] = (later[0, 0, 10] + 1) % 256
    assert differing(logits(classes=later)) == [*range(11, 19)]  # 1 + 1 + 2 + 4


@torch.no_grad()
def test_what_is_drawn_has_the_logits_of_the_training_pass():
    """From the same codes and samples; and both ways of drawing draw the same, all at once and window by window."""
    tokenizer, speaker = shake(make((2, 2))), torch.tensor([0, 2])
    tokens = torch.randint(16, (2, 10))
    sampling = SamplingConfig()
    noise = draw_noise(tokenizer.decoder, stream_keys(0, np.arange(2), np.zeros(2)), sampling, 40)
    drawn = sequential(tokenizer.start(tokens, speaker), (2, 1, 40), noise, sampling)
    for window in (None, 1, 7, 99):
        draft = torch.randint(256, (2, 1, 40))
        other = predictive(tokenizer.start(tokens, speaker), draft, noise, sampling, window)
        assert torch.equal(other.tokens, drawn.tokens)
        assert window != 1 or (other.passes == 40).all()
    told = tokenizer.context(tokenizer.quantizer.lookup(tokens[:, None]), speaker)
    scores = tokenizer.decoder(drawn.tokens, told)[:, 0] + noise
    assert torch.equal(scores.argmax(-1), drawn.tokens[:, 0])


def test_more_places_begin_with_the_noise_of_fewer():
    tokenizer, keys = make(), stream_keys(3, np.arange(2), np.zeros(2))
    few, many = (draw_noise(tokenizer.decoder, keys, SamplingConfig(), length) for length in (4, 9))
    assert many.shape == (2, 9, 256) and torch.equal(many[:, :4], few)
    assert torch.equal(draw_noise(tokenizer.decoder, keys, SamplingConfig()), few)  # its own: one token's samples


def test_it_learns_which_tone_is_heard_and_says_so_by_codes():
    """By one optimizer over encoder, codes and decoder."""
    tokenizer = make((4, 4), num_speakers=1, width=16).train()
    time = torch.arange(96) / 16
    tones = torch.stack([0.5 * torch.sin(2 * torch.pi * time * pitch) for pitch in (1, 4)])
    optimizer = make_optimizer(tokenizer, OptimizerConfig(kind="muon", learning_rate=0.01))
    speaker = torch.zeros(2, dtype=torch.int64)
    for _ in range(50):
        found = tokenizer(tones, speaker)
        loss = F.cross_entropy(found.logits.flatten(0, 1), found.classes.flatten())
        (loss + found.quantizer_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 2.5  # log 256 = 5.5 at first
    tokenizer.eval()
    low, high = tokenizer.encode(tones)
    assert not (low[2:-2] == high[2:-2]).any()


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs/sound.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    sounds = write_sounds(Path("runs/mine/data"), each=5)
    SoundCodec(make((2,) * 6, 2), sounds.rate, ["anna", "low"], {}).save(Path("runs/mine/sound"))
    Path("example.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    names = runpy.run_path("example.py")
    count = -(-sounds.num_samples(9) // 64)
    assert names["tokens"].shape == (1, count) and names["samples"].shape == (1, 64 * count)
