"""What does not fit together is refused: every field that differs is named, nothing is written, no model is touched."""

from __future__ import annotations

import copy
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.episodes import write
from support.fault_tools import hashes

from worldvq.config.env import EnvConfig
from worldvq.config.yaml_loading import dump_yaml, read_yaml
from worldvq.data.episodes import EpisodeStore
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import CorruptFileError, UsageError
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import evaluate
from worldvq.files.differences import LONGEST, SHOWN, differences, join
from worldvq.files.weights import hash_module, load_module, save_module
from worldvq.models.config import DynamicsConfig, PriorConfig, TokenizerConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import load_tokenizer, save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import DynamicsSections, ExperimentConfig, defaults, load_config
from worldvq.stages.imagine import imagine
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig
from worldvq.training.identity import begin_run
from worldvq.training.optimizers import make_optimizer
from worldvq.types import ActionSpace, Episode
from worldvq.world.model import WorldModel

NAMED = ActionSpace("discrete", (4,), names=("noop", "forward", "left", "right"))
SPACES = {
    "fewer choices": ActionSpace("discrete", (3,), names=("noop", "forward", "left")),
    "other names": ActionSpace("discrete", (4,), names=("noop", "forward", "right", "left")),
    "several factors": ActionSpace("multi_discrete", (4, 2)),
    "a box": ActionSpace("box", low=(-1.0,), high=(1.0,)),
}
CONFIG = load_config(
    "tiny",
    [
        "env.size=[16,16]",
        "tokenizer={frame_size: [16, 16], width: 8, encoder_blocks: 0, decoder_blocks: 0, "
        "quantizer: {num_codes: 8, code_dim: 4}}",
        "tokenizer_training={steps: 2, batch_size: 4}",
        "dynamics={context_frames: 2, width: 16, num_blocks: 1, num_heads: 2, "
        "prior: {width: 16, num_blocks: 1, num_heads: 2}}",
        "dynamics_training={steps: 2, batch_size: 2, clip_frames: 4}",
        "evaluate={clips: 4, context: 2, horizon: 2}",
    ],
)


def make_data(folder: Path, space: ActionSpace = NAMED, side: int = 16, **changes) -> Path:
    rng, episodes = np.random.default_rng(0), []
    for _ in range(4):
        actions = rng.integers(0, 2, (8, *space.shape)).astype(space.dtype)
        frames = rng.integers(0, 256, (9, side, side, 3), np.uint8)
        episodes.append(Episode(frames, actions, np.zeros(8, np.float32), terminated=True, truncated=False))
    write(folder, space, episodes, **{"env": EnvConfig(size=(side, side)), **changes})
    return folder


def change(config, **sections):
    """A config with other values in its sections."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, a tokenizer, its tokens, dynamics and a world that fit each other; and some that don't."""
    root = tmp_path_factory.mktemp("mismatch")
    make_data(root / "data")
    train_tokenizer(CONFIG, root / "data", root / "tokenizer")
    tokenize(root / "tokenizer", root / "data", root / "tokens", "cpu")
    train_dynamics(CONFIG, root / "tokens", root / "tokenizer", root / "dynamics", root / "world")
    make_data(root / "large", side=32)
    for name, space in SPACES.items():
        make_data(root / name, space)
        tokenize(root / "tokenizer", root / name, root / f"tokens of {name}", "cpu")
    quantizers = {"another seed": {}, "more codes": {"num_codes": 12}}
    for name, quantizer in quantizers.items():
        torch.manual_seed(9)
        config = CONFIG.tokenizer.model_copy(
            update={"quantizer": CONFIG.tokenizer.quantizer.model_copy(update=quantizer)}
        )
        save_tokenizer(root / name, Tokenizer(config))
    save_tokenizer(root / "large tokenizer", Tokenizer(CONFIG.tokenizer.model_copy(update={"frame_size": (32, 32)})))
    return root


def refused(root: Path, use, *words: str) -> str:
    """The one-line error of something that leaves every file as it was."""
    before, names = hashes(root), sorted(root.rglob("*"))
    with pytest.raises((UsageError, CorruptFileError)) as caught:
        use()
    assert sorted(root.rglob("*")) == names and hashes(root) == before, "something was written"
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


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


