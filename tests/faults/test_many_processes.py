"""Several processes train as one: same codebooks, sharded or not; one trainer a folder; ready configurations."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support import programs
from support.batches import Noted, Scenes
from support.command_line import spawn_light
from support.fault_tools import Command, Watch, hashes, wait_until
from support.tokenizers import make_tokenizer
from support.training import CODEBOOK, dynamics, finish, start, train, train_codebook, train_dynamics, train_held

from worldvq.errors import RunError, UsageError
from worldvq.files.lock import Lock
from worldvq.files.weights import read_tensors
from worldvq.models.losses import tokenizer_loss
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig, TrainConfig
from worldvq.training.fit import fit
from worldvq.training.optimizers import make_optimizer
from worldvq.types import frames_to_model

LAUNCH_FILES = sorted((programs.ROOT / "configs/accelerate").glob("*.yaml"))


@pytest.fixture(scope="module")
def codebooks(tmp_path_factory):
    """Folders of the same run on one process and on two."""
    folders = {}
    for count in (1, 2):
        folders[count] = tmp_path_factory.mktemp(f"codebook{count}")
        jobs = start(count, folders[count] / "log", train_codebook, str(folders[count]), 200)
        assert finish(jobs) == [0] * count, (folders[count] / "log.0.log").read_text()
    return folders


def test_codebooks_are_identical_on_all_ranks_after_200_steps(codebooks):
    first, second = (read_tensors(codebooks[2] / f"rank{rank}.safetensors") for rank in range(2))
    assert {"quantizer.codebook", "quantizer.ema_count", "quantizer.ema_sum"} <= first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def perplexity(folder):
    """Of the tokens of frames that were not trained on."""
    trained = make_tokenizer(CODEBOOK)
    trained.load_state_dict(read_tensors(folder / "rank0.safetensors"))
    frames = Scenes(512).batch(10**6).frames[:, 0]
    with torch.no_grad():
        tokens = trained.eval().encode(frames_to_model(frames))
    frequency = torch.bincount(tokens.flatten(), minlength=64) / tokens.numel()
    return math.exp(-torch.special.xlogy(frequency, frequency).sum())


def test_a_codebook_of_two_processes_is_used_like_that_of_one(codebooks):
    one, two = (perplexity(codebooks[count]) for count in (1, 2))
    assert one > 5  # it has learned something to use
    assert abs(two / one - 1) < 0.05, (one, two)


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
SHARDED |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Attention,FeedForward"}


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("kind", "accumulate", "prior"), [("adamw", 1, "transformer"), ("muon", 2, "pixelcnn")])
def test_fsdp2_trains_like_ddp_resumes_to_the_bit_and_loads_in_one_process(tmp_path, kind, accumulate, prior):
    settings = {"steps": 6, "batch_size": 8, "log_every": 1, "save_every": 3, "accumulate": accumulate}
    settings["optimizer"] = {"kind": kind, "learning_rate": 3e-3, "warmup_steps": 2}
    last = Path("checkpoints") / "step_00000006"

    def run(name, count, environment, **changes):
        arguments = str(tmp_path / name), {**settings, **changes}, prior
        jobs = start(count, tmp_path / f"{name}.x", train_dynamics, *arguments, **environment)
        assert finish(jobs) == [0] * count, jobs[0].log.read_text()
        return jobs[0].log.read_text()

    assert "(FSDP)" not in run("ddp", 2, {})
    assert "(FSDP)" in run("fsdp", 2, SHARDED)
    # Muon multiplies in bf16, in another order when sharded.
    tolerance = {"adamw": 1e-4, "muon": 1e-3}[kind]
    torch.testing.assert_close(losses(tmp_path / "fsdp"), losses(tmp_path / "ddp"), rtol=tolerance, atol=0)

    shutil.copytree(tmp_path / "fsdp", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / last)
    run("again", 2, SHARDED)
    assert hashes(tmp_path / "again" / last) == hashes(tmp_path / "fsdp" / last)

    whole = dynamics(prior)
    optimizer = make_optimizer(whole, OptimizerConfig(kind=kind))
    assert Checkpoints(tmp_path / "fsdp" / "checkpoints", 2).load_newest(whole, optimizer) == 6
    assert len(optimizer.state) == len(list(whole.parameters()))
    run("fsdp", 1, {}, steps=8)


def test_a_tokenizer_is_not_sharded(tmp_path):
    jobs = start(2, tmp_path / "log", train_sharded_tokenizer, str(tmp_path))
    assert finish(jobs) == [2, 2]
    assert "a tokenizer cannot be sharded" in jobs[0].log.read_text()
    assert not (tmp_path / "run").exists()


def train_sharded_tokenizer(out):
    from accelerate import DistributedType, PartialState

    os.environ.update(SHARDED)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    train(out, {"steps": 2, "batch_size": 8})


LONG = {"steps": 400, "batch_size": 8, "log_every": 5, "save_every": 5, "precision": "no"}


@pytest.mark.parametrize("count", [1, 2])
def test_a_second_trainer_is_told_the_owner_and_all_its_processes_end(tmp_path, count):
    (first,) = start(1, tmp_path / "x", train_held, str(tmp_path), LONG, 6)
    assert wait_until((tmp_path / "ids.0").is_file)
    others = start(count, tmp_path / "y", train_held, str(tmp_path), LONG)
    assert [job.wait() for job in others] == [1] * count
    assert f"process {first.process.pid} on " in others[0].log.read_text()
    if count == 2:
        assert "process 1 ends because the main process failed" in others[1].log.read_text()
    first.kill(signal.SIGKILL)
    first.wait()
    (third,) = start(1, tmp_path / "z", train_held, str(tmp_path), {**LONG, "steps": 20})
    assert third.wait() == 0  # what it left is no lock


def test_the_command_line_refuses_a_second_trainer_before_it_imports_anything_heavy(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    lock = Lock(out)
    for kind in ("tokenizer", "dynamics"):
        done = spawn_light("train", kind, "--out", out, "--config", "tiny")
        assert done.returncode == 1 and f"process {os.getpid()} on " in done.stderr
        assert len(done.stderr.splitlines()) == 1
    lock.release()
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_fit_claims_the_folder_under_its_lock_and_before_it_writes(tmp_path):
    def begin():
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        with pytest.raises(RunError, match="is writing to it"):
            Lock(tmp_path / "run")
        raise UsageError("another config")

    arguments = (
        make_tokenizer(),
        tokenizer_loss,
        Noted(8, tmp_path / "ids"),
        TrainConfig(batch_size=8),
        tmp_path / "run",
    )
    for _ in range(2):  # the lock is given back
        with pytest.raises(UsageError, match="another config"):
            fit(*arguments, summary="test", begin=begin)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_processes_that_find_different_checkpoints_refuse(tmp_path):
    for count, folder in ((2, tmp_path / "a"), (1, tmp_path / "b")):
        settings = {"steps": 2 * count, "batch_size": 8, "save_every": 2, "precision": "no"}
        assert finish(start(1, tmp_path / "log", train, str(folder), settings)) == [0]
    settings = {"steps": 6, "batch_size": 8, "precision": "no"}
    jobs = start(
        2, tmp_path / "log2", train_where_each_has_its_own, [str(tmp_path / "a"), str(tmp_path / "b")], settings
    )
    assert finish(jobs) == [2, 2]
    assert "one process finds a checkpoint of step 4, another of step 2" in jobs[0].log.read_text()


def train_where_each_has_its_own(outs, settings):
    train(outs[int(os.environ["RANK"])], settings)


def test_nothing_is_left_when_training_ends_or_is_killed(tmp_path, road):
    words = ["train", "tokenizer", "--config", "tiny", "--data", road / "data", "env.size=[16,16]"]
    words += ["tokenizer.frame_size=[16,16]", "tokenizer_training.batch_size=4", "--track", "tensorboard"]
    for name, steps in (("ended", 3), ("killed", 100000)):
        out = tmp_path / name
        with Watch(tmp_path / "tmp") as watch:
            command = Command(tmp_path / "log", *words, "--out", out, f"tokenizer_training.steps={steps}", watch=watch)
            if name == "killed":
                assert wait_until((out / "metrics.jsonl").is_file), (tmp_path / "log").read_text()
                command.send(signal.SIGKILL)
            assert command.wait() == (0 if name == "ended" else -signal.SIGKILL), (tmp_path / "log").read_text()
            assert not watch.left()
            if name == "ended":
                assert not watch.left(out)


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_accelerate_reads_each_launch_file(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    assert load_config_from_file(str(path)).num_processes
    parsed = launch_command_parser().parse_args(["--config_file", str(path), "-m", "worldvq"])
    arguments, _, _ = _validate_launch_command(parsed)
    assert arguments.num_processes >= 2 and arguments.use_fsdp == (path.stem == "fsdp2")
    if arguments.use_fsdp:
        assert arguments.fsdp_version == 2


def test_there_is_a_launch_file_for_each_case():
    assert [path.stem for path in LAUNCH_FILES] == ["cpu2", "ddp", "fsdp2", "multinode"]
