"""A full disk, for real: what was there stays as it was, the error says where and what is left, a rerun finishes."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.command_line import run
from support.fault_tools import SMALL, Command, Watch, hashes, only_slow

from worldvq.files import atomic

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs limits on files and disks")
SIZE = 96 * 2**20
COMMANDS = (
    *("record", "train-tokenizer", "tokenize", "train-dynamics", "train-dynamics-again", "evaluate", "imagine"),
    *("preview", "merge"),
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small disk of its own."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "worldvq-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk, which takes root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def prepare(name, road, folder):
    """Put what an earlier run left into a folder; return the command that goes on from there."""
    few = ["--config", "tiny", *SMALL]
    world = ["--world", road / "world", "--data", road / "data", "--device", "cpu"]
    data = ["--data", road / "data"]
    out = folder / name
    if name == "record":
        shutil.copytree(road / "data", out)
        return ["record", "worldvq/Maze-v0", "--out", out, *few, "record.frames=700", "--workers", 1]
    if name == "train-tokenizer":
        copy_run(road / "tokenizer", out)
        return ["train", "tokenizer", *data, "--out", out, *few]
    if name == "tokenize":
        shutil.copytree(road / "tokens", out)
        index = out / "index.jsonl"
        lines = index.read_text().splitlines(keepends=True)
        for line in lines[-8:]:
            (out / json.loads(line)["file"]).unlink()
        index.write_text("".join(lines[:-8]))
        return ["tokenize", "--tokenizer", road / "tokenizer", *data, "--out", out, "--device", "cpu"]
    if name.startswith("train-dynamics"):
        if name == "train-dynamics":
            copy_run(road / "dynamics", out)
        else:  # all is done; the world is written again
            shutil.copytree(road / "dynamics", out)
        shutil.copytree(road / "world", folder / "world")
        given = ["--tokens", road / "tokens", "--tokenizer", road / "tokenizer", "--world", folder / "world"]
        return ["train", "dynamics", *given, "--out", out, *few]
    if name == "evaluate":
        shutil.copytree(road / "report", out)
        protocol = ["--context", 2, "--horizon", 3, "--clips", 6, "--batch-size", 2]
        return ["evaluate", *world, "--out", out, *protocol]
    if name == "imagine":
        out.mkdir()
        for suffix in (".mp4", ".png"):
            shutil.copy(road / f"rollout{suffix}", out)
        return ["imagine", *world, "--out", out / "rollout.mp4", "--context", 2, "--frames", 4, "--seed", 3]
    if name == "preview":
        assert run("data", "preview", road / "data", "--out", out).returncode == 0
        return ["data", "preview", road / "data", "--out", out]
    shutil.copytree(road / "data", out)
    lines = (out / "index.jsonl").read_text().splitlines(keepends=True)
    for shard in range(2):
        (out / f"index.{shard}-of-2.jsonl").write_text("".join(lines[shard::2]))
    (out / "index.jsonl").unlink()
    return ["data", "merge", out]


def copy_run(run_folder, out):
    """A training run without its last checkpoint."""
    shutil.copytree(run_folder, out)
    *_, last = sorted((out / "checkpoints").iterdir())
    shutil.rmtree(last)


class Full:
    """Leaves so many bytes on a disk until it is left."""

    def __init__(self, folder, leave):
        self.filler = folder / "filler"
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - leave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.filler.unlink()


class Limit:
    """No file may grow over so many bytes."""

    def __init__(self, size):
        self.size, self.before = size, resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def execute(name, command, log, watch):
    """Run a command; one that starts processes in one of its own, for they end with it."""
    if name != "record":
        return run(*command)
    process = Command(log, *command, watch=watch, spawn=True)
    code = process.wait()
    return SimpleNamespace(returncode=code, stdout="", stderr=log.read_text())


def contents(folder):
    """Hash of every file, but of those that only grow: of them, the lines."""
    lines = {path: (folder / path).read_bytes().splitlines() for path in hashes(folder) if path.endswith(".jsonl")}
    return {**hashes(folder), **lines}


def changed(before, after):
    """Files that were there and are not as they were. A metrics.jsonl loses the steps that are done again."""
    return [
        path
        for path, old in before.items()
        if not path.endswith("metrics.jsonl")
        and (after.get(path, [])[: len(old)] != old if isinstance(old, list) else after.get(path) != old)
    ]


def check_error(result, *folders):
    """One line that says where, in one of these folders, and what is left."""
    assert result.returncode == 1, result.stdout + result.stderr
    *notes, error, end = result.stderr.split("\n")
    assert error.startswith("worldvq: error: ") and end == "", result.stderr
    assert any(str(folder) in error for folder in folders), error
    assert all(line.startswith(("note:", "recording '")) for line in notes), notes
    assert re.search(r"[\d,]+ bytes free", error), error


@pytest.mark.parametrize(
    ("how", "name"),
    [
        only_slow(how, name) if how == "reserve" or (how, name) == ("limit", "record") else (how, name)
        for how in ("full", "limit", "reserve")
        for name in COMMANDS
    ],
)
def test_nothing_is_lost_where_space_runs_out(how, name, road, disk, tmp_path, monkeypatch):
    if how == "full":  # for real: the system says so, not the look at what is free before
        monkeypatch.setattr(atomic, "FREE_RESERVE", 0)
    folder = disk / how / name
    folder.mkdir(parents=True)
    command = prepare(name, road, folder)
    before = contents(folder)
    with Watch(tmp_path / "tmp") as watch:
        least = 16_384 if name == "train-dynamics-again" else 4096
        with Limit(1000) if how == "limit" else Full(disk, least if how == "full" else 20 * 2**20):
            result = execute(name, command, tmp_path / "log", watch)
        check_error(result, folder, watch.temporary)
        assert changed(before, contents(folder)) == []
        assert watch.left(folder) == []
        result = execute(name, command, tmp_path / "log", watch)
        assert result.returncode == 0, result.stdout + result.stderr
        assert watch.left(folder) == []
    if name in ("tokenize", "merge"):
        assert hashes(folder / name) == hashes(road / ("tokens" if name == "tokenize" else "data"))
    if name.startswith("train"):
        model = "tokenizer" if name == "train-tokenizer" else "dynamics"
        weights = "checkpoints/step_00000004/model.safetensors"
        assert (folder / name / weights).read_bytes() == (road / model / weights).read_bytes()
    shutil.rmtree(folder)


@pytest.mark.only_slow
@pytest.mark.parametrize("attempt", range(8))
@pytest.mark.parametrize("name", COMMANDS)
def test_wherever_it_runs_out(name, attempt, road, disk, tmp_path, monkeypatch):
    """A random size of what is left, so that each write is once the one that fails."""
    monkeypatch.setattr(atomic, "FREE_RESERVE", 0)
    leave = int(10 ** np.random.default_rng().uniform(3.5, 6))
    folder = disk / f"{name}-{attempt}"
    folder.mkdir(parents=True)
    command = prepare(name, road, folder)
    before = contents(folder)
    with Watch(tmp_path / "tmp") as watch:
        with Full(disk, leave):
            result = execute(name, command, tmp_path / "log", watch)
        if result.returncode:  # or it was enough
            check_error(result, folder, watch.temporary)
            # Commands that write several files may have replaced some, each of them whole.
            assert name in ("evaluate", "imagine", "preview") or changed(before, contents(folder)) == [], leave
            assert watch.left(folder) == [], leave
            result = execute(name, command, tmp_path / "log", watch)
            assert result.returncode == 0, (leave, result.stderr)
    shutil.rmtree(folder)
