"""Tokenizing that is ended goes on where it was, and several processes write what one does."""

import os
import shutil
import signal
import time

import pytest
from support.command_line import run
from support.fault_tools import Command, Watch, hashes, launch, only_slow, start_ranks, wait_until

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


def end_in_the_middle(start, out, total, signum):
    """Start processes, end them when each has written something, and return their exit codes and how long it took."""
    for _ in range(10):
        commands = start()

        def all_at_work() -> bool:
            at_work = [index for index in out.glob("index*.jsonl") if index.stat().st_size]
            return len(at_work) == len(commands) or not any(command.is_running() for command in commands)  # noqa: B023

        assert wait_until(all_at_work, 60, every=0.0005)
        begun = time.monotonic()
        for command in commands:
            command.send(signum)
        codes = [command.wait(10) for command in commands]
        if 0 not in codes and len(listed(out)) < total:  # or all was done before the signal came
            return codes, time.monotonic() - begun
        shutil.rmtree(out)
    raise AssertionError("every run was over before its signal came")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, *map(only_slow, (signal.SIGUSR1, signal.SIGINT))])
def test_what_was_committed_is_not_tokenized_again(road, tmp_path, written, signum):
    out, total = tmp_path / "tokens", len(listed(road / "data"))
    with Watch(tmp_path / "tmp") as watch:
        (code,), seconds = end_in_the_middle(
            lambda: [Command(tmp_path / "log", *arguments(road, out), watch=watch)], out, total, signum
        )
        killed = signum == signal.SIGKILL
        assert code == (-signum if killed else 128 + signum) and seconds < 10
        assert watch.left(*([] if killed else [out])) == []
        kept = listed(out)
        result = run(*arguments(road, out))
        assert result.returncode == 0, result.stderr
        assert watch.left(out) == []
    assert kept and sorted(written + kept) == list(range(total))
    assert hashes(out) == hashes(road / "tokens")


@pytest.mark.parametrize("signum", [signal.SIGUSR1, *map(only_slow, (signal.SIGTERM, signal.SIGKILL))])
@pytest.mark.parametrize("count", [1, only_slow(3)])
def test_several_processes_write_what_one_does_and_are_continued_by_another_number(
    road, tmp_path, written, signum, count
):
    out, total = tmp_path / "tokens", len(listed(road / "data"))
    with Watch(tmp_path / "tmp") as watch:
        codes, seconds = end_in_the_middle(
            lambda: start_ranks(tmp_path / "log", 2, *arguments(road, out), watch=watch), out, total, signum
        )
        assert codes == [-signum if signum == signal.SIGKILL else 128 + signum] * 2 and seconds < 10
        kept = listed(out)
        if count == 1:
            result = run(*arguments(road, out))
            assert result.returncode == 0, result.stderr
            assert kept and sorted(written + kept) == list(range(total))
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
@pytest.mark.parametrize("signum", [signal.SIGTERM])
def test_under_accelerate_launch(road, tmp_path, signum):
    out, total = tmp_path / "tokens", len(listed(road / "data"))
    with Watch(tmp_path / "tmp") as watch:
        process = launch(tmp_path / "log", *arguments(road, out), watch=watch)
        assert wait_until(lambda: listed(out) or process.poll() is not None, 60, every=0.001)
        process.send_signal(signum)
        begun = time.monotonic()
        ended = process.wait(20)
        assert time.monotonic() - begun < 10 and (ended != 0) == (len(listed(out)) < total)
        assert [name for name in watch.left(out) if "torchelastic_" not in name] == []  # that is the launcher's own
        process = launch(tmp_path / "log", *arguments(road, out), watch=watch)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
        assert [name for name in watch.left(out) if "torchelastic_" not in name] == []
    assert hashes(out) == hashes(road / "tokens")


def test_one_writer(road, tmp_path, written):
    out = tmp_path / "tokens"
    out.mkdir()
    lock = Lock(out)
    result = run(*arguments(road, out))
    lock.release()
    assert result.returncode == 1 and f"{out}: process {os.getpid()}" in result.stderr and not written
