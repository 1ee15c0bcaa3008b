"""A codec, its prior and a dynamics that hears, each killed and started again: to the bit as if not."""

import pytest
from support.episodes import SPACES, make_episode, write
from support.fault_tools import hashes
from support.heard import RATE as HEARD_RATE
from support.heard import SAMPLES, TOKENS, make_codec
from support.sounds import PITCHES, RATE, write_sounds
from support.tokenizers import make_tokenizer
from support.training import assert_same_run, finish, start, train_sound, train_world

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.models.loading import save_tokenizer
from worldvq.models.sound import SoundTokenizer
from worldvq.stages.experiment import load_config
from worldvq.stages.tokens import tokenize
from worldvq.world.codec import SoundCodec
from worldvq.world.model import WorldModel
from worldvq.world.sound_model import SoundModel

STEPS = 7


def write_heard(path, rate, samples):
    """Make a dataset of some episodes with sound."""
    episodes = [make_episode(number, 12 + number, size=(16, 16), samples=samples) for number in range(4)]
    env, sound = EnvConfig(id="Toy-v0", size=(16, 16)), SoundFormat(rate=rate, samples=samples)
    write(path, SPACES["discrete"], episodes, env=env, sound=sound)


@pytest.mark.parametrize("what", ["sound", "sound of a dataset", "sound_prior"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path, what):
    heard = what == "sound of a dataset"
    if heard:
        write_heard(tmp_path / "sounds", RATE, load_config("tiny").sound.hop)
    else:
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
    made = "sound_prior" if codec else "sound"
    assert not (out / f"{made}.json").exists()
    assert run(out) == [0], (tmp_path / "out.0.log").read_text()
    assert_same_run(out, whole, STEPS, resumed_at=4 if codec else 2)
    for name in (f"{made}.json", f"{made}.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    loaded = SoundModel.load(out, "cpu").codec if codec else SoundCodec.load(out, "cpu")
    assert loaded.speakers == (["Toy-v0"] if heard else list(PITCHES))


def test_a_killed_dynamics_that_hears_continues_to_the_same_bits(tmp_path):
    write_heard(tmp_path / "data", HEARD_RATE, SAMPLES)
    save_tokenizer(tmp_path / "tokenizer", make_tokenizer())
    make_codec().save(tmp_path / "sound")
    tokenize(tmp_path / "tokenizer", tmp_path / "data", tmp_path / "tokens", "cpu", tmp_path / "sound")
    whole, out = tmp_path / "whole", tmp_path / "out"

    def run(folder, kill_at=None):
        made = str(tmp_path / "tokens"), str(tmp_path / "tokenizer"), str(folder)
        more = {"sound": str(tmp_path / "sound")}
        return finish(start(1, folder.with_suffix(".x"), train_world, *made, STEPS, kill_at, more))

    assert run(whole) == [0], (tmp_path / "whole.0.log").read_text()
    assert run(out, 5) == [-9]  # in the sixth step, after two checkpoints
    assert not (out / "world").exists()
    assert run(out) == [0], (tmp_path / "out.0.log").read_text()
    assert_same_run(out, whole, STEPS, resumed_at=4)
    assert hashes(out / "world") == hashes(whole / "world")
    assert (out / f"pictures/{STEPS:08d}.png").read_bytes() == (whole / f"pictures/{STEPS:08d}.png").read_bytes()
    layout = WorldModel.load(out / "world", "cpu").dynamics.layout
    assert layout.sound is not None and layout.sound.num_tokens == TOKENS
