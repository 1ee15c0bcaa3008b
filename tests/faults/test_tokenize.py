"""Tokenizing that is ended goes on where it was, and several processes write what one does."""

import os
import signal

import pytest
from support.command_line import run, succeed
from support.fault_tools import (
    Command,
    Watch,
    forget_what_the_launcher_leaves,
    hashes,
    launch,
    only_slow,
    start_ranks,
)
from support.hold import Hold

from worldvq.data.tokens import TokenStore
from worldvq.files.lock import Lock


def arguments(road, out):
    return ["tokenize", "--tokenizer", road / "tokenizer", "--data", road / "data", "--out", out, "--device", "cpu"]


@pytest.fixture
def written(monkeypatch):
    """Numbers of the episodes that this process writes."""
    seen, write = [], TokenStore.write

    def counting(self, number, *rest):
        seen.append(number)
        return write(self, number, *rest)

    monkeypatch.setattr(TokenStore, "write", counting)
    return seen


def listed(out):
    """Numbers of the committed episodes, of shards too."""
    lines = [line for index in out.glob("index*.jsonl") for line in index.read_text().splitlines(keepends=True)]
    return sorted(int(line.split(":")[1].split(",")[0]) for line in lines if line.endswith("\n"))


def hold(tmp_path):
    """Where a process has written its second episode."""
    return Hold(tmp_path / "hold", "worldvq.data.tokens:TokenStore.write", 2)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, *map(only_slow, (signal.SIGUSR1, signal.SIGINT))])
def test_what_was_committed_is_not_tokenized_again(road, tmp_path, written, signum):
    out, second, killed = tmp_path / "tokens", hold(tmp_path), signum == signal.SIGKILL
    with Watch(tmp_path / "tmp") as watch:
        command = Command(tmp_path / "log", *arguments(road, out), watch=watch, **second.environment)
        second.wait()
        command.send(signum)
        assert command.wait() == (-signum if killed else 128 + signum)
        assert watch.left(*([] if killed else [out])) == []
        assert listed(out) == [0, 1]
        succeed(*arguments(road, out))
        assert watch.left(out) == []
    assert written == listed(road / "data")[2:]
    assert hashes(out) == hashes(road / "tokens")


@pytest.mark.parametrize("signum", [signal.SIGUSR1, *map(only_slow, (signal.SIGTERM, signal.SIGKILL))])
@pytest.mark.parametrize("count", [1, only_slow(3)])
def test_several_processes_write_what_one_does_and_are_continued_by_another_number(
    road, tmp_path, written, signum, count
):
    out, second = tmp_path / "tokens", hold(tmp_path)
    with Watch(tmp_path / "tmp") as watch:
        ranks = start_ranks(tmp_path / "log", 2, *arguments(road, out), watch=watch, **second.environment)
        second.wait(2)
        for rank in ranks:
            rank.send(signum)
        assert [rank.wait() for rank in ranks] == [-signum if signum == signal.SIGKILL else 128 + signum] * 2
        assert listed(out) == [0, 1, 2, 3]
        if count == 1:
            succeed(*arguments(road, out))
            assert written == listed(road / "data")[4:]
        else:
            ranks = start_ranks(tmp_path / "log", count, *arguments(road, out), watch=watch)
            assert [rank.wait() for rank in ranks] == [0] * count, [rank.log.read_text() for rank in ranks]
        assert watch.left(out) == []
    assert hashes(out) == hashes(road / "tokens")  # the index too, line by line
    assert not list(out.glob("index.*-of-*"))


def test_three_processes_from_start_to_end(road, tmp_path):
    out = tmp_path / "tokens"
    with Watch(tmp_path / "tmp") as watch:
        ranks = start_ranks(tmp_path / "log", 3, *arguments(road, out), watch=watch)
        assert [rank.wait() for rank in ranks] == [0, 0, 0], [rank.log.read_text() for rank in ranks]
        assert watch.left(out) == []
    assert hashes(out) == hashes(road / "tokens")
    assert "tokens of" in ranks[0].log.read_text() and not ranks[2].log.read_text()  # one speaks for all


@pytest.mark.only_slow
def test_under_accelerate_launch(road, tmp_path):
    out, second = tmp_path / "tokens", hold(tmp_path)
    with Watch(tmp_path / "tmp") as watch:
        process = launch(tmp_path / "log", *arguments(road, out), watch=watch, **second.environment)
        second.wait(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0 and listed(out) == [0, 1, 2, 3]
        forget_what_the_launcher_leaves(watch)
        assert watch.left(out) == []
        process = launch(tmp_path / "log", *arguments(road, out), watch=watch)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
        forget_what_the_launcher_leaves(watch)
        assert watch.left(out) == []
    assert hashes(out) == hashes(road / "tokens")


def test_one_writer(road, tmp_path, written):
    out = tmp_path / "tokens"
    out.mkdir()
    lock = Lock(out)
    result = run(*arguments(road, out))
    lock.release()
    assert result.returncode == 1 and f"{out}: process {os.getpid()}" in result.stderr and not written
