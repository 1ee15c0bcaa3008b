"""An image prior, or a dynamics that starts from one, killed and started again: to the bit as if not."""

import json

import pytest
from support.episodes import SPACES, make_episode, write
from support.fault_tools import hashes
from support.tokenizers import make_tokenizer
from support.training import assert_same_run, finish, start, train_image_prior, train_world

from worldvq.config.env import EnvConfig
from worldvq.models.image_prior import ImagePrior
from worldvq.models.loading import save_tokenizer
from worldvq.stages.experiment import load_config
from worldvq.stages.tokens import tokenize
from worldvq.training.tracking import read_metrics
from worldvq.world.images import ImageModel

STEPS = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    save_tokenizer(root / "tokenizer", make_tokenizer())
    for seed, name in enumerate("ab"):
        episodes = [make_episode(10 * seed + number, size=(16, 16)) for number in range(4)]
        write(root / f"data_{name}", SPACES["discrete"], episodes, env=EnvConfig(id=name, size=(16, 16)))
        tokenize(root / "tokenizer", root / f"data_{name}", root / name, "cpu")
    return root


def run(root, out, count, kill_at=None):
    """Train with some processes; the exit codes."""
    return finish(start(count, out.with_suffix(".x"), train_image_prior, str(root), str(out), STEPS, kill_at))


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_prior_continues_to_the_same_bits(root, tmp_path, count):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(root, whole, count) == [0] * count
    assert any(run(root, out, count, kill_at=6))  # the fifth step, after two checkpoints
    assert not (out / "prior.json").exists()
    assert run(root, out, count) == [0] * count, (tmp_path / "out.0.log").read_text()
    last = f"checkpoints/step_{STEPS:08d}"
    assert hashes(out / last) == hashes(whole / last)
    for name in ("prior.json", "prior.safetensors", "tokenizer.safetensors", f"pictures/{STEPS:08d}.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    losses = [[row["heldout_loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (out, whole)]
    assert losses[0] == losses[1] and losses[0]
    assert ImageModel.load(out, "cpu").classes == ("a", "b")


def test_a_killed_dynamics_that_starts_from_a_prior_continues_to_the_same_bits(root, tmp_path):
    tokenizer, config = make_tokenizer(), load_config("tiny").prior
    ImageModel(tokenizer, ImagePrior(config, tokenizer.grid, tokenizer.num_codes, 1), ["a"], {}).save(
        tmp_path / "prior"
    )

    def run(folder, kill_at=None, more=None):
        made = str(root / "a"), str(root / "tokenizer"), str(folder)
        return finish(start(1, folder.with_suffix(".x"), train_world, *made, STEPS, kill_at, more))

    whole, out, unlike, more = tmp_path / "whole", tmp_path / "out", tmp_path / "unlike", {"start": tmp_path / "prior"}
    assert run(whole, more=more) == [0], (tmp_path / "whole.0.log").read_text()
    assert run(out, 5, more) == [-9]  # in the sixth step, after two checkpoints
    assert not (out / "world").exists()
    assert run(out, more=more) == [0], (tmp_path / "out.0.log").read_text()
    assert_same_run(out, whole, STEPS, resumed_at=4)
    assert hashes(out / "world") == hashes(whole / "world")
    started = [json.loads((folder / "inputs.json").read_text())["start"] for folder in (out, whole)]
    assert started[0] == started[1] and started[0]
    assert run(unlike) == [0]  # and the prior makes a difference
    assert hashes(unlike / "world") != hashes(whole / "world")
