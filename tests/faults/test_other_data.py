"""A run goes on with the episodes that it was begun on, and with no others: its folder says which they were."""

import hashlib
import json

import pytest
from support.episodes import SPACES, make_episode, write
from support.fault_tools import hashes

from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.files.reading import read_sealed, seal
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import load_config
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize

CONFIG = load_config(
    "tiny",
    [
        *("env.size=[16,16]", "tokenizer.frame_size=[16,16]", "tokenizer.width=8", "tokenizer_training.steps=2"),
        *("tokenizer_training.batch_size=4", "dynamics_training.steps=2", "evaluate.context=2", "evaluate.horizon=2"),
    ],
)
OTHERS = {
    "one more": (
        {"seeds": range(5)},
        ["episodes: that run had 4, this one has 5", "frames: that run had 44", "hash: "],
    ),
    "other ones": ({"seeds": range(1, 5)}, ["hash: that run had '"]),
    "another order": ({"seeds": (0, 1, 3, 2)}, ["hash: that run had '"]),
    "another split": ({"heldout_every": 4}, ["heldout_every: that run had 3, this one has 4"]),
}


def record(folder, seeds=range(4), heldout_every=3):
    episodes = [make_episode(seed, steps=10, size=(16, 16)) for seed in seeds]
    write(folder, SPACES["discrete"], episodes, heldout_every=heldout_every)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A tokenizer and a dynamics that were trained, and the tokens of other data by the same tokenizer."""
    root = tmp_path_factory.mktemp("begun")
    train_tokenizer(CONFIG, record(root / "data"), root / "tokenizer")
    for name, (changes, _) in {"": ({}, []), **OTHERS}.items():
        data = record(root / f"data {name}", **changes)
        tokenize(root / "tokenizer", data, root / f"tokens {name}", "cpu")
    dynamics(root, "")
    return root


def dynamics(root, name):
    train_dynamics(CONFIG, root / f"tokens {name}", root / "tokenizer", root / "dynamics", root / "world")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
def test_other_episodes_are_refused_by_both_values(begun, what, name):
    before = hashes(begun / what)
    with pytest.raises(UsageError) as caught:
        if what == "tokenizer":
            train_tokenizer(CONFIG, begun / f"data {name}", begun / "tokenizer")
        else:
            dynamics(begun, name)
    message, field = str(caught.value), {"tokenizer": "data", "dynamics": "tokens"}[what]
    assert message.startswith(f"{begun / what} holds a {what} model trained on something else: {field}.")
    assert all(f"{field}.{words}" in message for words in OTHERS[name][1]) and "\n" not in message
    assert message.count("that run had") == len(OTHERS[name][1])
    assert message.endswith(": give another --out, or what that run was trained on")
    assert hashes(begun / what) == before


def test_the_same_episodes_elsewhere_go_on(begun, tmp_path):
    train_tokenizer(CONFIG, record(tmp_path / "copy"), begun / "tokenizer")
    tokenize(begun / "tokenizer", tmp_path / "copy", tmp_path / "tokens ", "cpu")
    train_dynamics(CONFIG, tmp_path / "tokens ", begun / "tokenizer", begun / "dynamics", begun / "world")


@pytest.mark.parametrize("what", ["tokenizer", "dynamics"])
def test_a_run_from_before_goes_on_and_is_told_from_then_on(begun, what):
    path = begun / what / "inputs.json"
    written = read_sealed(path)
    older = {key: value for key, value in written.items() if key not in ("data", "tokens")}
    path.write_bytes(seal(older))
    train_tokenizer(CONFIG, begun / "data", begun / "tokenizer")
    dynamics(begun, "")
    assert len(older) == len(written) - 1 and read_sealed(path) == written


def test_the_fingerprint_is_of_what_the_index_lists(begun):
    store = EpisodeStore.open(begun / "data")
    lines = map(json.loads, (begun / "data" / "index.jsonl").read_text().splitlines())
    listed = "".join(f"{line['number']} {line['sha256']}\n" for line in sorted(lines, key=lambda line: line["number"]))
    digest = hashlib.sha256(listed.encode()).hexdigest()
    assert store.fingerprint() == {"episodes": 4, "frames": 44, "heldout_every": 3, "hash": digest[:16]}
