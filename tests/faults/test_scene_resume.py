"""Scene codes whose training is killed and started again equal those of a run that was not, to the bit."""

from support.episodes import SPACES, make_episode, write
from support.fault_tools import hashes
from support.tokenizers import make_tokenizer
from support.training import assert_same_run, finish, start, train_scene

from worldvq.models.loading import save_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.tracking import read_metrics
from worldvq.world.scenes import Scenes

STEPS = 7


def test_a_killed_run_continues_to_the_same_bits(tmp_path):
    write(tmp_path / "data", SPACES["discrete"], [make_episode(n, 12 + n, size=(16, 16)) for n in range(4)])
    save_tokenizer(tmp_path / "tokenizer", make_tokenizer())
    tokenize(tmp_path / "tokenizer", tmp_path / "data", tmp_path / "tokens", "cpu")

    def run(folder, kill_at=None):
        made = str(tmp_path / "tokens"), str(tmp_path / "tokenizer"), str(folder)
        return finish(start(1, folder.with_suffix(".x"), train_scene, *made, STEPS, kill_at))

    whole = tmp_path / "whole"
    assert run(whole) == [0], (tmp_path / "whole.0.log").read_text()
    for kill_at, logged, resumed_at in ((2, 1, 0), (6, 5, 4)):  # before there is a checkpoint; between two
        out = tmp_path / str(kill_at)
        assert run(out, kill_at) == [-9]
        assert len(read_metrics(out / "metrics.jsonl")) == logged and not (out / "scene.safetensors").exists()
        assert run(out) == [0], (tmp_path / f"{kill_at}.0.log").read_text()
        assert_same_run(out, whole, STEPS, resumed_at)
        assert {"nats_per_token", "perplexity"} <= read_metrics(out / "metrics.jsonl")[-1].keys()
        for name in ("scene.json", "scene.safetensors", "tokenizer.safetensors", f"pictures/{STEPS:08d}.png", "random"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert Scenes.load(out, "cpu").num_codes_per_frame == 3
    before, last = (hashes(whole / f"checkpoints/step_{step:08d}") for step in (STEPS - 1, STEPS))
    assert all(before[name] != digest for name, digest in last.items())  # every step changes the bits
