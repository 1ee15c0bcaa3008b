"""Every mistake on the command line is one line that names the value, and leaves nothing behind."""

import os
import shutil
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from support import programs
from support.command_line import COMMAND, check_error, run, spawn
from support.episodes import plain_episode, write
from support.fault_tools import wait_until

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.experiment import load_config
from worldvq.stages.tokens import tokenize
from worldvq.types import ActionSpace
from worldvq.world.model import WorldModel

TINY = ["--config", "tiny"]


def record(path, size=64, num_actions=7):
    space = ActionSpace("discrete", nvec=(num_actions,), names=tuple("abcdefgh"[:num_actions]))
    settings = {"env": EnvConfig(size=(size, size)), "policy": "held", "heldout_every": 10}
    write(path, space, [plain_episode(20 * number, size) for number in range(10)], **settings)
    return space


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An untrained world with its dataset, and datasets that it cannot take."""
    root = tmp_path_factory.mktemp("root")
    torch.manual_seed(0)
    config, space = load_config("tiny"), record(root / "data")
    record(root / "small", size=32)
    record(root / "fewer", num_actions=5)
    tokenizer = Tokenizer(config.tokenizer)
    save_tokenizer(root / "tokenizer", tokenizer)
    tokenize(root / "tokenizer", root / "data", root / "tokens", "cpu").close()
    save_tokenizer(root / "other", Tokenizer(config.tokenizer))
    dynamics = Dynamics(config.dynamics, tokenizer.grid, tokenizer.num_codes, space)
    WorldModel(tokenizer, dynamics, {"env_id": "worldvq/Maze-v0"}).save(root / "world")
    return root


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


IMAGINE = "imagine --world world --data data --out new.mp4"
EVALUATE = "evaluate --world world --data data --out new"
TRAIN = "train tokenizer --config tiny --data data --out new"
MISTAKES = [
    ("record worldvq/Maze-v0 --out new --episodes 2 --frames 10", 2, ["--episodes", "--frames"]),
    ("record worldvq/Maze-v0 --out new --size 64x", 2, ["--size 64x", "84x84"]),
    ("record worldvq/Maze-v0 --out new --size 70", 2, ["--size 70"]),
    ("record worldvq/Maze-v0 --out new --size 0", 2, ["size", "0"]),
    ("record worldvq/Maze-v0 --out new --frames 0", 2, ["record.frames", "0"]),
    ("record worldvq/Maze-v0 --out new --frames ten", 2, ["--frames"]),
    ("record worldvq/Maze-v0 --out new --policy hold", 2, ["'hold'", "held"]),
    ("record worldvq/Maze-v0 --out new env.kwarg.a=1", 2, ["env.kwarg", "did you mean 'kwargs'"]),
    ("record worldvq/Maze-v0", 2, ["--out"]),
    ("record worldvq/Maze-v0 --out small", 2, ["small", "env.size", "32x32"]),
    ("demo --minutes 9 --out new", 2, ["--minutes 9", "10"]),
    ("demo --minutes 60 --config tiny --out new", 2, ["--minutes 60", "--config tiny"]),
    ("demo --config tiny --out new tokenizer.widht=3", 2, ["tokenizer.widht", "did you mean 'width'"]),
    ("demo --config tiny --out new tokenizer.width=wide", 2, ["tokenizer.width", "'wide'"]),
    ("demo --config tiny --out new tokenizer.width", 2, ["'tokenizer.width'", "key.path=value"]),
    ("demo --config tinny --out new", 2, ["'tinny'", "did you mean 'tiny'"]),
    ("demo --config tiny --out new env.id=worldvq/Mase-v0", 2, ["Mase", "did you mean 'worldvq/Maze-v0'"]),
    ("demoo", 2, ["demoo", "demo"]),
    ("train tokenizer --config tiny --data none --out new", 2, ["none", "worldvq record"]),
    ("train tokenizer --config tiny --data small --out new tokenizer.frame_size=64", 2, ["32x32", "64x64", "leave"]),
    ("train tokenizer --config tiny --data data --out data/dataset.json/x", 1, ["data/dataset.json/x"]),
    ("tokenize --tokenizer none --data data --out new", 2, ["none", "worldvq train tokenizer"]),
    ("tokenize --tokenizer tokenizer --data small --out new", 2, ["small", "32x32", "64x64"]),
    ("tokenize --tokenizer tokenizer --data data --out new --device gpux", 2, ["'gpux'", "auto"]),
    ("train dynamics --config tiny --tokens none --tokenizer tokenizer --out new", 2, ["none"]),
    ("train dynamics --config tiny --tokens tokens --tokenizer none --out new", 2, ["none"]),
    ("train dynamics --config tiny --tokens tokens --tokenizer other --out new", 2, ["tokens", "other", "tokenize"]),
    (f"{TRAIN} --device gpux", 2, ["'gpux' is not there", "auto", "cpu"]),
    (f"{TRAIN} --device cuda:99", 2, ["'cuda:99'", "auto", "cpu"]),
    (f"{TRAIN} --steps 5 tokenizer_training.steps=6", 2, ["--steps 5", "tokenizer_training.steps=6", "not both"]),
    (f"{TRAIN} --steps 0", 2, ["tokenizer_training.steps = 0"]),
    (f"{TRAIN} --seed -1", 2, ["tokenizer_training.seed = -1"]),
    ("train dynamics --config tiny --tokens tokens --tokenizer tokenizer --out new --device gpux", 2, ["'gpux'"]),
    ("demo --config tiny --out new --device gpux", 2, ["'gpux'", "auto"]),
    ("record worldvq/Maze-v0 --out new --frames 5 record.frames=6", 2, ["--frames 5", "record.frames=6", "not both"]),
    ("record worldvq/Maze-v0 --out new --size 48 env.size=64", 2, ["--size 48", "env.size=64", "not both"]),
    (f"{IMAGINE} --frames 2 --device gpux", 2, ["'gpux'", "auto"]),
    (f"{EVALUATE} --device gpux", 2, ["'gpux'", "auto"]),
    ("imagine --world none --data data --out new.mp4", 2, ["none", "worldvq train dynamics"]),
    ("imagine --world world --data none --out new.mp4", 2, ["none", "worldvq record"]),
    ("imagine --world world --data small --out new.mp4", 2, ["small", "32x32", "64x64"]),
    ("imagine --world world --data fewer --out new.mp4", 2, ["fewer", "[5]", "[7]"]),
    (f"{IMAGINE} --context 8 --frames 5", 2, ["13 frames", "12"]),
    (f"{IMAGINE} --actions jump", 2, ["'jump'", "a, b, c"]),
    (f"{IMAGINE} --actions none.npy", 2, ["none.npy"]),
    (f"{IMAGINE} --seed -1", 2, ["--seed"]),
    (f"{IMAGINE} --seed {2**128}", 2, ["--seed"]),
    (f"{IMAGINE} --top-p 2 --frames 2", 2, ["top_p", "2"]),
    (f"{IMAGINE}.xyz --frames 2", 2, ["new.mp4.xyz", ".webm"]),
    ("evaluate --world none --data data --out new", 2, ["none"]),
    ("evaluate --world world --data none --out new", 2, ["none", "worldvq record"]),
    ("evaluate --world world --data small --out new", 2, ["small", "32x32", "64x64"]),
    ("evaluate --world world --data fewer --out new", 2, ["fewer", "[5]", "[7]"]),
    (f"{EVALUATE} --context 8 --horizon 5", 2, ["13 frames", "12"]),
    (f"{EVALUATE} --context 4 --long", 2, ["14 frames", "12", "context + 10"]),
    (f"{EVALUATE} --clips 1 --horizon 2", 2, ["1 held-out window", "two"]),
    (f"{EVALUATE} --seed -1", 2, ["seed = -1"]),
    (f"{EVALUATE} --top-k 0", 2, ["--top-k"]),
    ("compare none other --out new", 2, ["none", "worldvq evaluate"]),
    ("compare none --out new", 2, ["1 report given", "two"]),
    ("compress --world none --tokens tokens --out new", 2, ["none", "worldvq train dynamics"]),
    ("compress --world world --tokens data --out new", 2, ["data", "token store", "worldvq tokenize"]),
    ("compress --world world --tokens tokens --out data", 2, ["--out data is a folder"]),
    ("compress --world world --tokens tokens --out new --episodes some", 2, ["--episodes some", "heldout"]),
    ("compress --world world --tokens tokens --out new --episodes 3,77", 2, ["no episode 77"]),
    ("decompress --world world none --out new", 2, ["none", "worldvq compress"]),
    ("decompress --world world world/dynamics.safetensors --out new", 2, ["no compressed tokens"]),
    ("decompress --world world world/world.json --out new", 1, ["world.json"]),
    ("likelihood --world none --data data", 2, ["none", "worldvq train dynamics"]),
    ("likelihood --world world --data small", 2, ["small", "32x32", "64x64"]),
    ("likelihood --world world --data data --clips 0", 2, ["--clips"]),
    ("data info none", 2, ["none", "worldvq record"]),
    ("data verify none", 2, ["none", "worldvq record"]),
    ("data preview none", 2, ["none", "worldvq record"]),
]


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(root, here, line, code, words):
    names, before = sorted(here.iterdir()), listing(root)
    check_error(run(*line.split()), code, words)
    assert sorted(here.iterdir()) == names and listing(root) == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("record worldvq/Mase-v0 --out new", ["'worldvq/Mase-v0'", "did you mean 'worldvq/Maze-v0'"]),
        ("evaluate --world none --data data --out new", ["none", "worldvq train dynamics"]),
        ("demo --colour", ["--colour"]),
    ],
)
def test_a_mistake_in_a_process_of_its_own(here, line, words):
    names = sorted(here.iterdir())
    check_error(spawn(*line.split()), 2, words)
    assert sorted(here.iterdir()) == names


def test_debug_shows_where(here):
    result = spawn("--debug", "data", "info", "none")
    assert result.returncode == 1 and "Traceback" in result.stderr and "worldvq/data/store.py" in result.stderr


def test_an_unforeseen_error_is_one_line_too(here, monkeypatch):
    def fail(path):
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr("worldvq.data.inspect.info", fail)
    check_error(run("data", "info", "data"), 1, ["ZeroDivisionError: one two", "--debug"])


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("demo --config tiny --out new", "new/data/dataset.json"),
        ("record worldvq/Maze-v0 --out new --frames 10", "new/dataset.json"),
        ("train tokenizer --config tiny --data data --out new", "new/config.yaml"),
        ("tokenize --tokenizer tokenizer --data data --out new --device cpu", "new/tokens.json"),
        ("train dynamics --config tiny --tokens tokens --tokenizer tokenizer --out new", "new/config.yaml"),
        (f"{EVALUATE} --clips 2 --context 2 --horizon 2", "new/"),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_file(here, monkeypatch, line, path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000))
    result = run(*line.split())
    lines = [text for text in result.stderr.splitlines() if not text.startswith("note: ")]  # of a missing extra
    check_error(SimpleNamespace(**vars(result) | {"stderr": "\n".join(lines)}), 1, [path, "full", "1,000"])
    left = {file.name for file in here.rglob("new/**/*") if file.is_file()}
    assert left <= {".lock", "rollout.mp4", "strip.png"}  # a report comes last, so that a half-written one is none


def test_ctrl_c_ends_with_130_and_the_same_command_continues(here):
    command = ["record", "worldvq/Maze-v0", "--out", "new", "--workers", "1", "env.max_steps=20"]
    words = [*COMMAND, *command, "--episodes", "100000"]
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, start_new_session=True, env=programs.environment()
    )
    try:
        assert wait_until((here / "new" / "index.jsonl").exists)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.strip() == "worldvq: interrupted; run the same command again to continue"
    store = EpisodeStore.open(here / "new")
    recorded = len(store)
    assert recorded >= 1 and store.verify() == []
    assert run(*command, "--episodes", recorded + 1).returncode == 0
    assert EpisodeStore.open(here / "new").entries[:recorded] == store.entries


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "The road"),
        ("record", "Play an environment"),
        ("train", "Train a tokenizer"),
        ("train tokenizer", "Train the VQ-VAE"),
        ("train dynamics", "action-conditioned dynamics"),
        ("tokenize", "Turn every frame"),
        ("imagine", "Imagine what follows"),
        ("evaluate", "Measure imagined frames"),
        ("compare", "the same clips side by side"),
        ("demo", "the whole road"),
        ("data", "Look at a dataset"),
        ("data info", "Print what a dataset holds"),
        ("data verify", "Hash every file"),
        ("data preview", "Draw a contact sheet"),
    ],
)
def test_help_explains(line, word):
    result = run(*line.split(), "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert word in " ".join(result.stdout.split())


@pytest.mark.parametrize("line", ["", "train", "data"])
def test_without_a_verb_there_is_help_and_no_empty_error(line):
    result = run(*line.split())
    assert "Usage:" in result.stdout and result.stderr == ""
