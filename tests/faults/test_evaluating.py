"""An evaluation that is ended goes on where it was, and several processes measure what one does."""

import os
import signal
import time

import pytest
from support.command_line import run
from support.fault_tools import Command, Watch, launch, numbers_of_report, only_slow, start_ranks, wait_until

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
    result = run(*arguments(road, out))
    assert result.returncode == 0, result.stderr
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


def start_and_end(start, out, signum, end=None):
    """Start processes, end them when each has finished a part, and return their exit codes and how long that took.

    Args:
        start: Starts the commands.
        out: Where their report goes.
        signum: What they are sent.
        end: Sends it, where not to each of them.
    """
    for _ in range(5):
        commands = start()

        def all_at_work() -> bool:
            at_work = {int(path.stem) % len(commands) for path in parts(out)}  # noqa: B023
            return len(at_work) == len(commands) or not any(command.is_running() for command in commands)  # noqa: B023

        assert wait_until(all_at_work, 60, every=0.001)
        begun = time.monotonic()
        for command in commands:
            (end or Command.send)(command, signum)
        codes = [command.wait(10) for command in commands]
        if not (out / "report.json").exists():  # or all was done before the signal came
            return codes, time.monotonic() - begun
        for file in out.rglob("*"):
            file.unlink() if file.is_file() else None
    raise AssertionError("every run was over before its signal came")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, *map(only_slow, (signal.SIGUSR1, signal.SIGINT))])
def test_what_was_finished_is_not_computed_again(road, whole, tmp_path, computed, signum):
    out = tmp_path / "report"
    with Watch(tmp_path / "tmp") as watch:
        (code,), seconds = start_and_end(
            lambda: [Command(tmp_path / "log", *arguments(road, out), watch=watch)], out, signum
        )
        killed = signum == signal.SIGKILL
        assert code == (-signum if killed else 128 + signum) and seconds < 10
        assert watch.left(*([] if killed else [out])) == []
        kept = [int(path.stem) for path in parts(out)]
        assert kept and len(kept) < NUM_PARTS
        (out / ".report.json.1.tmp").write_bytes(b"of a writer that was killed")
        result = run(*arguments(road, out))
        assert result.returncode == 0, result.stderr
        assert sorted(computed + kept) == list(range(NUM_PARTS))
        assert watch.left(out) == []
    assert numbers_of_report(out) == whole
    assert not parts(out) and not list(out.glob(".parts*"))


@pytest.mark.parametrize("signum", [signal.SIGUSR1, only_slow(signal.SIGTERM)])
def test_several_processes_measure_what_one_does_and_are_continued_by_another_number(
    road, whole, tmp_path, computed, signum
):
    out, changes = tmp_path / "report", arguments(road, tmp_path / "report")
    with Watch(tmp_path / "tmp") as watch:
        codes, seconds = start_and_end(lambda: start_ranks(tmp_path / "log", 2, *changes, watch=watch), out, signum)
        assert codes == [128 + signum] * 2 and seconds < 10
        kept = len(parts(out))
        ranks = start_ranks(tmp_path / "log", 3, *changes, watch=watch)
        assert [rank.wait() for rank in ranks] == [0, 0, 0], [rank.log.read_text() for rank in ranks]
        assert watch.left(out) == []
    assert kept and numbers_of_report(out) == whole and not list(out.glob(".parts*"))
    assert "dB" in ranks[0].log.read_text() and not ranks[1].log.read_text()  # one speaks for all


def test_the_first_process_waits_for_the_slowest(road, whole, tmp_path):
    out = tmp_path / "report"
    with Watch(tmp_path / "tmp") as watch:
        first, second = start_ranks(tmp_path / "log", 2, *arguments(road, out), watch=watch)
        assert wait_until(lambda: len(parts(out)) >= 1, 60, every=0.001)
        second.send(signal.SIGSTOP)
        try:
            mine = {number for number in range(NUM_PARTS) if number % 2 == 0}
            assert wait_until(lambda: mine <= {int(path.stem) for path in parts(out)}, 60)
            if len(parts(out)) < NUM_PARTS:  # or it was not slow enough
                assert not wait_until(lambda: not first.is_running(), 0.5) and not (out / "report.json").exists()
        finally:
            second.send(signal.SIGCONT)
        assert [first.wait(), second.wait()] == [0, 0], first.log.read_text() + second.log.read_text()
        assert watch.left(out) == []
    assert numbers_of_report(out) == whole


def test_under_accelerate_launch(road, whole, tmp_path, slow):
    """The launcher passes SIGTERM on, and says itself that it did not finish."""
    out = tmp_path / "report"
    with Watch(tmp_path / "tmp") as watch:
        process = launch(tmp_path / "log", *arguments(road, out), watch=watch)
        assert wait_until(lambda: parts(out) or process.poll() is not None, 60, every=0.001)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(20) != 0 and time.monotonic() - begun < 10
        assert [name for name in watch.left(out) if "torchelastic_" not in name] == []  # that is the launcher's own
        assert parts(out) and not (out / "report.json").exists(), (tmp_path / "log").read_text()
        if slow:
            process = launch(tmp_path / "log", *arguments(road, out), watch=watch)
            assert process.wait(60) == 0, (tmp_path / "log").read_text()
        else:
            assert run(*arguments(road, out)).returncode == 0
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
