"""What does not fit together is refused: every field that differs is named, nothing is written, no model is touched."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch
from support.mismatch import CONFIG, NAMED, SPACES, refused

from worldvq.data.episodes import EpisodeStore
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import evaluate
from worldvq.files.differences import LONGEST, SHOWN, differences, join
from worldvq.files.weights import hash_module, load_module, save_module
from worldvq.models.config import DynamicsConfig, PriorConfig, TokenizerConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.imagine import imagine
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer
from worldvq.world.model import WorldModel


def test_a_dataset_and_a_config(made):
    new = made / "new"
    refused(made, lambda: train_tokenizer(CONFIG, made / "large", new), "large", "frame_size: the dataset has 32x32, ")


def test_a_dataset_and_a_tokenizer(made):
    words = ("large", "tokenizer", "frame_size: the dataset has 32x32, the tokenizer expects 16x16: take")
    refused(made, lambda: tokenize(made / "tokenizer", made / "large", made / "new"), *words)


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ("another seed", ["tokenizer_hash: the tokens have '"]),
        ("more codes", ["tokenizer_hash: the tokens have '", "num_codes: the tokens have 8, the tokenizer has 12"]),
        (
            "large tokenizer",
            [
                "tokenizer_hash: ",
                "grid: the tokens have 2x2, the tokenizer has 4x4",
                "frame_size: the tokens have 16x16",
            ],
        ),
    ],
)
def test_tokens_and_a_tokenizer(made, tokenizer, words):
    message = refused(
        made,
        lambda: train_dynamics(CONFIG, made / "tokens", made / tokenizer, made / "new", made / "new world"),
        *("was made by another tokenizer", *words),
    )
    assert message.count(", the tokenizer has ") == len(words)  # what differs, and nothing else


def test_tokens_and_a_store_of_tokens(made):
    """Tokens of another tokenizer are never added to a store."""
    words = (
        "was made otherwise",
        "tokenizer_hash: the token store has '",
        "num_codes: the token store has 8, you ask for 12",
    )
    refused(made, lambda: tokenize(made / "more codes", made / "data", made / "tokens"), *words)


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [("more codes", "num_codes: the tokenizer has 12"), ("large tokenizer", "grid: the tokenizer has 4x4")],
)
def test_a_tokenizer_and_a_dynamics(made, tokenizer, words):
    world, other = WorldModel.load(made / "world", "cpu"), load_tokenizer(made / tokenizer)
    hashed = hash_module(world.dynamics), hash_module(other)
    refused(made, lambda: WorldModel(other, world.dynamics, {}), words, ", the dynamics expects ")
    assert (hash_module(world.dynamics), hash_module(other)) == hashed


@pytest.mark.parametrize("data", ["large", *SPACES])
@pytest.mark.parametrize("command", ["evaluate", "imagine"])
def test_a_world_and_a_dataset(made, data, command):
    world = WorldModel.load(made / "world", "cpu")
    hashed = world.hash()
    uses = {
        "evaluate": lambda: evaluate(world, made / data, made / "new", EvaluateConfig(), progress=False),
        "imagine": lambda: imagine(made / "world", made / data, made / "new.mp4", 2, 2, "recorded", 1, 0, {}, "cpu"),
    }
    message = refused(made, uses[command], "does not fit the world", data)
    if data == "large":
        assert "frame_size: the dataset has 32x32, the world expects 16x16: take a dataset" in message
    else:
        theirs, ours = SPACES[data].to_json(), NAMED.to_json()
        for name in ours:
            assert (f"action_space.{name}: the dataset has" in message) == (theirs[name] != ours[name]), message
    assert world.hash() == hashed


@pytest.mark.parametrize("command", ["evaluate", "imagine"])
def test_a_world_and_its_dataset_with_another_split(made, tmp_path, command):
    """What is held out now was trained on."""
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    meta = EpisodeStore.open(data).meta
    EpisodeStore.create(data, meta.model_copy(update={"heldout_every": meta.heldout_every + 1})).close()
    world = WorldModel.load(made / "world", "cpu")
    uses = {
        "evaluate": lambda: evaluate(world, data, made / "new", EvaluateConfig(), progress=False),
        "imagine": lambda: imagine(made / "world", data, made / "new.mp4", 2, 2, "recorded", 1, 0, {}, "cpu"),
    }
    refused(made, uses[command], "holds out episodes that the world was trained on", "heldout_every: the dataset has")


def test_a_store_and_what_is_asked_of_it(made):
    with EpisodeStore.open(made / "data") as store:
        meta = store.meta
    asked = meta.model_copy(update={"seed": 5, "policy": "held 8", "frame_size": (8, 8)})
    words = ("seed: the dataset has 0, you ask for 5", "policy: the dataset has 'random', ", "you ask for 8x8")
    assert refused(made, lambda: EpisodeStore.create(made / "data", asked), *words).count(", you ask for ") == 3
    with TokenStore.open(made / "tokens") as tokens:
        other: TokenMeta = tokens.meta.model_copy(update={"grid": (4, 4), "tokenizer_hash": "0" * 64})
    refused(
        made,
        lambda: TokenStore.create(made / "tokens", other),
        "grid: the token store has 2x2, you ask for 4x4",
        "tokenizer_hash",
    )


def others(what: str) -> dict[str, torch.nn.Module]:
    """Modules that a file of CONFIG's does not fit."""
    if what == "tokenizer":
        config = CONFIG.tokenizer
        return {
            "width": Tokenizer(config.model_copy(update={"width": 16})),
            "codes": Tokenizer(config.model_copy(update={"quantizer": QuantizerConfig(num_codes=9, code_dim=4)})),
            "kind": Tokenizer(config.model_copy(update={"quantizer": QuantizerConfig(kind="fsq", levels=(4, 4))})),
            "type": Tokenizer(config).double(),
        }
    config, grid = CONFIG.dynamics, (2, 2)
    pixelcnn = PriorConfig(kind="pixelcnn", width=16, num_blocks=1)
    return {
        "blocks": Dynamics(config.model_copy(update={"num_blocks": 2}), grid, 8, NAMED),
        "prior": Dynamics(config.model_copy(update={"prior": pixelcnn}), grid, 8, NAMED),
        "grid": Dynamics(config, (4, 4), 8, NAMED),
        "vocabulary": Dynamics(config, grid, 9, NAMED),
        "actions": Dynamics(config, grid, 8, SPACES["several factors"]),
        "type": Dynamics(config, grid, 8, NAMED).bfloat16(),
    }


