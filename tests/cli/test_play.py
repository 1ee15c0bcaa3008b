"""``worldvq play`` and ``record --policy human``: what cannot be is one line, and nothing is half-written."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess

import numpy as np
import pytest
import torch
from support import programs
from support.command_line import COMMAND, check_error, run
from support.episodes import plain_episode, write
from support.play import Page, picture

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.models.dynamics import Dynamics
from worldvq.models.tokenizer import Tokenizer
from worldvq.recording.config import RecordConfig
from worldvq.stages.experiment import load_config
from worldvq.stages.record import record
from worldvq.types import ActionSpace
from worldvq.world.model import WorldModel


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A world of random weights on a recorded maze, and datasets that cannot be played."""
    root = tmp_path_factory.mktemp("root")
    torch.manual_seed(0)
    config = load_config("tiny")
    env = EnvConfig(max_steps=12)
    with record(env, RecordConfig(episodes=8, workers=1, heldout_every=4), root / "data", progress=False) as store:
        space, meta = store.action_space, store.meta
    tokenizer = Tokenizer(config.tokenizer)
    dynamics = Dynamics(config.dynamics, tokenizer.grid, tokenizer.num_codes, space)
    WorldModel(tokenizer, dynamics, {"env_id": env.id}).save(root / "world")
    kept = {"policy": "held", "heldout_every": 4}
    for name, other in (
        ("videos", EnvConfig(id="videos:clips")),
        ("gone", EnvConfig(id="NoSuchEnv-v7")),
        ("code", EnvConfig(id="os:Toy-v0")),
        ("drifting", EnvConfig()),
    ):
        write(root / name, space, [plain_episode(20 * n, 64) for n in range(8)], env=other, **kept)
    write(root / "nothing", space, [plain_episode(0, 64)], env=env, **kept)
    write(root / "fewer", ActionSpace("discrete", (2,)), [plain_episode(0, 64)], env=env, **kept)
    assert meta.frame_size == (64, 64)
    return root


PLAY = "play --world world --port 0"
MISTAKES = [
    ("play --world none", 2, ["no world in none", "worldvq demo"]),
    ("play", 2, ["--world"]),
    (f"{PLAY} --data none", 2, ["no dataset in none", "--data"]),
    (f"{PLAY} --data nothing", 2, ["no held-out episodes", "record.heldout_every"]),
    (f"{PLAY} --data fewer", 2, ["fewer", "[2]", "[7]"]),
    (f"{PLAY} --context 50", 2, ["50 frames", "13", "--context"]),
    (f"{PLAY} --context 0", 2, ["--context"]),
    (f"{PLAY} --record new", 2, ["--record new", "--real"]),
    (f"{PLAY} --real --data videos", 2, ["videos:clips", "nobody can play"]),
    (f"{PLAY} --real --data gone", 2, ["NoSuchEnv-v7"]),
    (f"{PLAY} --real --data code", 2, ["os:Toy-v0", "--trust"]),
    (f"{PLAY} --real --data drifting", 2, ["other frames", "leave --real out"]),
    (f"{PLAY} --real --record data/episodes", 2, ["data/episodes", "other files"]),
    (f"{PLAY} --host 0.0.0.0", 2, ["0.0.0.0", "192.168"]),
    (f"{PLAY} --host 192.0.2.1", 2, ["192.0.2.1", "--port"]),
    (f"{PLAY} --device gpux", 2, ["'gpux'"]),
    ("play --world world --port 70000", 2, ["--port"]),
    ("record NoSuchEnv-v7 --out new --policy human --port 0", 2, ["NoSuchEnv-v7"]),
    ("record worldvq/Maze-v0 --out new --policy human --shard 0/2", 2, ["human", "--shard"]),
    ("record worldvq/Maze-v0 --out data --policy human --port 0", 2, ["data", "policy", "retrace", "human"]),
]


