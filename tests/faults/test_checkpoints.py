"""Checkpoints are all or nothing: processes that save are killed, at random and at each of their system calls."""

import hashlib
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load, save
from support.fault_tools import wait_until
from support.training import Job
from torch import nn

from worldvq.errors import CorruptFileError
from worldvq.files.reading import seal
from worldvq.nn.matrix import Matrix
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer


def parts(step):
    """A model and an optimizer whose every number is the step."""
    network = nn.Sequential(Matrix(8, 8), nn.Linear(8, 8))
    optimizer = make_optimizer(network, OptimizerConfig(kind="muon"))
    network(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(step)
            for value in optimizer.state[p].values():
                value.fill_(step)
    return network, optimizer


def save_for_ever(folder):
    checkpoints = Checkpoints(folder, 2)
    step = (checkpoints.steps() or [0])[-1]
    while True:
        step += 1
        checkpoints.save(step, *parts(step))


def save_until(folder, steps, fatal):
    """Save some steps, but die at the n-th system call that changes or opens a file."""
    made = [(step, *parts(step)) for step in steps]
    checkpoints = Checkpoints(folder, 2)
    calls = 0

    def count(event, arguments):
        nonlocal calls
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    for each in made:
        checkpoints.save(*each)


def newest(folder):
    """The step that loads, after a check that all of it is of that step."""
    checkpoints = Checkpoints(folder, 2)
    network, optimizer = parts(-1)
    step = checkpoints.load_newest(network, optimizer)
    if step:
        values = [*network.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
        assert len(values) == 3 + 1 + 2 * 3  # Muon keeps one value, AdamW three
        assert all((value == step).all() for value in values), step
    return step


FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors"]


def assert_all_are_whole(folder):
    """Whatever has the name of a checkpoint has its files, also while it is on its way out."""
    for path in folder.glob("step_*"):
        assert sorted(file.name for file in path.iterdir()) == FILES, path


def has_newer(folder, step):
    return (Checkpoints(folder, 2).steps() or [0])[-1] > step


def test_what_is_killed_while_saving_leaves_whole_checkpoints(tmp_path, slow):
    folder = tmp_path / "checkpoints"
    chance = random.Random(0)
    last = 0
    for _ in range(500 if slow else 50):
        job = Job(tmp_path / "log", save_for_ever, folder)
        assert wait_until(lambda last=last: has_newer(folder, last), every=0.001), job.log.read_text()
        time.sleep(chance.uniform(0, 0.02))
        job.kill()
        assert job.wait() == -signal.SIGKILL
        step = newest(folder)
        assert step > last
        assert_all_are_whole(folder)
        assert len(Checkpoints(folder, 2).steps()) >= min(2, step)
        last = step
    Checkpoints(folder, 2).clean()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("steps", [[4], [3]], ids=["the next one", "one that is there"])
def test_death_at_each_system_call_leaves_whole_checkpoints(tmp_path, steps):
    prepared = tmp_path / "prepared"
    for step in (1, 2, 3):
        Checkpoints(prepared, 2).save(step, *parts(step))
    code, fatal = -signal.SIGKILL, 0
    while code:
        fatal += 1
        folder = tmp_path / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(prepared, folder)
        code = Job(tmp_path / "log", save_until, folder, steps, fatal).wait()
        assert code in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
        assert_all_are_whole(folder)
        Checkpoints(folder, 2).clean()  # as a trainer that starts again does
        assert newest(folder) in (3, steps[0])
        assert len(Checkpoints(folder, 2).steps()) >= 2
        assert not list(folder.glob(".*"))
    assert fatal > 15  # it did die on the way
    assert newest(folder) == steps[0]


def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    for step in (1, 2):
        checkpoints.save(step, *parts(step))
    return checkpoints


def test_other_names_and_folders_without_a_manifest_are_no_checkpoints(tmp_path):
    checkpoints = saved(tmp_path)
    for name in ("step_abc", "step_1.bak", "step_00000009", "step_00000002 (copy)", "step_²²²²²²²²", "step_99999999"):
        (checkpoints.folder / name).mkdir()
    (checkpoints.folder / "step_00000077").write_text("a file")
    shutil.copytree(checkpoints.folder / "step_00000002", checkpoints.folder / "step_3")
    assert checkpoints.steps() == [1, 2] and newest(checkpoints.folder) == 2
    checkpoints.save(9, *parts(9))  # in the place of one without a manifest
    assert newest(checkpoints.folder) == 9


def test_a_checkpoint_under_another_number_is_refused(tmp_path):
    checkpoints = saved(tmp_path)
    shutil.copytree(checkpoints.folder / "step_00000002", checkpoints.folder / "step_00000005")
    with pytest.raises(CorruptFileError, match=r"step_00000005/manifest\.json.*to continue from step 2"):
        newest(checkpoints.folder)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_damage_is_named_with_the_way_out(tmp_path, file):
    checkpoints = saved(tmp_path)
    path = checkpoints.folder / "step_00000002" / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptFileError, match=rf"{file}.*delete .*step_00000002 to continue from step 1"):
        newest(checkpoints.folder)
    shutil.rmtree(path.parent)
    assert newest(checkpoints.folder) == 1
    path = checkpoints.folder / "step_00000001" / file
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="to start over"):
        newest(checkpoints.folder)


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    """Neither the model nor the optimizer, whichever of the two it is that does not fit."""
    checkpoints = saved(tmp_path)
    folder = checkpoints.folder / "step_00000002"
    good = {name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
    model, state = (load(data) for data in good.values())
    first = next(iter(sorted(state)))
    bad_states = [
        {key: value for key, value in state.items() if key != "1.exp_avg"},
        {**state, "99.exp_avg": torch.zeros(8)},
        {**state, "nonsense": torch.zeros(8)},
        {**state, "0.exp_avg": torch.zeros(8, 8)},
        {**state, "-1.exp_avg": torch.zeros(8)},
        {**state, first: state[first].double()},
        {**state, first: torch.zeros(3, 3)},
    ]
    bad_models = [{**model, "0.weight": model["0.weight"].half()}, {**model, "x": torch.zeros(1)}]
    for name, bads in (("model.safetensors", bad_models), ("optimizer.safetensors", bad_states)):
        for bad in bads:
            contents = {**good, name: save(bad)}
            _replace(folder, contents)
            network, optimizer = parts(7)
            with pytest.raises(CorruptFileError, match=f"{name} does not fit"):
                checkpoints.load_newest(network, optimizer)
            assert all((p == 7).all() for p in network.parameters())
            assert all((value == 7).all() for s in optimizer.state.values() for value in s.values())
    _replace(folder, good)
    assert newest(checkpoints.folder) == 2


def _replace(folder, contents):
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    (folder / "manifest.json").write_bytes(seal({"step": 2, "files": hashes}))