@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
def test_weights_and_a_module(made, what):
    """All names, shapes and types; checkpoints, whose hashes are right, no less than single files."""
    file = made / "world" / f"{what}.safetensors"
    checkpoints = Checkpoints(made / what / "checkpoints", 2)
    for name, module in others(what).items():
        before = {key: value.clone() for key, value in module.state_dict().items()}
        optimizer = make_optimizer(module, OptimizerConfig())
        load_newest = functools.partial(checkpoints.load_newest, module, optimizer)
        for use in (functools.partial(load_module, file, module), load_newest):
            message = refused(made, use, "does not fit this model: ")
            assert message.count(", the model has ") == min(SHOWN, different(file, module)), name
        assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
        assert not optimizer.state


def different(file: Path, module: torch.nn.Module) -> int:
    """How many tensors of a file and a module differ, counted by the safetensors library."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        there = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
    here = module.state_dict()
    return sum(
        name not in there
        or name not in here
        or (there[name].shape, there[name].dtype) != (here[name].shape, here[name].dtype)
        for name in {**there, **here}
    )


@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
def test_a_world_whose_description_and_weights_are_of_two_models(made, tmp_path, what):
    shutil.copytree(made / "world", tmp_path / "world")
    save_module(tmp_path / "world" / f"{what}.safetensors", next(iter(others(what).values())))
    refused(tmp_path, lambda: WorldModel.load(tmp_path / "world", "cpu"), f"{what}.safetensors does not fit")
    torch.manual_seed(5)  # the same sizes, other weights
    same = Tokenizer(CONFIG.tokenizer) if what == "tokenizer" else Dynamics(CONFIG.dynamics, (2, 2), 8, NAMED)
    save_module(tmp_path / "world" / f"{what}.safetensors", same)
    refused(tmp_path, lambda: WorldModel.load(tmp_path / "world", "cpu"), f"{what}.safetensors is damaged: its hash")


def test_differences_say_all_and_shorten_what_is_long():
    there = {"a": 1, "b": {"c": (1, 2), "d": None, "e": "x" * 500}, "f": True, "only": 1, "versions": {"torch": "1"}}
    here = {"a": 2, "b": {"c": [1, 2], "d": 0, "e": "y" * 500}, "f": 1, "versions": {"torch": "2"}}
    who = ("it had", "it has")
    lines = differences(there, here, who, ignore=("versions",))
    assert lines[0] == "a: it had 1, it has 2" and lines[1] == "b.d: it had nothing, it has 0"
    assert lines[2].startswith("b.e: it had 'xxx") and len(lines[2]) < 2 * LONGEST + 30
    assert lines[3:] == ["f: it had True, it has 1", "only: it had 1, it has nothing"]
    assert differences(there, there, who) == []
    sizes = ({"grid": (2, 3), "env": {"size": [64, 64]}}, {"grid": [2, 4], "env": {"size": 64}})
    assert differences(*sizes, who) == ["grid: it had 2x3, it has 2x4", "env.size: it had 64x64, it has 64"]
    assert join(["x"] * 30).endswith("; and 10 more")


def test_the_configs_of_models_are_as_the_models(made):
    """What the checks above compare is what was trained."""
    world = WorldModel.load(made / "world", "cpu")
    assert isinstance(world.dynamics.config, DynamicsConfig) and world.dynamics.config == CONFIG.dynamics
    assert isinstance(world.tokenizer.config, TokenizerConfig) and world.tokenizer.config == CONFIG.tokenizer
    assert world.action_space == NAMED
