"""A codec of sound, and a prior over its codes, whose training is killed and started again: to the bit as if not."""

import pytest
from support.fault_tools import hashes
from support.sounds import PITCHES, RATE, write_sounds
from support.training import finish, start, train_sound

from worldvq.models.sound import SoundTokenizer
from worldvq.stages.experiment import load_config
from worldvq.training.tracking import read_metrics
from worldvq.world.codec import SoundCodec
from worldvq.world.sound_model import SoundModel

STEPS = 7


@pytest.mark.parametrize("what", ["sound", "sound_prior"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path, what):
    write_sounds(tmp_path / "sounds")
    whole, out, codec = tmp_path / "whole", tmp_path / "out", None
    if what == "sound_prior":
        codec = str(tmp_path / "codec")
        SoundCodec(SoundTokenizer(load_config("tiny").sound, 2, RATE), RATE, list(PITCHES), {}).save(tmp_path / "codec")

    def run(folder, kill_at=None):
        return finish(
            start(1, folder.with_suffix(".x"), train_sound, str(tmp_path), str(folder), STEPS, kill_at, codec)
        )

    assert run(whole) == [0], (tmp_path / "whole.0.log").read_text()
    assert run(out, 13) == [-9]  # between two checkpoints; held-out batches count too
    assert not (out / f"{what}.json").exists()
    assert run(out) == [0], (tmp_path / "out.0.log").read_text()
    last = f"checkpoints/step_{STEPS:08d}"
    assert hashes(out / last) == hashes(whole / last)
    for name in (f"{what}.json", f"{what}.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    rows = [
        [(row["step"], row["loss"], row["heldout_loss"]) for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (out, whole)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS
    loaded = SoundCodec.load(out, "cpu") if what == "sound" else SoundModel.load(out, "cpu").codec
    assert loaded.speakers == list(PITCHES)
