"""An evaluation that is ended goes on where it was, and several processes measure what one does."""

import os
import signal

import pytest
from support.command_line import run, succeed
from support.fault_tools import (
    Command,
    Watch,
    forget_what_the_launcher_leaves,
    launch,
    numbers_of_report,
    only_slow,
    start_ranks,
    wait_until,
)
from support.hold import Hold

from worldvq.evaluation import protocol as module
from worldvq.files.lock import Lock

PROTOCOL = ["--context", 2, "--horizon", 3, "--clips", 24, "--batch-size", 1, "--device", "cpu"]
NUM_PARTS = 24


def arguments(road, out, *changes):
    return ["evaluate", "--world", road / "world", "--data", road / "data", "--out", out, *PROTOCOL, *changes]


def parts(out):
    return sorted(out.glob(".parts-*/*.safetensors"))


@pytest.fixture(scope="module")
def whole(road, tmp_path_factory):
    """An evaluation that nobody ended."""
    out = tmp_path_factory.mktemp("whole") / "report"
    succeed(*arguments(road, out))
    report, drawn = numbers_of_report(out)
    assert report["num_clips"] == NUM_PARTS
    return report, drawn


@pytest.fixture
def computed(monkeypatch):
    """Numbers of the parts that this process computes."""
    seen, collect = [], module._collect

    def counting(plan, missing, console):
        for number, part in collect(plan, missing, console):
            seen.append(number)
            yield number, part

    monkeypatch.setattr(module, "_collect", counting)
    return seen


def hold(tmp_path):
    """Where a process has finished its first part."""
    return Hold(tmp_path / "hold", "worldvq.evaluation.parts:Parts.write")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, *map(only_slow, (signal.SIGUSR1, signal.SIGINT))])
def test_what_was_finished_is_not_computed_again(road, whole, tmp_path, computed, signum):
    out, first_part, killed = tmp_path / "report", hold(tmp_path), signum == signal.SIGKILL
    with Watch(tmp_path / "tmp") as watch:
        command = Command(tmp_path / "log", *arguments(road, out), watch=watch, **first_part.environment)
        first_part.wait()
        command.send(signum)
        assert command.wait() == (-signum if killed else 128 + signum)
        assert watch.left(*([] if killed else [out])) == []
        assert [path.stem for path in parts(out)] == ["000000"]
        (out / ".report.json.1.tmp").write_bytes(b"of a writer that was killed")
        succeed(*arguments(road, out))
        assert computed == list(range(1, NUM_PARTS))
        assert watch.left(out) == []
    assert numbers_of_report(out) == whole
    assert not parts(out) and not list(out.glob(".parts*"))


@pytest.mark.parametrize("signum", [signal.SIGUSR1, only_slow(signal.SIGTERM)])
def test_several_processes_measure_what_one_does_and_are_continued_by_another_number(road, whole, tmp_path, signum):
    out, first_part, changes = tmp_path / "report", hold(tmp_path), arguments(road, tmp_path / "report")
    with Watch(tmp_path / "tmp") as watch:
        ranks = start_ranks(tmp_path / "log", 2, *changes, watch=watch, **first_part.environment)
        first_part.wait(2)
        for rank in ranks:
            rank.send(signum)
        assert [rank.wait() for rank in ranks] == [128 + signum] * 2
        assert [path.stem for path in parts(out)] == ["000000", "000001"]
        ranks = start_ranks(tmp_path / "log", 3, *changes, watch=watch)
        assert [rank.wait() for rank in ranks] == [0, 0, 0], [rank.log.read_text() for rank in ranks]
        assert watch.left(out) == []
    assert numbers_of_report(out) == whole and not list(out.glob(".parts*"))
    assert "dB" in ranks[0].log.read_text() and not ranks[1].log.read_text()  # one speaks for all


def test_the_first_process_waits_for_the_slowest(road, whole, tmp_path):
    out, first_part, mine = tmp_path / "report", hold(tmp_path), range(0, NUM_PARTS, 2)
    with Watch(tmp_path / "tmp") as watch:
        ranks = start_ranks(tmp_path / "log", 2, *arguments(road, out), watch=watch, **first_part.environment)
        first_part.wait(2)
        ranks[1].send(signal.SIGSTOP)
        first_part.release()
        try:
            assert wait_until(lambda: {int(path.stem) for path in parts(out)} == {1, *mine})
            assert not wait_until(lambda: not ranks[0].is_running(), 0.5) and not (out / "report.json").exists()
        finally:
            ranks[1].send(signal.SIGCONT)
        assert [rank.wait() for rank in ranks] == [0, 0], [rank.log.read_text() for rank in ranks]
        assert watch.left(out) == []
    assert numbers_of_report(out) == whole


def test_under_accelerate_launch(road, whole, tmp_path, slow):
    """The launcher passes SIGTERM on, and says itself that it did not finish."""
    out, first_part = tmp_path / "report", hold(tmp_path)
    with Watch(tmp_path / "tmp") as watch:
        process = launch(tmp_path / "log", *arguments(road, out), watch=watch, **first_part.environment)
        first_part.wait(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0
        forget_what_the_launcher_leaves(watch)
        assert watch.left(out) == []
        assert len(parts(out)) == 2 and not (out / "report.json").exists(), (tmp_path / "log").read_text()
        if slow:
            process = launch(tmp_path / "log", *arguments(road, out), watch=watch)
            assert process.wait(120) == 0, (tmp_path / "log").read_text()
        else:
            succeed(*arguments(road, out))
    assert numbers_of_report(out) == whole


def test_a_damaged_part_is_computed_again(road, whole, tmp_path, computed, monkeypatch):
    out = tmp_path / "report"
    write_page = module.write_page
    monkeypatch.setattr(module, "write_page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(*arguments(road, out)).returncode == 130
    assert len(parts(out)) == NUM_PARTS == len(computed)
    first, second, third, *_ = parts(out)
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:100])
    third.write_bytes(b"")
    monkeypatch.setattr(module, "write_page", write_page)
    computed.clear()
    assert run(*arguments(road, out)).returncode == 0
    assert computed == [0, 1, 2] and numbers_of_report(out) == whole


def test_another_protocol_or_dataset_starts_afresh(road, tmp_path, computed, monkeypatch):
    out = tmp_path / "report"
    few = ["--clips", 4]
    monkeypatch.setattr(module, "write_page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for changes, expected in ((few, 4), (few, 0), (["--clips", 4, "--seed", 1], 4), (["--clips", 3], 3), (few, 4)):
        computed.clear()
        assert run(*arguments(road, out, *changes)).returncode == 130
        assert len(computed) == expected
        assert len(list(out.glob(".parts*"))) == 1


def test_one_writer(road, tmp_path, computed):
    out = tmp_path / "report"
    out.mkdir()
    lock = Lock(out)
    result = run(*arguments(road, out))
    lock.release()
    assert result.returncode == 1 and f"{out}: process {os.getpid()}" in result.stderr and not computed
    assert [path.name for path in out.iterdir()] == [".lock"]
