"""The codec of sound: what is saved is what is loaded, rows are their own, and what is damaged is refused."""

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
from worldvq.nn.mulaw import expand
from worldvq.nn.noise import stream_keys
from worldvq.stages.experiment import load_config
from worldvq.world import codec as module
from worldvq.world.codec import SoundCodec


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    model = SoundTokenizer(load_config("tiny").sound, 2)
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
