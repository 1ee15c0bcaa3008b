import pytest
from pydantic import BaseModel

from worldvq.config.env import EnvConfig
from worldvq.config.yaml_loading import build, dump_yaml, parse_yaml
from worldvq.errors import UsageError
from worldvq.models.config import TokenizerConfig
from worldvq.stages.experiment import ExperimentConfig, find_config, load_config, override, preset


@pytest.mark.parametrize("name", ["maze", "maze_hour", "doom", "defend", "car", "tiny"])
def test_shipped_configs_load_and_survive_a_round_trip(name):
    config = load_config(name)
    assert build(ExperimentConfig, parse_yaml(dump_yaml(config.model_dump(mode="json")), "dump"), "dump") == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("010", "010"),
        ("0x10", "0x10"),
        ("12_000", 12000),
        ("yes", "yes"),
        ("true", True),
        ("1:30", "1:30"),
        (".5", 0.5),
        ("~", None),
        ("=", "="),
        ("{<<: {a: 1}, a: 2}", {"<<": {"a": 1}, "a": 2}),  # nothing is merged
    ],
)
def test_yaml_reads_numbers_as_people_mean_them(text, value):
    assert parse_yaml(f"key: {text}", "test") == {"key": value}


@pytest.mark.parametrize(("minutes", "name"), [(10, "maze"), (59, "maze"), (60, "maze_hour"), (10_000, "maze_hour")])
def test_the_demo_takes_the_largest_preset_that_fits_the_time(minutes, name):
    assert preset(minutes) == name
    load_config(preset(minutes))


def test_overrides_reach_nested_keys():
    config = load_config("maze", ["tokenizer.width=16", "dynamics.prior.num_blocks=1", "env.kwargs.max_steps=50"])
    assert (config.tokenizer.width, config.dynamics.prior.num_blocks) == (16, 1)
    assert config.env.kwargs["max_steps"] == 50
    assert override(config, {"env.id": "CartPole-v1"}, ["env.frame_skip=2"]).env.frame_skip == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenizer.widht=3"], ["tokenizer.widht", "width"]),
        (["dynamics.prior.num_block=3"], ["num_block", "num_blocks"]),
        (["tokenizr.width=3"], ["tokenizr", "tokenizer"]),
        (["tokenizer.width=wide"], ["tokenizer.width", "wide"]),
        (["tokenizer.width=-1"], ["tokenizer.width", "-1"]),
        (["tokenizer.width"], ["key.path=value"]),
        (["tokenizer.width.deep=1"], ["width"]),
        (["env.size=[70, 64]"], ["env.size 70x64", "divide by 4"]),
        (["tokenizer_training.seed=4294967296"], ["tokenizer_training.seed", "less than 4294967296"]),
        (["frame_skip=2"], ["frame_skip", "did you mean 'env.frame_skip'"]),
        (["batch_size=2"], ["tokenizer_training.batch_size", "dynamics_training.batch_size", "evaluate.batch_size"]),
        (["quantizer.num_codes=2"], ["quantizer", "did you mean 'tokenizer.quantizer'"]),
        (["num_codes=2"], ["did you mean 'tokenizer.quantizer.num_codes'"]),
        (["framskip=2"], ["framskip", "env.frame_skip"]),
        (["dynamics.prior.kind=pixelcn"], ["kind", "pixelcn"]),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, words):
    with pytest.raises(UsageError) as caught:
        load_config("maze", arguments)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_key_that_stands_twice_and_bad_yaml_are_refused(tmp_path):
    for text, word in (
        ("env: {}\nenv: {}\n", "twice"),
        ("env: [", "env.yaml"),
        ("- 1\n", "keys"),
        ("a: !!python/name:os.system\n", "tag"),
        ("a: !!int '1'\n", "tag"),
        ("a: &a [1]\nb: *a\n", "anchors"),
        ("a: *b\n", "anchors"),
        ("[a]: 1\n", "one word"),
        ("a: 1e999\n", "too large"),
        ("a: " + "9" * 5000, "too large"),
        ("[" * 1000, "deeper than 32"),
        ("a: 1\n" + " " * 2**17, "at most"),
    ):
        path = tmp_path / "env.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=word) as caught:
            load_config(path)
        assert "\n" not in str(caught.value)


def test_an_unknown_config_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'maze'.*doom"):
        find_config("mase")


def test_frame_sizes_must_divide_and_agree():
    with pytest.raises(UsageError, match=r"60x64 is not divisible by downsample 8: set tokenizer\.downsample to 4"):
        build(TokenizerConfig, {"frame_size": [60, 64]}, "test")
    with pytest.raises(UsageError, match=r"84x84 and tokenizer\.frame_size 64x64 differ: give one"):
        load_config("tiny", ["env.size=84", "tokenizer.frame_size=64"])


