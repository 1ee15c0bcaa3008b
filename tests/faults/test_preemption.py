"""SIGTERM and SIGUSR1 end training after the step it is in, with a checkpoint and an exit code that says so."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support import programs
from support.fault_tools import Command, Watch, forget_what_the_launcher_leaves, hashes, wait_until
from support.training import finish, start, train_held

from worldvq.errors import StoppedError
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.signals import SIGNALS, StopAtOnce, StopWhenSaved

SETTINGS = {"steps": 40, "batch_size": 8, "log_every": 5, "save_every": 15, "precision": "no"}
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 138}


def last_step(out):
    return (Checkpoints(out / "run" / "checkpoints", 2).steps() or [0])[-1]


def steps_begun(out, rank=0):
    path = out / f"ids.{rank}"
    return len(path.read_text().splitlines()) if path.is_file() else 0


HELD = 4


def start_held(out, count=1):
    """Processes that wait in the fifth step until there is a file ``go``."""
    jobs = start(count, out / "x", train_held, str(out), SETTINGS, HELD)
    assert wait_until(lambda: all(steps_begun(out, rank) == HELD + 1 for rank in range(count))), jobs[0].log.read_text()
    return jobs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert finish(start(1, out / "x", train_held, str(out), SETTINGS)) == [0]
    return out


def final(out):
    return hashes(out / "run" / "checkpoints" / f"step_{SETTINGS['steps']:08d}")


@pytest.mark.parametrize("signum", CODES)
def test_it_is_saved_within_a_step_and_the_same_command_continues(tmp_path, whole, signum):
    (job,) = start_held(tmp_path)
    job.kill(signum)
    job.kill(signum)  # as often comes with a launcher: the second one changes nothing
    (tmp_path / "go").touch()
    assert job.wait() == CODES[signum]
    assert last_step(tmp_path) == HELD + 2  # noticed with what the next step exchanges
    said = job.log.read_text()
    assert f"stopped by {signal.Signals(signum).name}; run the same command again" in said
    assert "Traceback" not in said and "what comes after" not in said
    assert finish(start(1, tmp_path / "x", train_held, str(tmp_path), SETTINGS)) == [0]
    assert final(tmp_path) == final(whole)


@pytest.mark.parametrize("where", ["write", "picture"])
def test_saving_and_drawing_are_not_interrupted(tmp_path, where):
    settings = {**SETTINGS, "picture_every": 15}
    (job,) = start(1, tmp_path / "x", train_held, str(tmp_path), settings, None, where, signal.SIGUSR1)
    assert job.wait() == 138
    # Noticed after the step that follows; saved then.
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).steps() == [15, 16]
    assert (tmp_path / "picture.15").read_text() == "whole"
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_signal_in_the_last_save_ends_the_program_when_all_is_done(tmp_path):
    settings = {**SETTINGS, "steps": 3}
    (job,) = start(1, tmp_path / "x", train_held, str(tmp_path), settings, None, "write", signal.SIGTERM)
    assert job.wait() == 143
    assert last_step(tmp_path) == 3 and "what comes after training" not in job.log.read_text()
    assert finish(start(1, tmp_path / "x", train_held, str(tmp_path), settings)) == [0]


def test_ctrl_c_stays_what_it_was(tmp_path):
    (job,) = start_held(tmp_path)
    job.kill(signal.SIGINT)
    assert job.wait() == 1  # multiprocessing's code for an exception
    assert "KeyboardInterrupt" in job.log.read_text() and last_step(tmp_path) == 0


def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_step(tmp_path):
    jobs = start_held(tmp_path, 2)
    jobs[1].kill(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert [job.wait() for job in jobs] == [143, 143]
    assert last_step(tmp_path) == HELD + 2


CPU2 = programs.ROOT / "configs/accelerate/cpu2.yaml"
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(CPU2)]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TORCHRUN += ["--signals_to_handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]


def launch(launcher, out, watch):
    """Two processes that train until they are ended."""
    words = [sys.executable, "-m", *launcher, str(programs.ROOT / "tests/support/training.py"), str(out)]
    given = programs.environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS=1, **watch.mark)
    with (out / "log").open("wb") as log:
        settings = json.dumps({**SETTINGS, "steps": 10**6})
        return subprocess.Popen([*words, settings], env=given, stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("launcher", "signum", "to", "only_slow"),
    [
        (ACCELERATE, signal.SIGTERM, "all", False),
        (TORCHRUN, signal.SIGUSR1, "the launcher", False),
        (ACCELERATE, signal.SIGTERM, "the launcher", True),
        (ACCELERATE, signal.SIGUSR1, "the processes", True),
    ],
    ids=["accelerate-TERM-all", "torchrun-USR1-launcher", "accelerate-TERM-launcher", "accelerate-USR1-processes"],
)
def test_under_a_launcher(tmp_path, slow, launcher, signum, to, only_slow):
    """As docs/scaling.md says: saved by both, nothing left; the exit code of the launcher itself is 1."""
    if only_slow and not slow:
        pytest.skip("with --slow")
    with Watch(tmp_path / "tmp") as watch:
        launcher = launch(launcher, tmp_path, watch)
        assert wait_until(lambda: steps_begun(tmp_path) >= 3), (tmp_path / "log").read_text()
        workers = psutil.Process(launcher.pid).children(recursive=True)
        if to != "the processes":
            launcher.send_signal(signum)
        if to != "the launcher":
            for worker in workers:
                worker.send_signal(signum)
        assert launcher.wait(120) == 1, (tmp_path / "log").read_text()
        assert last_step(tmp_path) >= 3
        said = (tmp_path / "log").read_text()
        assert said.count(f"StoppedError: stopped by {signal.Signals(signum).name}") == 2, said
        forget_what_the_launcher_leaves(watch)
        assert not watch.left(tmp_path / "run")


def test_under_a_launcher_a_process_that_is_killed_ends_the_other(tmp_path):
    with Watch(tmp_path / "tmp") as watch:
        launcher = launch(ACCELERATE, tmp_path, watch)
        assert wait_until(lambda: steps_begun(tmp_path) >= 20), (tmp_path / "log").read_text()
        psutil.Process(launcher.pid).children(recursive=True)[1].kill()
        assert launcher.wait(120) == 1, (tmp_path / "log").read_text()
        assert last_step(tmp_path) >= 15
        forget_what_the_launcher_leaves(watch)
        assert not watch.left(tmp_path / "run")


@pytest.mark.parametrize("signum", CODES)
def test_the_command_line_ends_with_the_code_of_the_signal(tmp_path, road, signum):
    out = tmp_path / "tokenizer"
    with Watch(tmp_path / "tmp") as watch:
        words = ["train", "tokenizer", "--config", "tiny", "--data", road / "data", "--out", out, "env.size=[16,16]"]
        words += ["tokenizer.frame_size=[16,16]", "tokenizer_training.steps=100000"]
        command = Command(tmp_path / "log", *words, watch=watch)
        assert wait_until((out / "metrics.jsonl").is_file), (tmp_path / "log").read_text()
        command.send(signum)
        assert command.wait() == CODES[signum]
        assert not watch.left(out)
    assert Checkpoints(out / "checkpoints", 2).steps()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last == f"worldvq: stopped by {signal.Signals(signum).name}; run the same command again to continue"


def test_handlers_are_put_back_and_what_cleans_up_runs():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    cleaned = []
    with pytest.raises(StoppedError) as stopped, StopAtOnce():
        with StopWhenSaved() as stop:
            assert stop.signum == 0
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while it cleans up: ignored
            cleaned.append(True)
    assert stopped.value.exit_code == 138 and cleaned
    with pytest.raises(StoppedError), StopWhenSaved():
        os.kill(os.getpid(), signal.SIGTERM)
        cleaned.append("not interrupted")
    assert len(cleaned) == 2
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("arguments", [["--version"], ["data", "info", "absent"]])
def test_a_signal_that_comes_when_all_is_said_changes_no_exit_code(arguments, signum):
    """As a program ends: it had its say, and Python takes its time to clean up."""
    code = "import atexit, os, signal, sys\nfrom worldvq.cli.main import main\n"
    code += f"atexit.register(os.kill, os.getpid(), {int(signum)})\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, env=programs.environment()
    )
    assert done.returncode == (0 if arguments == ["--version"] else 2), done.stderr
