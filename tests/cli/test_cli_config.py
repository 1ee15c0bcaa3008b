"""The verbs of the config, and that every option of every verb is explained."""

import runpy

import pytest
import typer
from support.command_line import check_error, run, spawn_light, succeed
from support.programs import ROOT

from worldvq.cli.main import app
from worldvq.config.explain import keys_of
from worldvq.config.yaml_loading import paths_of
from worldvq.stages.experiment import ExperimentConfig, built_in_configs, load_config


def test_every_built_in_config_is_listed_with_a_sentence():
    lines = succeed("config", "list", how=spawn_light).splitlines()
    assert [line.split()[0] for line in lines] == [
        "car",
        "cifar10",
        "defend",
        "dmlab",
        "doom",
        "imagenet128",
        "maze",
        "maze_hour",
        "speech",
        "tiny",
    ]
    assert all(len(line.split()) > 5 and line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", built_in_configs())
@pytest.mark.parametrize("overrides", [[], ["env.size=48x96", "tokenizer.downsample=4", "evaluate.clips=7"]])
def test_a_config_that_is_shown_loads_as_what_it_was(tmp_path, name, overrides):
    (tmp_path / "mine.yaml").write_text(succeed("config", "show", name, *overrides))
    whole, config = load_config(tmp_path / "mine.yaml"), load_config(name, overrides)
    assert whole == config
    for size in ((64, 64), (48, 96)):  # a dataset's size is taken all the same
        assert whole.for_frames(size, "data") == config.for_frames(size, "data")


def test_what_is_shown_has_every_key(tmp_path):
    (tmp_path / "mine.yaml").write_text(succeed("config", "show", "tiny", "tokenizer.frame_size=48x64"))
    config = load_config(tmp_path / "mine.yaml")
    assert config.env.size == config.tokenizer.frame_size == (48, 64)

    def given(section, prefix=""):
        for name in section.model_fields_set:
            yield prefix + name
            if hasattr(type(value := getattr(section, name)), "model_fields"):
                yield from given(value, f"{prefix}{name}.")

    assert set(given(config)) == set(paths_of(ExperimentConfig))


def test_every_key_has_a_type_a_default_and_a_sentence():
    keys = keys_of(ExperimentConfig)
    assert sorted(key.path for key in keys) == sorted(paths_of(ExperimentConfig))
    for path, kind, default, text in keys:
        assert text[:1].strip("`").upper() == text[:1].strip("`") and text.endswith("."), f"{path}: {text}"
        assert not kind or (default and "None" not in text), f"{path}: a file says null"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["tokenizer.width: integer, >= 8", "evaluate.sampling.top_k: integer, > 0, or null; default null"]),
        ("tokenizer.width", ["integer, >= 8, <= 65536, a multiple of 8; default 128", "Channels"]),
        ("dynamics.prior", ["The autoregressive model", "dynamics.prior.kind: one of transformer, pixelcnn;"]),
        ("env.size", ["list of 2: integer, > 0, <= 4096; default [64, 64]", "48x64"]),
    ],
)
def test_keys_are_explained(line, words):
    text = succeed("config", "explain", *line.split(), how=spawn_light)
    assert all(word in text for word in words), text
    assert not line or all(part.startswith((line, " ", "\n")) or not part for part in text.splitlines())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("explain width", ["'width'", "did you mean 'tokenizer.width' or 'dynamics.width'"]),
        ("explain tokenizer.widht", ["'tokenizer.widht'", "did you mean 'width'"]),
        ("explain xyzzy", ["'xyzzy'", "worldvq config explain"]),
        ("show mase", ["'mase'", "did you mean 'maze'"]),
        ("show maze tokenizer.widht=3", ["tokenizer.widht", "did you mean 'width'"]),
    ],
)
def test_mistakes_in_configs_are_one_line(line, words):
    check_error(run("config", *line.split()), 2, words)


def test_the_reference_is_current():
    made = runpy.run_path(str(ROOT / "tools/config_reference.py"))["page"]()
    written = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    assert written == made, "docs/config.md is stale: python tools/config_reference.py"


def commands(command, name="worldvq"):
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {word}")


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_option_and_argument_is_explained(name):
    command = COMMANDS[name]
    first = (command.help or "").strip().partition("\n")[0]
    assert first[:1].isupper() and first.endswith("."), f"{name}: {first}"
    for parameter in command.params:
        text = getattr(parameter, "help", None) or ""
        assert text[:1] and text.endswith("."), f"{name} {parameter.name}: {text}"
        assert "[" not in text, f"{name} {parameter.name}: brackets are markup to Rich, which swallows them"
