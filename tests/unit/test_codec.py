"""The codec of sound and the prior over its codes: what is saved is loaded, rows are their own, damage is refused."""

import json

import numpy as np
import pytest
import torch
from support.sounds import tone
from torch import nn

from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.reading import read_sealed, seal
from worldvq.models.config import SamplingConfig
from worldvq.models.sampling import draw_noise, sequential
from worldvq.models.sound import SoundTokenizer
from worldvq.models.sound_prior import SoundPrior
from worldvq.nn.mulaw import expand
from worldvq.nn.noise import stream_keys
from worldvq.stages.experiment import load_config
from worldvq.world import codec as module
from worldvq.world.codec import SoundCodec
from worldvq.world.sound_model import SoundModel


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    model = SoundTokenizer(load_config("tiny").sound, 2, 8000)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return SoundCodec(model, 8000, ["a", "b"], {"data": {"episodes": 1}})


def test_what_is_loaded_is_what_was_saved(codec, tmp_path):
    codec.save(tmp_path)
    loaded = SoundCodec.load(tmp_path, "cpu")
    assert (loaded.rate, loaded.speakers, loaded.meta, loaded.hop) == (8000, ["a", "b"], codec.meta, 64)
    samples = np.stack([tone(440, 300), tone(330, 300)])
    tokens = codec.encode(samples)
    assert tokens.shape == (2, 5)  # the last one begins with the last 44 samples
    assert torch.equal(loaded.encode(samples), tokens)
    np.testing.assert_array_equal(loaded.decode(tokens, [0, 1]), codec.decode(tokens, [0, 1]))


def test_a_row_depends_on_itself_alone(codec):
    tokens = codec.encode(np.stack([tone(440, 128), tone(330, 128), tone(220, 128)]))
    whole = codec.decode(tokens, [0, 1, 0], seed=3)
    assert whole.shape == (3, 128) and whole.dtype == np.int16
    for row in range(3):
        alone = codec.decode(tokens[row : row + 1], [[0, 1, 0][row]], seed=3, row_seeds=[row])
        np.testing.assert_array_equal(alone[0], whole[row])
    assert (codec.decode(tokens, [0, 1, 0], seed=4) != whole).any()
    assert (codec.decode(tokens, [1, 1, 0], seed=3)[0] != whole[0]).any()


def test_noise_in_parts_is_ancestral_sampling_all_the_same(codec, monkeypatch):
    tokens, speaker = codec.encode(tone(440, 128)[None]), torch.tensor([1])
    first = draw_noise(codec.tokenizer.decoder, stream_keys(0, np.zeros(1), np.zeros(1)), SamplingConfig(), 96)
    second = draw_noise(codec.tokenizer.decoder, stream_keys(0, np.zeros(1), np.ones(1)), SamplingConfig(), 32)
    noise = torch.cat([first, second], 1)  # type: ignore[list-item]
    drawn = sequential(codec.tokenizer.start(tokens, speaker), (1, 1, 128), noise, SamplingConfig())
    monkeypatch.setattr(module, "PART", 96)
    expected = (expand(drawn.tokens[0, 0]) * 2**15).round().clamp(max=2**15 - 1).to(torch.int16).numpy()
    np.testing.assert_array_equal(codec.decode(tokens, speaker)[0], expected)


def test_speakers_go_by_name(codec):
    assert codec.speaker("b") == 1
    with pytest.raises(UsageError, match="no speaker 'bb' \\(did you mean 'b'\\?\\): a, b"):
        codec.speaker("bb")


def change(path, **values):
    path.write_bytes(seal({**read_sealed(path), **values}))


@pytest.mark.parametrize(
    ("wreck", "error", "words"),
    [
        (lambda out: (out / "sound.json").unlink(), UsageError, "no trained codec of sound in"),
        (lambda out: (out / "sound.safetensors").unlink(), UsageError, "no such file"),
        (lambda out: change(out / "sound.json", format_version=9), UsageError, "format 9.*reads format 1"),
        (lambda out: change(out / "sound.json", speakers=[]), CorruptFileError, "sound.json is damaged"),
        (lambda out: change(out / "sound.json", rate="no"), CorruptFileError, "sound.json is damaged"),
        (lambda out: change(out / "sound.json", speakers=["a"]), CorruptFileError, "speaker.weight"),
        (lambda out: change(out / "sound.json", sound_hash="0"), CorruptFileError, "safetensors is damaged"),
        (lambda out: change(out / "sound.json", sound={"width": -1}), CorruptFileError, "width = -1"),
        (lambda out: (out / "sound.json").write_text(json.dumps({"a": 1})), UsageError, "format None"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(codec, tmp_path, wreck, error, words):
    codec.save(tmp_path)
    wreck(tmp_path)
    with pytest.raises(error, match=words) as caught:
        SoundCodec.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def drawing(codec):
    prior = SoundPrior(load_config("tiny").sound_prior, 32, 2)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return SoundModel(codec, prior, {})


def test_a_sample_depends_on_its_speaker_and_its_place_alone(drawing, tmp_path):
    drawing.save(tmp_path)
    loaded = SoundModel.load(tmp_path, "cpu")
    tokens, sound = drawing.sample(np.array([0, 1, 1]), 0.04)
    assert tokens.shape == (3, 5) and sound.shape == (3, 320)
    again, two = loaded.sample(np.array([0, 1]), 0.04)
    assert torch.equal(again, tokens[:2])
    np.testing.assert_array_equal(two, sound[:2])
    assert (tokens[1] != tokens[2]).any()
    with torch.no_grad():
        said = drawing.prior(tokens[:1].expand(2, -1), torch.tensor([0, 1]))
    assert (said[0] - said[1]).abs().max() > 0.01  # who speaks is looked at


def test_codes_are_drawn_as_the_prior_says(drawing):
    """Of many rows the first two codes are as frequent as the pass over whole rows says that they are."""
    count = 4000
    rows = drawing.prior.draw(torch.zeros(count, dtype=torch.int64), 2, 0, np.arange(count), SamplingConfig())
    with torch.no_grad():
        first = drawing.prior(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))[0, 0].softmax(-1)
    found = torch.bincount(rows[:, 0], minlength=32) / count
    assert (found - first).abs().max() < 5 * (0.25 / count) ** 0.5


def test_a_prior_beside_another_codec_is_refused(drawing, tmp_path):
    drawing.save(tmp_path)
    other = SoundTokenizer(load_config("tiny").sound, 2, 8000)
    SoundCodec(other, 8000, ["a", "b"], {}).save(tmp_path)
    with pytest.raises(CorruptFileError, match="or the codec beside it is damaged"):
        SoundModel.load(tmp_path, "cpu")
    (tmp_path / "sound_prior.json").unlink()
    with pytest.raises(UsageError, match="no prior over codes of sound"):
        SoundModel.load(tmp_path, "cpu")
