"""The whole road: every stage in a row, each only if it is missing."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldvq.data.tokens import TokenStore
from worldvq.errors import CorruptFileError, UsageError
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import evaluate, settled
from worldvq.evaluation.report_files import MAX_REPORT, REPORT
from worldvq.files.reading import read_json
from worldvq.nn.devices import resolve_device
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import ExperimentConfig
from worldvq.stages.imagine import imagine
from worldvq.stages.interventions import intervene
from worldvq.stages.record import record
from worldvq.stages.sound import train_sound
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.checkpoints import Checkpoints
from worldvq.world.model import WorldModel

FOLDERS = ("data", "tokenizer", "tokens", "dynamics", "world", "report")
SOUND = "sound"
"""Beside them, of a world with sound."""


def run_all(config: ExperimentConfig, out: Path, say: Callable[[str], None], device: str = "auto") -> dict[str, Any]:
    """Record, train the tokenizer, tokenize, train the dynamics, evaluate, render; each stage only if it is missing.

    Returns:
        The report, with ``stage_seconds`` of what ran now.
    """
    resolve_device(device)
    config = config.for_frames(config.env.size, "env.size")  # what does not fit is refused before it is recorded
    if config.env.audio_key is None:  # with sound there are more rows of tokens, how many is not known yet
        config.dynamics.merged(config.tokenizer.grid)
    data, tokenizer, tokens, dynamics, world, report = (out / name for name in FOLDERS)
    _check_tokens(tokens, tokenizer, config.tokenizer_training.steps)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        say(f"{name} ...")
        begun = time.monotonic()
        result = work()
        seconds[name] = round(time.monotonic() - begun, 1)
        return result

    stage("record", lambda: record(config.env, config.record, data).close())
    stage("train tokenizer", lambda: train_tokenizer(config, data, tokenizer, device=device))
    sound = out / SOUND if config.env.audio_key is not None else None
    if sound is not None:
        stage("train sound", lambda: train_sound(config, data, sound, device=device))
    stage("tokenize", lambda: tokenize(tokenizer, data, tokens, device, sound))
    train = functools.partial(train_dynamics, config, tokens, tokenizer, dynamics, world, device=device, sound=sound)
    stage("train dynamics", train)
    stage("evaluate", lambda: _evaluate_once(world, data, report, config.evaluate, device, say))
    stage("render", lambda: _render(world, data, out, config.evaluate, device))
    return {**read_json(report / REPORT, MAX_REPORT), "stage_seconds": seconds}


def _check_tokens(tokens: Path, tokenizer: Path, steps: int) -> None:
    """Refuse to train a tokenizer on whose tokens are there: others would be needed, and other dynamics."""
    done = Checkpoints(tokenizer / "checkpoints", keep=2).steps()
    if (tokens / TokenStore.meta_file).is_file() and done and done[-1] < steps:
        raise UsageError(
            f"{tokens} holds tokens of a tokenizer of {done[-1]} steps, tokenizer_training.steps asks for {steps}: "
            f"give another --out, or remove {tokens} and the dynamics beside it"
        )


def _evaluate_once(
    folder: Path, data: Path, out: Path, config: EvaluateConfig, device: str, say: Callable[[str], None]
) -> None:
    """Evaluate, unless the report of this very world and protocol is there."""
    world = WorldModel.load(folder, device)
    path = out / REPORT
    with contextlib.suppress(CorruptFileError, KeyError, TypeError):
        report = read_json(path, MAX_REPORT)
        protocol = settled(config, world).model_dump(mode="json")
        if report["protocol"] == protocol and report["world"]["hash"] == world.hash():
            return
    more: dict[str, Any] = {}
    if config.situations:
        try:
            tests = {"branches": True, "returns": True, "situations": config.situations}
            more = intervene(world, data, out, config, **tests, trust=True)  # the user named what is played
        except UsageError as error:
            say(f"not played on in the environment: {error}")
    evaluate(world, data, out, config, more=more)


def _render(world: Path, data: Path, root: Path, config: EvaluateConfig, device: str) -> None:
    """Write ``rollout.mp4`` and its strip and, where actions have the names it needs, the figure of the paper."""

    def write(name: str, actions: str) -> None:
        out, sampling = root / name, config.sampling.model_dump()
        imagine(world, data, out, config.context, config.horizon, actions, 4, config.seed, sampling, device)

    write("rollout.mp4", "recorded")
    with contextlib.suppress(UsageError):
        write("paper.png", "paper")