@pytest.mark.parametrize(("text", "size"), [("48x64", (48, 64)), ("64", (64, 64)), ("[48, 64]", (48, 64))])
@pytest.mark.parametrize("key", ["env.size", "tokenizer.frame_size"])
def test_a_size_is_written_in_three_ways(tmp_path, text, size, key):
    section, name = key.split(".")
    (tmp_path / "own.yaml").write_text(f"{section}:\n  {name}: {text}\n")
    for config in (load_config("tiny", [f"{key}={text}"]), load_config(tmp_path / "own.yaml")):
        assert getattr(getattr(config, section), name) == size


@pytest.mark.parametrize("text", ["64x", "x", "4x4x4", "tall", "true", "1.5", "0x64", "64x5000", "70"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"env\.size"):
        load_config("tiny", [f"env.size={text}"])


def test_a_frame_size_is_given_once():
    """What is recorded is what is trained on, whichever of the two keys says it."""
    assert load_config("tiny", ["tokenizer.frame_size=48x64"]).env.size == (48, 64)
    config = load_config("tiny", ["env.size=48x64"])
    assert config.for_frames((48, 64), "data").tokenizer.frame_size == (48, 64)
    assert config.for_frames((16, 16), "data").tokenizer.frame_size == (16, 16)  # env.size is of what is recorded next
    again = override(config, {"record.seed": 3})
    assert again.env.size == (48, 64) and again.for_frames((16, 16), "data").tokenizer.frame_size == (16, 16)
    with pytest.raises(UsageError, match=r"data.*the dataset has 16x16, the config's tokenizer expects 48x64"):
        load_config("tiny", ["tokenizer.frame_size=48x64"]).for_frames((16, 16), "data")
    with pytest.raises(
        UsageError, match=r"data: .*84x84 is not divisible by downsample 8: set tokenizer\.downsample to 4"
    ):
        load_config("tiny").for_frames((84, 84), "data")


def sections_of(model, prefix=()):
    """Every section below a config's type, with its path and its default."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield (*prefix, name), field.annotation, field.get_default(call_default_factory=True)
            yield from sections_of(field.annotation, (*prefix, name))


SECTIONS = list(sections_of(ExperimentConfig))


@pytest.mark.parametrize(("path", "kind", "default"), SECTIONS, ids=[".".join(path) for path, _, _ in SECTIONS])
def test_a_section_given_in_part_keeps_its_other_defaults(tmp_path, path, kind, default):
    """A section's type has the very defaults that the section has: so one key of it changes no other."""
    assert kind() == default
    whole = ExperimentConfig().model_dump(mode="json")
    for key, value in default.model_dump(mode="json").items():
        data = {key: value}
        for name in reversed(path):
            data = {name: data}
        (tmp_path / "own.yaml").write_text(dump_yaml(data))
        assert load_config(tmp_path / "own.yaml").model_dump(mode="json") == whole
        text = dump_yaml({"a": value}).removeprefix("a:").strip()
        if not isinstance(value, dict | list) or not value:
            (tmp_path / "empty.yaml").write_text("")
            changed = load_config(tmp_path / "empty.yaml", [f"{'.'.join(path)}.{key}={text}"])
            assert changed.model_dump(mode="json") == whole


def test_a_dream_may_remember_no_further_than_training_saw():
    with pytest.raises(UsageError) as caught:
        load_config("maze", ["dynamics.context_frames=25"])
    message = str(caught.value)
    assert "\n" not in message and "context_frames 25" in message and "clip_frames 24" in message
    assert load_config("maze", ["dynamics.context_frames=24"]).dynamics.context_frames == 24


def test_dynamics_train_on_clips_that_have_a_next_frame(tmp_path):
    with pytest.raises(UsageError, match=r"dynamics_training\.clip_frames.*1"):
        load_config("maze", ["dynamics.context_frames=1", "dynamics_training.clip_frames=1"])
    (tmp_path / "short.yaml").write_text("dynamics_training: {steps: 3}\n")  # the rest stays as it was
    training = load_config(tmp_path / "short.yaml").dynamics_training
    assert (training.steps, training.clip_frames, training.batch_size) == (3, 16, 8)


def test_text_that_looks_like_a_number_survives_a_round_trip():
    config = EnvConfig(id="1e5", kwargs={"a": "12_000", "b": 0.5, "c": 1e-7, "d": "true", "e": ["0"] * 2})
    assert build(EnvConfig, parse_yaml(dump_yaml(config.model_dump(mode="json")), "dump"), "dump") == config


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", None])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    path = tmp_path / "env.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError, match=r"env\.yaml"):
        load_config(path)
