"""After every command, and after every way to end one: no processes, no shared memory, no temporary files."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from support.fault_tools import SMALL, Command, Watch, hashes, numbers_of_report, only_slow, wait_until
from support.hold import Hold

STAGES = {  # and what the stages before have left
    "record": [],
    "train tokenizer": ["data"],
    "tokenize": ["data", "tokenizer"],
    "train dynamics": ["data", "tokenizer", "tokens"],
    "evaluate": ["data", "tokenizer", "tokens", "dynamics", "world"],
    "render": ["data", "tokenizer", "tokens", "dynamics", "world", "report"],
}


def commands(road, out):
    """Every command but record and demo, which `road` has run, on a small road; by name."""
    world = ["--world", road / "world", "--data", road / "data", "--device", "cpu"]
    held = ["--context", 2, "--frames", 60, "--actions", "forward", "--clips", 3, "--out"]
    few = ["--config", "tiny", *SMALL]
    data = ["--data", road / "data"]
    tokens = ["--tokens", road / "tokens", "--tokenizer", road / "tokenizer"]
    protocol = ["--context", 2, "--horizon", 3, "--clips", 4, "--batch-size", 2]
    return {
        "version": ["--version"],
        "info": ["data", "info", road / "data"],
        "verify": ["data", "verify", road / "tokens"],
        "preview": ["data", "preview", road / "data", "--out", out],
        "tokenize": ["tokenize", "--tokenizer", road / "tokenizer", *data, "--out", out, "--device", "cpu"],
        "imagine": ["imagine", *world, *held, out / "rollout.mp4"],
        "imagine-gif": ["imagine", *world, *held, out / "rollout.gif"],
        "imagine-webm": ["imagine", *world, *held, out / "rollout.webm"],
        "imagine-paper": [
            "imagine",
            *world,
            "--actions",
            "paper",
            "--context",
            2,
            "--frames",
            3,
            "--out",
            out / "p.png",
        ],
        "evaluate": ["evaluate", *world, *protocol, "--out", out],
        "train-tokenizer": ["train", "tokenizer", *data, "--out", out, *few],
        "train-dynamics": ["train", "dynamics", *tokens, "--out", out, "--world", out / "world", *few],
        "merge": ["data", "merge", out],
    }


def test_the_whole_road_leaves_nothing(road):
    assert (road.parent / "demo.left").read_text() == ""
    assert not [path for path in road.rglob(".*") if not path.name.startswith(".lock")]


@pytest.mark.parametrize(
    "name", [only_slow(n) if n in ("imagine-webm", "verify") else n for n in commands(Path(), Path())]
)
def test_commands_that_succeed_leave_nothing(road, tmp_path, name):
    out = tmp_path / "out"
    if name == "merge":
        shutil.copytree(road / "data", out)
        (out / "index.jsonl").rename(out / "index.0-of-2.jsonl")
    with Watch(tmp_path / "tmp") as watch:
        command = Command(tmp_path / "log", *commands(road, out)[name], watch=watch)
        assert command.wait() == 0, command.log.read_text()
        assert watch.left(tmp_path) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", ["imagine", *map(only_slow, ("imagine-gif", "imagine-webm", "preview", "evaluate"))])
def test_ended_while_a_video_is_written(road, tmp_path, name, signum):
    """The encoder goes too; what only a SIGKILL leaves, the next run takes away."""
    out, arguments = tmp_path / "out", commands(road, tmp_path / "out")[name]
    out.mkdir()
    killed = signum == signal.SIGKILL
    with Watch(tmp_path / "tmp") as watch:
        hold = Hold(tmp_path / "hold", "worldvq.media.videos:_check_frame", 3)
        command = Command(tmp_path / "log", *arguments, watch=watch, **hold.environment)
        hold.wait()
        assert wait_until(lambda: list(out.glob(".*.tmp")))
        command.send(signum)
        assert command.wait() == (-signum if killed else 128 + signum), command.log.read_text()
        assert watch.left(*([] if killed else [out])) == []
        if killed:
            assert list(out.glob(".*.tmp"))
        again = Command(tmp_path / "log", *arguments, watch=watch)
        assert again.wait() == 0, again.log.read_text()
        assert watch.left(out) == [] and not [path for path in out.rglob(".*") if path.name != ".lock"]


@pytest.mark.only_slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", ["imagine", "evaluate", "tokenize", "preview"])
def test_ended_at_any_moment(road, tmp_path, name, signum):
    out, killed = tmp_path / "out", signum == signal.SIGKILL
    with Watch(tmp_path / "tmp") as watch:
        for delay in np.random.default_rng().uniform(0.05, 1.5, 8):
            command = Command(tmp_path / "log", *commands(road, out)[name], watch=watch)
            wait_until(lambda: not command.is_running(), delay)  # noqa: B023
            command.send(signum)
            assert command.wait() in (0, -signum, 128 + signum), command.log.read_text()
            assert watch.left(*([] if killed else [tmp_path])) == []
        command = Command(tmp_path / "log", *commands(road, out)[name], watch=watch)
        assert command.wait() == 0, command.log.read_text()
        assert watch.left(tmp_path) == []


def test_a_demo_that_is_ended_in_some_stage_is_finished_by_the_next(road, tmp_path):
    rng = np.random.default_rng()
    check_demo(road, tmp_path, rng.choice(list(STAGES)[1:]), rng.uniform(0, 0.3))


@pytest.mark.only_slow
@pytest.mark.parametrize("delay", [0, 0.1, 0.5])
@pytest.mark.parametrize("stage", STAGES)
def test_a_demo_that_is_ended_anywhere_is_finished_by_the_next(road, tmp_path, stage, delay):
    check_demo(road, tmp_path, stage, delay)


def check_demo(road, tmp_path, stage, delay):
    """End a demo by SIGTERM so long after a stage began; run it again and compare all that it made."""
    out = tmp_path / "demo"
    arguments = ["demo", "--config", "tiny", "--out", out, *SMALL]
    for name in STAGES[stage]:
        shutil.copytree(road / name, out / name)
    with Watch(tmp_path / "tmp") as watch:
        command = Command(tmp_path / "log", *arguments, watch=watch, spawn=True)
        wait_until(lambda: f"== {stage} ..." in command.log.read_text() or not command.is_running())
        wait_until(lambda: not command.is_running(), delay)
        command.send(signal.SIGTERM)
        code = command.wait()
        assert code in (0, 143), command.log.read_text()  # it may be over by then
        assert watch.left(out) == []
        command = Command(tmp_path / "log", *arguments, watch=watch, spawn=True)
        assert command.wait() == 0, command.log.read_text()
        assert watch.left(out) == []
    for name in ("data", "tokens", "world"):
        assert hashes(out / name) == hashes(road / name), name
    assert numbers_of_report(out / "report") == numbers_of_report(road / "report")
    for name in ("rollout.mp4", "rollout.png", "paper.png"):
        assert (out / name).read_bytes() == (road / name).read_bytes()
