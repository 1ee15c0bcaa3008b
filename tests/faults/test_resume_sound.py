"""A codec of sound whose training is killed and started again equals one that was not, to the bit."""

from support.fault_tools import hashes
from support.sounds import PITCHES, write_sounds
from support.training import finish, start, train_sound

from worldvq.training.tracking import read_metrics
from worldvq.world.codec import SoundCodec

STEPS = 7


def test_a_killed_codec_continues_to_the_same_bits(tmp_path):
    write_sounds(tmp_path / "sounds")
    whole, out = tmp_path / "whole", tmp_path / "out"

    def run(folder, kill_at=None):
        return finish(start(1, folder.with_suffix(".x"), train_sound, str(tmp_path), str(folder), STEPS, kill_at))

    assert run(whole) == [0]
    assert run(out, 13) == [-9]  # between two checkpoints; held-out batches count too
    assert not (out / "sound.json").exists()
    assert run(out) == [0], (tmp_path / "out.0.log").read_text()
    last = f"checkpoints/step_{STEPS:08d}"
    assert hashes(out / last) == hashes(whole / last)
    for name in ("sound.json", "sound.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    rows = [
        [(row["step"], row["loss"], row["heldout_loss"]) for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (out, whole)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS
    assert SoundCodec.load(out, "cpu").speakers == list(PITCHES)
