"""A run's folder goes on with what it was begun with: all else is refused, every field that differs is named."""

from __future__ import annotations

import copy
import shutil

import pytest
from support.mismatch import CONFIG, NAMED, SPACES, make_data, refused

from worldvq.config.env import EnvConfig
from worldvq.config.yaml_loading import dump_yaml, read_yaml
from worldvq.errors import UsageError
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import DynamicsSections, ExperimentConfig, defaults
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.identity import begin_run


def change(config, **sections):
    """A config with other values in its sections."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


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
