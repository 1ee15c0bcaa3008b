"""``worldvq data import sounds`` and ``worldvq train sound``: a tiny road, and every mistake in one line."""

import numpy as np
import pytest
from support.command_line import check_error, run, succeed
from support.sounds import PITCHES, RATE, tone

from worldvq.data.sounds import SoundMeta, SoundStore
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
    assert (root / "sound" / "pictures" / "00000003.png").is_file()
    line = ["--config", "tiny", "--device", "cpu", "--codec", root / "sound", "--data", root / "data"]
    succeed("train", "sound-prior", *line, "--out", root / "prior", "--steps", 2)
    meta = SoundMeta(source="speech", rate=RATE, heldout_every=2)
    with SoundStore.create(root / "spoken", meta) as store:
        for number in range(8):
            speaker = list(PITCHES)[number % 4 // 2]
            phones = [["a", 300], ["b", 600]]
            store.commit(number, tone(PITCHES[speaker], 600), {"label": speaker, "segments": phones})
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


def test_the_systems_write_files_and_say_numbers(here):
    line = ["--codec", "sound", "--data", "data", "--count", 2, "--seconds", 0.03]
    said = succeed("sound", "reconstruct", *line, "--out", "again")
    assert "2 held-out sounds of 0.0 s: 625 bits a second" in said and "with the codes of another sound" in said
    names = {path.name for path in (here / "again").iterdir()}
    kinds = ("real", "from_its_codes", "from_other_codes")
    files = {f"{n}_{who}_{kind}.wav" for n, who in enumerate(("high", "low")) for kind in kinds}
    assert names == files | {"spectrograms.png"}
    samples, rate = soundfile.read(here / "again" / "0_high_real.wav", dtype="int16")
    assert (len(samples), rate) == (256, RATE)
    said = succeed("sound", "convert", *line, "--out", "other", "--speaker", "low")
    assert "(chance 50 %)" in said and "high to low:" in said and "low to high:" not in said
    assert (here / "other" / "0_high_as_low.wav").is_file()
    said = succeed("sound", "sample", "--prior", "prior", "--out", "drawn", "--seconds", 0.02, "--count", 2)
    assert "4 samples of 0.0 s" in said and len(list((here / "drawn").iterdir())) == 5


def test_phonemes_say_what_codes_and_clusters_are_worth(here):
    said = succeed("sound", "phonemes", "--codec", "sound", "--data", "spoken")
    shares = [float(line.split()[-2]) for line in said.splitlines() if line.startswith("  ")]
    assert "4 held-out sounds, 40 tokens, 2 phones" in said and len(shares) == 4
    assert shares[2:] == [50, 50] and all(0 <= share <= 100 for share in shares)


TRAIN = "train sound --config tiny --out new"
MISTAKES = [
    (f"{TRAIN} --data wavs", ["wavs: holds no store of sounds", "data import sounds"]),
    (f"{TRAIN} --data none", ["none: no such store of sounds"]),
    (f"{TRAIN} --data data sound_training.crop_samples=100", ["crop_samples 100", "64 samples", "set it to 128"]),
    (f"{TRAIN} --data data sound.hop=3", ["sound.hop", "unknown"]),
    ("train sound --config tiny --data data --out sound --steps 9 sound.width=8", ["sound.width"]),
    ("sound phonemes --codec sound --data data", ["data does not say which phones are spoken", "worldvq data speech"]),
    ("sound convert --codec sound --data data --out new --speaker hig", ["no speaker 'hig' (did you mean 'high'?)"]),
    ("sound convert --codec sound --data data --out new --seconds 5", ["no held-out sound of 5 s", "--seconds"]),
    ("sound reconstruct --codec data --data data --out new", ["no trained codec of sound in data"]),
    ("sound sample --prior sound --out new", ["no prior over codes of sound in sound", "train sound-prior"]),
    ("data import sounds data --out new", ["data holds no sounds", ".wav, .flac"]),
    ("data import sounds wavs --out sound", ["sound holds other files"]),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(here, line, words):
    check_error(run(*line.split()), 2, words)
    assert not (here / "new").exists()
