"""Small training runs for the fault tests, in processes that are forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.batches import Held, Noted, Scenes, TokenBatches
from support.fault_tools import free_port, hashes, hear_ctrl_c, wait_until
from support.tokenizers import make_tokenizer
from worldvq.errors import WorldVQError
from worldvq.models.config import DynamicsConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.losses import dynamics_loss, tokenizer_loss
from worldvq.nn.config import QuantizerConfig
from worldvq.training.config import TrainConfig
from worldvq.training.tracking import read_metrics
from worldvq.types import ActionSpace

CODEBOOK = QuantizerConfig(kind="ema", num_codes=64, code_dim=8)


class Job:
    """A function of this module in a process of its own; its output goes to a file, its exit code says how it ended."""

    def __init__(self, log: Path, function: Any, *arguments: Any, **environment: Any):
        self.log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "accelerate", "worldvq.stages.road", "scipy.linalg"])
        self.process = context.Process(
            target=_enter, args=(str(log), {key: str(value) for key, value in environment.items()}, function, arguments)
        )
        self.process.start()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signum)

    def wait(self) -> int:
        """Exit code; negative for the signal that ended it."""
        self.process.join(300)
        if self.process.exitcode is None:
            self.kill(signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"still running: {self.log.read_text()}")
        return self.process.exitcode


def _enter(log: str, environment: dict[str, str], function: Any, arguments: tuple) -> None:
    hear_ctrl_c()
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    os.environ.update({"ACCELERATE_USE_CPU": "true", **environment})
    try:
        function(*arguments)
    except WorldVQError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)


def start(count: int, log: Path, function: Any, *arguments: Any, **environment: Any) -> list[Job]:
    """Start processes that know each other, as torchrun starts them; with a count of 1, one that is alone."""
    where: dict[str, Any] = {}
    if count > 1:
        where = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    jobs = []
    for rank in range(count):
        here = {**where, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else where
        jobs.append(Job(log.with_suffix(f".{rank}.log"), function, *arguments, **here, **environment))
    return jobs


def finish(jobs: list[Job]) -> list[int]:
    """Exit codes. When one is killed, the others are given a while and then killed too, as torchrun does."""
    killed = lambda: any((job.process.exitcode or 0) < 0 for job in jobs)  # noqa: E731
    ended = lambda: all(job.process.exitcode is not None for job in jobs)  # noqa: E731
    wait_until(lambda: killed() or ended(), 300)
    if killed():
        wait_until(ended, 5)
        for job in jobs:
            job.kill()
    return [job.wait() for job in jobs]


def train(
    out: str,
    settings: dict[str, Any],
    kill_at: int | None = None,
    killed_rank: int = 0,
    architecture: str = "patches",
) -> None:
    """Train the small tokenizer; leaves its random state and what it drew beside the run."""
    from worldvq.training.fit import fit

    rank = int(os.environ.get("RANK", "0"))
    batches = Noted(settings["batch_size"], Path(out) / f"ids.{rank}", kill_at if rank == killed_rank else None)
    Path(out).mkdir(parents=True, exist_ok=True)
    network = make_tokenizer(architecture=architecture)
    fit(network, tokenizer_loss, batches, TrainConfig(**settings), Path(out) / "run", summary="test")
    (Path(out) / f"random.{rank}").write_bytes(torch.get_rng_state().numpy().tobytes())


def train_codebook(out: str, steps: int) -> None:
    """Train a tokenizer with moving-average codes; every process leaves all of its tensors."""
    from worldvq.files.weights import save_module
    from worldvq.training.config import OptimizerConfig
    from worldvq.training.fit import fit

    network = make_tokenizer(CODEBOOK)
    settings = TrainConfig(steps=steps, batch_size=16, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10))
    trained = fit(network, tokenizer_loss, Scenes(16), settings, Path(out) / "run", summary="test")
    save_module(Path(out) / f"rank{os.environ.get('RANK', '0')}.safetensors", trained)


def dynamics(prior_kind: str = "transformer") -> Dynamics:
    torch.manual_seed(1)
    prior = {"kind": prior_kind, "width": 16, "num_blocks": 1, "num_heads": 2}
    config = DynamicsConfig(context_frames=4, width=16, num_blocks=1, num_heads=2, prior=prior)  # type: ignore[arg-type]
    return Dynamics(config, (4, 4), 16, ActionSpace("discrete", (3,)))


def train_dynamics(out: str, settings: dict[str, Any], prior_kind: str = "transformer") -> None:
    """Train a small dynamics, sharded if the environment says so."""
    from accelerate import DistributedType, PartialState

    from worldvq.training.fit import fit

    if os.environ.get("ACCELERATE_USE_FSDP"):
        # Accelerate shards on GPUs only; told that these are some, it does so on CPUs too.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    batches, settings = TokenBatches(8), TrainConfig(**settings)
    fit(dynamics(prior_kind), dynamics_loss, batches, settings, Path(out), summary="test", heldout=TokenBatches(8))


def train_held(
    out: str, settings: dict[str, Any], held_at: int | None = None, signalled_in: str = "", signum: int = 0
) -> None:
    """Train; if asked, wait at a step, or have a signal come to this very process while it saves or draws."""
    from worldvq.training import fit as module

    def signalled(work: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            os.kill(os.getpid(), signum)
            return work(*arguments)

        return wrapped

    def picture(network: Any, step: int) -> np.ndarray:
        if signalled_in == "picture":
            os.kill(os.getpid(), signum)
        (Path(out) / f"picture.{step}").write_text("whole")
        return np.zeros((4, 4, 3), np.uint8)

    if signalled_in == "write":  # before each of the files of a checkpoint
        from worldvq.training import checkpoints

        checkpoints.write_atomic = signalled(checkpoints.write_atomic)
    rank = int(os.environ.get("RANK", "0"))
    Path(out).mkdir(parents=True, exist_ok=True)
    batches = Held(settings["batch_size"], Path(out) / f"ids.{rank}", held_at)
    module.fit(
        make_tokenizer(),
        tokenizer_loss,
        batches,
        TrainConfig(**settings),
        Path(out) / "run",
        summary="test",
        picture=picture,
    )
    print("what comes after training", flush=True)


def die_before(sampler: type, kill_at: int | None) -> None:
    """Let this process be killed before the n-th batch that a class of samplers reads; never where n is None."""
    read, count = sampler.batch, 0  # type: ignore[attr-defined]

    def batch(self: Any, *arguments: int) -> Any:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return read(self, *arguments)

    sampler.batch = batch  # type: ignore[attr-defined]


def train_image_prior(root: str, out: str, steps: int, kill_at: int | None = None) -> None:
    """Train an image prior on the token stores ``a`` and ``b`` of a folder; if asked, die before the n-th batch."""
    from worldvq.data.joined import LabelledSampler
    from worldvq.stages.experiment import load_config
    from worldvq.stages.prior import train_prior

    die_before(LabelledSampler, kill_at)
    sizes = ["prior={width: 16, num_blocks: 1, num_heads: 2}", "prior_training.batch_size=8"]
    config = load_config("tiny", [*sizes, f"prior_training.steps={steps}", "prior_training.save_every=2"])
    train_prior(config, [Path(root) / name for name in "ab"], Path(root) / "tokenizer", Path(out))


def train_sound(root: str, out: str, steps: int, kill_at: int | None = None, codec: str | None = None) -> None:
    """Train a codec on the store ``sounds`` of a folder, or the prior over codes of one; die before the n-th batch."""
    from worldvq.data.sounds import CodeSampler, CropSampler
    from worldvq.stages.experiment import load_config
    from worldvq.stages.sound import train_sound as train
    from worldvq.stages.sound_prior import train_sound_prior

    die_before(CodeSampler if codec else CropSampler, kill_at)
    section = "sound_prior_training" if codec else "sound_training"
    settings = {"steps": steps, "save_every": 2, "batch_size": 4, "log_every": 1}
    changes = [f"{section}.{key}={value}" for key, value in settings.items()]
    model = ["sound.quantizer.kind=ema", "sound.jitter=0.3", "sound.features=mfcc", "sound.strides=[16]"]
    config = load_config("tiny", [*model, *changes])
    if codec:
        train_sound_prior(config, Path(codec), Path(root) / "sounds", Path(out))
    else:
        train(config, Path(root) / "sounds", Path(out))


def train_scene(tokens: str, tokenizer: str, out: str, steps: int, kill_at: int | None = None) -> None:
    """Train scene codes on a token store; if asked, die before the n-th batch; the first one is timed."""
    from worldvq.data.clips import ClipSampler
    from worldvq.stages.experiment import load_config
    from worldvq.stages.scene import train_scene as train

    die_before(ClipSampler, kill_at)
    settings = {"steps": steps, "save_every": 2, "batch_size": 8, "log_every": 1, "picture_every": steps}
    changes = [f"scene_training.{key}={value}" for key, value in settings.items()]
    model = "scene={width: 8, quantizer: {num_codes: 8, code_dim: 4, revive_after: 2}, prior: {width: 8}}"
    train(load_config("tiny", [model, *changes]), Path(tokens), Path(tokenizer), Path(out))
    (Path(out) / "random").write_bytes(torch.get_rng_state().numpy().tobytes())


def train_world(
    tokens: str, tokenizer: str, out: str, steps: int, kill_at: int | None = None, more: dict[str, str] | None = None
) -> None:
    """Train a dynamics on a token store, and with ``more``, the folders ``sound`` or ``start`` that the stage takes.

    If asked, die before the n-th batch. The world is in the run's folder.
    """
    from worldvq.data.clips import RewardedClipSampler
    from worldvq.stages.dynamics import train_dynamics as train
    from worldvq.stages.experiment import load_config

    die_before(RewardedClipSampler, kill_at)
    settings = {"steps": steps, "save_every": 2, "log_every": 1, "picture_every": steps}
    config = load_config("tiny", [f"dynamics_training.{key}={value}" for key, value in settings.items()])
    folders = {name: Path(folder) for name, folder in (more or {}).items()}
    train(config, Path(tokens), Path(tokenizer), Path(out), Path(out) / "world", **folders)  # type: ignore[arg-type]


def compare_vae(root: str, out: str, steps: int, kill_at: int | None = None) -> None:
    """Run tools/compare_vae.py on ``world`` and ``data`` of a folder; if asked, die before the n-th batch."""
    from worldvq.data.clips import ClipSampler
    from worldvq.evaluation import likelihood

    likelihood.FITTED = 8
    die_before(ClipSampler, kill_at)
    folders = {"--world": f"{root}/world", "--data": f"{root}/data", "--out": out}
    settings = {"steps": steps, "save_every": 2, "log_every": 1, "batch_size": 4}
    changes = [f"tokenizer_training.{key}={value}" for key, value in settings.items()]
    pairs = [word for pair in folders.items() for word in pair]
    sys.argv = ["compare_vae.py", "--config", "tiny", "--clips", "2", *pairs, *changes]
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "compare_vae.py"))
    tool["main"]()


UNEQUAL = {"seconds", "clips_per_second"}
"""Numbers of a step that are of the clock."""


def assert_same_run(out: Path, whole: Path, steps: int, resumed_at: int) -> None:
    """What was killed and went on from that step ended as ``whole``: the last checkpoint, the numbers of every step."""
    log = out.with_suffix(".0.log").read_text()
    assert f"resuming at step {resumed_at}, " in log if resumed_at else "resuming" not in log, log
    last = f"checkpoints/step_{steps:08d}"
    assert hashes(out / last) == hashes(whole / last)
    rows = [
        [{key: row[key] for key in row.keys() - UNEQUAL} for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (out, whole)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == steps and {"step", "loss", "heldout_loss"} <= rows[0][-1].keys()


if __name__ == "__main__":  # by a launcher: as a command line ends, with one line and an exit code
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        train_held(sys.argv[1], json.loads(sys.argv[2]))
    except WorldVQError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)