@pytest.mark.parametrize(("command", "code", "words"), MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(here, command, code, words):
    before = {path for path in here.rglob("*") if path.name != ".lock"}
    check_error(run(*command.split()), code, words)
    assert {path for path in here.rglob("*") if path.name != ".lock"} == before


def test_a_port_in_use(here):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        check_error(run("play", "--world", "world", "--port", port), 2, [f"port {port}", "--port"])
        command = ["record", "worldvq/Maze-v0", "--policy", "human", "--out", "new", "--port", port]
        check_error(run(*command), 2, [f"port {port}", "--port"])
    assert not (here / "new").exists()


def test_the_extra_is_named_where_it_is_missing(here, monkeypatch):
    from worldvq.cli import play

    monkeypatch.setattr(play, "find_spec", lambda name: None if name == "uvicorn" else True)
    check_error(run(*PLAY.split()), 2, ["uvicorn", 'pip install "worldvq[play]"'])


@contextlib.contextmanager
def serving(*arguments):
    """Run a command in a process of its own; yields it, its port and what it said before."""
    words = [*COMMAND, *map(str, arguments), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, env=programs.environment(), **pipes)
    try:
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                yield process, int(found[1]), said
                break
        else:
            raise AssertionError(said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_dream_and_reality_side_by_side_recorded_and_ended_by_ctrl_c(here):
    """What the real canvas shows is what the environment shows for the same seed and actions."""
    with serving("play", "--world", "world", "--real", "--record", "played") as (process, port, _):
        with Page(port) as page:
            first, data = page.first
            real = [picture(data, (64, 64), 1)]
            assert first["real"] == {"reward": 0.0, "total": 0.0, "over": ""}
            page.ask(kind="record", on=True)
            for action in (1, 5, 1):
                _, data = page.ask(kind="act", action=action)
                real.append(picture(data, (64, 64), 1))
            _, data = page.ask(kind="undo", steps=1)
            np.testing.assert_array_equal(picture(data, (64, 64), 1), real[2])
            page.ask(kind="act", action=6)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == "stopped\n"
    with EpisodeStore.open("played") as store:
        assert store.verify() == [] and store.meta.policy == "human" and len(store) == 1
        episode = store.read(0)
        np.testing.assert_array_equal(episode.frames[-4:-1], real[:3])
        assert episode.interrupted and episode.actions[-3:].tolist() == [1, 5, 6]


def test_a_recording_by_hand_is_a_dataset_like_any_other_and_is_continued(here):
    size = ["worldvq/Maze-v0", "--out", "mine", "--policy", "human", "env.max_steps=3", "record.heldout_every=2"]
    with serving("record", *size, "--episodes", 2) as (process, port, said):
        assert "stored as 64x64" in said
        with Page(port) as page:
            assert not page.hello["dream"] and page.hello["real"] and page.hello["starts"] == 0
            for episode in range(2):
                for step in range(3):
                    header, _ = page.ask(kind="act", action=1 + episode)
                    assert (header["step"], header["undo"]) == (step + 1, 0)
                assert header["real"]["over"] == "truncated" and header["kept"] == episode + 1
                if episode == 0:
                    assert page.ask(kind="restart")[0]["step"] == 0
            assert process.wait(60) == 0  # there is enough
        assert "mine: 2 episodes, 8 frames" in process.stdout.read()
    with serving("record", *size, "--episodes", 3) as (process, port, _), Page(port) as page:
        page.ask(kind="act", action=4)
        page.__exit__()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with EpisodeStore.open("mine") as store:
        assert store.verify() == []
        ends = [(entry.number, entry.num_frames, entry.interrupted) for entry in store.entries]
        assert ends == [(0, 4, False), (1, 4, False), (2, 2, True)]
        assert store.read(1).actions.tolist() == [2, 2, 2]
        seeds = [entry.seed for entry in store.entries]
    shutil.rmtree("mine")
    settings = RecordConfig(episodes=3, workers=1, policy="random")
    with record(EnvConfig(max_steps=3), settings, here / "other", progress=False) as store:
        assert seeds == [entry.seed for entry in store.entries]  # numbers and seeds go together as they always do
