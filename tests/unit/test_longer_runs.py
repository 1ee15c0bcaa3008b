"""Runs that go on with more steps and other settings, and new ones from the weights of another."""

import json
import shutil

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from support.episodes import write
from support.fault_tools import hashes

from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.weights import hash_module
from worldvq.models.loading import load_tokenizer
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import DynamicsSections, ExperimentConfig, TokenizerSections, load_config, override
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import FREE, TrainConfig
from worldvq.types import ActionSpace, Episode
from worldvq.world.model import WorldModel

CONFIG = load_config(
    "tiny",
    [
        "env.size=[16,16]",
        "tokenizer={width: 8, encoder_blocks: 0, decoder_blocks: 0, quantizer: {num_codes: 8, code_dim: 4}}",
        "tokenizer_training={steps: 2, batch_size: 4, log_every: 1, optimizer: {decay_fraction: 0.01}}",
        "dynamics={context_frames: 2, width: 16, num_blocks: 1, num_heads: 2, "
        "prior: {width: 16, num_blocks: 1, num_heads: 2}}",
        "dynamics_training={steps: 2, batch_size: 2, clip_frames: 4, log_every: 1, optimizer: {decay_fraction: 0.01}}",
        "evaluate={clips: 4, context: 2, horizon: 2}",
    ],
)
"""The rate of learning is the same until the last step, whatever the number of steps."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("longer") / "data", np.random.default_rng(0)
    episodes = []
    for _ in range(4):
        frames = rng.integers(0, 256, (9, 16, 16, 3), np.uint8)
        episodes.append(Episode(frames, rng.integers(0, 3, 8), np.zeros(8, np.float32), True, False))
    write(folder, ActionSpace("discrete", (3,)), episodes)
    return folder


def train(what, data, root, start=None, name=None, **changes):
    """Train a tokenizer, or dynamics on what the tokenizer in ``root`` makes of the data; returns the model."""
    config = override(CONFIG, {f"{what}_training.{key}": value for key, value in changes.items()})
    out = root / (name or what)
    if what == "tokenizer":
        return train_tokenizer(config, data, out, start=start)
    if not (root / "tokens").is_dir():
        train("tokenizer", data, root)
        tokenize(root / "tokenizer", data, root / "tokens", "cpu")
    return train_dynamics(config, root / "tokens", root / "tokenizer", out, root / "world", start=start).dynamics


def logged(path):
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
def test_a_run_that_is_done_goes_on_with_more_steps_to_the_same_bits(data, tmp_path, what, capsys):
    whole = train(what, data, tmp_path, steps=5, name="whole")
    train(what, data, tmp_path, steps=3, save_every=2)
    capsys.readouterr()
    longer = train(what, data, tmp_path, steps=5, save_every=1, keep_checkpoints=4)
    assert hash_module(longer) == hash_module(whole)
    assert logged(tmp_path / what) == [1, 2, 3, 4, 5]
    assert Checkpoints(tmp_path / what / "checkpoints", 2).steps() == [2, 3, 4, 5]
    said = capsys.readouterr().out
    assert f"{what} goes on from step 3 with other settings: {what}_training.steps: it had 3, it has 5; " in said
    assert said.count("it has ") == 3 and "resuming at step 3, 5 steps" in said
    train(what, data, tmp_path, steps=5, save_every=1, keep_checkpoints=4)
    assert "other settings" not in capsys.readouterr().out  # the folder says what it was trained with at last


def test_a_run_goes_on_with_more_passes_and_another_precision(data, tmp_path):
    train("tokenizer", data, tmp_path)
    train("tokenizer", data, tmp_path, steps=4, accumulate=2, precision="bf16")
    assert logged(tmp_path / "tokenizer") == [1, 2, 3, 4]


def test_fewer_steps_than_there_are_is_refused(data, tmp_path):
    train("tokenizer", data, tmp_path, steps=3)
    before = hashes(tmp_path)
    with pytest.raises(UsageError, match=r"of 3 steps, tokenizer_training.steps asks for 2: give as many or more"):
        train("tokenizer", data, tmp_path, steps=2)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
@pytest.mark.parametrize("kind", ["run", "world"])
def test_a_run_starts_from_the_weights_of_another(data, tmp_path, what, kind):
    first = train(what, data, tmp_path)
    if kind == "world" and what == "tokenizer":
        train("dynamics", data, tmp_path)
    start = tmp_path / ("world" if kind == "world" else what)
    begun = hash_module(first)
    # At a rate of nothing, 0 in fp32, the weights stay what they were; the codebook of a tokenizer learns all the same.
    still = {"optimizer.learning_rate": 1e-60, "optimizer.weight_decay": 0.0, "steps": 1}
    second = train(what, data, tmp_path, start, "second", **still)
    fresh = train(what, data, tmp_path, None, "fresh", **still)
    weights, state = dict(second.named_parameters()), dict(first.named_parameters())
    same = [torch.equal(weights[name], state[name]) for name in weights if "codebook" not in name]
    assert all(same) and not all(torch.equal(p, state[name]) for name, p in fresh.named_parameters())
    assert json.loads((tmp_path / "second" / "inputs.json").read_text())["start"] == begun


def test_weights_that_learned_the_tokens_of_another_tokenizer_are_named(data, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    train("dynamics", data, one)
    for start in (one / "world", one / "dynamics"):
        train("dynamics", data, one, start, f"again_{start.name}")
    assert "warning" not in capsys.readouterr().out
    train("tokenizer", data, two, seed=4)
    tokenize(two / "tokenizer", data, two / "tokens", "cpu")
    for start in (one / "world", one / "dynamics"):
        train("dynamics", data, two, start, f"from_{start.name}")
        said = f"warning: --from {start} learned the tokens of another tokenizer, in which codes mean other things"
        assert said in capsys.readouterr().out


def test_where_a_run_started_is_compared_until_it_has_a_checkpoint(data, tmp_path):
    train("tokenizer", data, tmp_path)
    train("tokenizer", data, tmp_path, name="other", seed=4)
    start = tmp_path / "tokenizer"
    done = train("tokenizer", data, tmp_path, start, "second", steps=1)
    with pytest.raises(UsageError, match=r"start: that run had '\w+[^']*', this one has '"):
        train("tokenizer", data, tmp_path, tmp_path / "other", "second", steps=2)
    again = train("tokenizer", data, tmp_path, None, "second", steps=1)  # its own checkpoint knows
    assert hash_module(again) == hash_module(done)
    shutil.rmtree(tmp_path / "second" / "checkpoints")
    with pytest.raises(UsageError, match=r"start: that run had '.*', this one has nothing"):
        train("tokenizer", data, tmp_path, None, "second", steps=1)


def test_what_a_run_cannot_start_from_is_named(data, tmp_path):
    train("dynamics", data, tmp_path)
    wide = override(CONFIG, {"tokenizer.width": 16})
    with pytest.raises(CorruptFileError, match=r"tokenizer does not fit this model: .*: give the config that it was"):
        train_tokenizer(wide, data, tmp_path / "wide", start=tmp_path / "tokenizer")
    with pytest.raises(UsageError, match=r"no trained tokenizer in .*dynamics"):
        train("tokenizer", data, tmp_path, tmp_path / "dynamics", "new")
    for nothing in (tmp_path / "tokens", tmp_path / "absent"):
        with pytest.raises(UsageError, match=f"{nothing.name} has no checkpoint of a dynamics model, and is no world"):
            train("dynamics", data, tmp_path, nothing, "new")
    with pytest.raises(CorruptFileError, match="does not fit this model"):
        train("dynamics", data, tmp_path, tmp_path / "tokenizer", "new")
    assert not (tmp_path / "new").exists() and not (tmp_path / "wide").exists()
    assert load_tokenizer(tmp_path / "tokenizer") and WorldModel.load(tmp_path / "world", "cpu")


def test_settings_that_may_change_are_those_of_the_training_alone():
    """They are looked for by name, wherever they stand."""

    def keys(model: type[BaseModel]):
        for name, field in model.model_fields.items():
            yield name
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, TrainConfig):
                    yield from keys(kind)

    assert set(FREE) <= TrainConfig.model_fields.keys()
    assert not set(FREE) & {*keys(TokenizerSections), *keys(DynamicsSections)}
    assert {"width", "num_codes", "prior"} <= {*keys(ExperimentConfig)}
