"""``worldvq data import sounds`` and ``worldvq train sound``: a tiny road, and every mistake in one line."""

import numpy as np
import pytest
from support.command_line import check_error, run, succeed
from support.sounds import PITCHES, RATE, tone

from worldvq.world.codec import SoundCodec

soundfile = pytest.importorskip("soundfile")
TINY = ["--config", "tiny", "--device", "cpu", "sound_training.batch_size=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of sounds, the store of them, and a codec."""
    root = tmp_path_factory.mktemp("root")
    for speaker, pitch in PITCHES.items():
        (root / "wavs" / speaker).mkdir(parents=True)
        for number in range(4):
            soundfile.write(root / "wavs" / speaker / f"{number}.wav", tone(pitch, 700 + number), RATE, "PCM_16")
    said = succeed(
        *["data", "import", "sounds", root / "wavs", "--out", root / "data", "--rate", RATE, "--heldout-every", 4]
    )
    assert "8 sounds of 2 speakers, 1 s at 8,000 samples a second, 2 held out" in said
    said = succeed("train", "sound", "--data", root / "data", "--out", root / "sound", "--steps", 3, *TINY)
    assert "codec of sound, 125 tokens a second of 32 codes, 2 speakers" in said
    return root


def test_the_codec_speaks_and_training_again_changes_nothing(here):
    codec = SoundCodec.load(here / "sound", "cpu")
    assert (codec.rate, codec.speakers) == (RATE, ["high", "low"])
    drawn = codec.decode(codec.encode(tone(440, 128)[None]), [0])
    assert drawn.shape == (1, 128) and np.abs(drawn).max() > 0
    before = (here / "sound" / "sound.safetensors").stat().st_mtime_ns
    succeed("train", "sound", "--data", "data", "--out", "sound", "--steps", 3, *TINY)
    assert SoundCodec.load(here / "sound", "cpu").speakers == codec.speakers
    assert before <= (here / "sound" / "sound.safetensors").stat().st_mtime_ns
    assert "all as committed" in succeed("data", "verify", "data") and "high, low" in succeed("data", "info", "data")


TRAIN = "train sound --config tiny --out new"
MISTAKES = [
    (f"{TRAIN} --data wavs", ["wavs: holds no store of sounds", "data import sounds"]),
    (f"{TRAIN} --data none", ["none: no such store of sounds"]),
    (f"{TRAIN} --data data sound_training.crop_samples=100", ["crop_samples 100", "64 samples", "set it to 128"]),
    (f"{TRAIN} --data data sound.hop=3", ["sound.hop", "unknown"]),
    ("train sound --config tiny --data data --out sound --steps 9 sound.width=8", ["sound.width"]),
    ("data import sounds data --out new", ["data holds no sounds", ".wav, .flac"]),
    ("data import sounds wavs --out sound", ["sound holds other files"]),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(here, line, words):
    check_error(run(*line.split()), 2, words)
    assert not (here / "new").exists()