@pytest.mark.parametrize("space", SPACES)
def test_tokens_and_a_run_of_another_action_space(made, tmp_path, space):
    """The config is the same and the tokenizer is the same, what the actions are is not."""
    shutil.copytree(made / "dynamics", tmp_path / "dynamics")
    words = ("holds a dynamics model trained on something else", "action_space.")
    message = refused(
        tmp_path,
        lambda: train_dynamics(
            CONFIG, made / f"tokens of {space}", made / "tokenizer", tmp_path / "dynamics", tmp_path / "world"
        ),
        *words,
    )
    theirs, ours = NAMED.to_json(), SPACES[space].to_json()
    assert all(f"action_space.{name}: that run had" in message for name in theirs if theirs[name] != ours[name])


def test_tokens_and_a_run_on_another_tokenizers_tokens(made, tmp_path):
    shutil.copytree(made / "dynamics", tmp_path / "dynamics")
    tokenize(made / "more codes", made / "data", tmp_path / "tokens", "cpu")
    given = (tmp_path / "tokens", made / "more codes", tmp_path / "dynamics", tmp_path / "world")
    refused(
        tmp_path,
        lambda: train_dynamics(CONFIG, *given),
        "tokenizer_hash: ",
        "num_codes: that run had 8, this one has 12",
    )


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


@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
def test_a_config_and_a_run_folder(made, tmp_path, what):
    shutil.copytree(made / what, tmp_path / what)
    changes = {what: {"width": 32}, f"{what}_training": {"steps": 9, "seed": 7}}
    config = change(CONFIG, **changes)
    uses = {
        "tokenizer": lambda: train_tokenizer(config, made / "data", tmp_path / what),
        "dynamics": lambda: train_dynamics(
            config, made / "tokens", made / "tokenizer", tmp_path / what, tmp_path / "world"
        ),
    }
    width = getattr(CONFIG, what).width
    words = [f"{what}.width: that run had {width}, this one has 32", f"{what}_training.seed: that run had 0, "]
    message = refused(tmp_path, uses[what], "with another config", *words, f"(--from {tmp_path / what} starts from")
    assert message.count(", this one has ") == 2  # more steps are no other run


def test_a_tokenizers_run_and_data_of_another_size_or_environment(made, tmp_path):
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    make_data(tmp_path / "data", env=EnvConfig(id="Other-v0", size=(16, 16), frame_skip=3))
    words = ("env.id: that run had 'worldvq/Maze-v0', this one has 'Other-v0'", "env.frame_skip: that run had 1, ")
    refused(tmp_path, lambda: train_tokenizer(CONFIG, tmp_path / "data", tmp_path / "tokenizer"), *words)


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


def test_a_run_that_is_the_same_goes_on_and_says_nothing(tmp_path):
    for _ in range(2):
        begin_run(
            tmp_path / "run",
            "dynamics",
            ExperimentConfig().sections(DynamicsSections),
            {"grid": (2, 2), "names": ["a"]},
        )
    (tmp_path / "run" / "inputs.json").unlink()  # a run from before there was such a file
    begin_run(tmp_path / "run", "dynamics", ExperimentConfig().sections(DynamicsSections), {"grid": (4, 4)})


def test_a_run_from_before_a_key_existed_goes_on_where_its_default_is_asked_for(tmp_path):
    sections, usual = ExperimentConfig().sections(DynamicsSections), defaults(DynamicsSections)
    begin_run(tmp_path, "dynamics", sections, {}, usual)
    older = copy.deepcopy(sections)
    del older["dynamics"]["recall"], older["dynamics"]["prior"]["num_blocks"], older["dynamics_training"]["accumulate"]
    (tmp_path / "config.yaml").write_text(dump_yaml(older))
    begin_run(tmp_path, "dynamics", sections, {}, usual)
    assert read_yaml(tmp_path / "config.yaml") == sections
    (tmp_path / "config.yaml").write_text(dump_yaml(older))
    sections["dynamics"]["prior"]["num_blocks"] = 5
    with pytest.raises(UsageError, match=r"dynamics\.prior\.num_blocks: that run had 2, this one has 5"):
        begin_run(tmp_path, "dynamics", sections, {}, usual)


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
