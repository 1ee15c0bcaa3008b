"""The held-out loss of a training run: what it is, that it changes nothing, and runs that have none."""

import io
import json
import re

import pytest
import torch
from rich.console import Console
from support.batches import Batches
from support.episodes import SPACES, make_episode, write
from support.tokenizers import make_tokenizer, tokenizer_config
from support.training import finish, start

from worldvq.config.env import EnvConfig
from worldvq.files.weights import hash_module
from worldvq.models.config import DynamicsConfig
from worldvq.models.losses import tokenizer_loss
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import ExperimentConfig
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit
from worldvq.training.processes import make_accelerator
from worldvq.training.tracking import Log, read_metrics

SETTINGS = {"steps": 6, "batch_size": 8, "log_every": 2, "precision": "no"}


class Others(Batches):
    """Other frames than those of ``Batches``."""

    def batch(self, step, rank=0, world=1):
        return super().batch(step + 500, rank, world)


def train(out, heldout=True, **changes):
    others = Others(8)
    network = make_tokenizer()
    settings = TrainConfig(**SETTINGS, **changes)
    heldout = others if heldout else None
    fit(network, tokenizer_loss, Batches(8), settings, out, summary="test", heldout=heldout)
    return network, others.seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_mean_over_the_same_batches_and_changes_nothing(tmp_path, accumulate):
    network, seen = train(tmp_path / "with", accumulate=accumulate)
    without, _ = train(tmp_path / "without", heldout=False, accumulate=accumulate)
    assert hash_module(network) == hash_module(without)
    assert set(seen) == {500, 501}
    shown, plain = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("with", "without"))
    scalars = {"loss", "reconstruction", "quantizer_loss", "psnr", "perplexity"}
    for row, other in zip(shown, plain, strict=True):
        assert row.keys() - other.keys() == {f"heldout_{name}" for name in scalars}
        assert all(row[name] == other[name] for name in scalars)
    with torch.no_grad():
        losses = [tokenizer_loss(network.eval(), Others(8).batch(number))[0] for number in range(2)]
    assert shown[-1]["heldout_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_processes_share_it(tmp_path):
    for processes in (1, 2):
        jobs = start(processes, tmp_path / "log", train, tmp_path / str(processes))
        assert finish(jobs) == [0] * processes, jobs[0].log.read_text()
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in "12")
    assert [row["step"] for row in two] == [2, 4, 6]
    for row, other in zip(one, two, strict=True):
        assert row["heldout_loss"] == pytest.approx(other["heldout_loss"], rel=1e-4)


@pytest.mark.parametrize("heldout_every", [3, 1000])
def test_both_stages_show_it_and_go_on_without_it(tmp_path, capsys, heldout_every):
    episodes = [make_episode(number, steps=5, size=(16, 16)) for number in range(6)]
    write(tmp_path / "data", SPACES["discrete"], episodes, heldout_every=heldout_every)
    sizes = {"width": 16, "num_blocks": 1, "num_heads": 2}
    training = TrainConfig(steps=2, batch_size=4, clip_frames=4, log_every=1)
    config = ExperimentConfig(
        env=EnvConfig(size=(16, 16)),
        tokenizer=tokenizer_config(),
        tokenizer_training=training,
        dynamics=DynamicsConfig(context_frames=4, **sizes, prior=sizes),
        dynamics_training=training.model_dump(),
        evaluate={"context": 2, "horizon": 2},
    )
    train_tokenizer(config, tmp_path / "data", tmp_path / "tokenizer")
    tokenize(tmp_path / "tokenizer", tmp_path / "data", tmp_path / "tokens", "cpu")
    train_dynamics(config, tmp_path / "tokens", tmp_path / "tokenizer", tmp_path / "dynamics", tmp_path / "world")
    lines = [line for line in capsys.readouterr().out.splitlines() if "held-out" in line]
    if heldout_every == 3:
        assert not lines
    else:  # once a run
        folders = [tmp_path / "data", tmp_path / "tokens"]
        assert [line.split(":")[0] for line in lines] == [
            f"{folder} has no held-out episodes (6 in all, 1 in 1000 is held out)" for folder in folders
        ]
    for name, scalar in (("tokenizer", "heldout_psnr"), ("dynamics", "heldout_nats_per_token")):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 2
        assert all((key in row) == (heldout_every == 3) for row in rows for key in ("heldout_loss", scalar))
        assert (tmp_path / name / "pictures").exists() == (heldout_every == 3)


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_bar_steps_and_time_left_fit_a_terminal(tmp_path, columns):
    log = Log(tmp_path / "metrics.jsonl", 0, 100_000, make_accelerator("no"), {})
    row = {"step": 99_999, "loss": 1.2345e-05, "psnr": 30.123, "learning_rate": 1e-3, "heldout_psnr": 29.5}
    log.write({**row, "heldout_loss": 2.3456e-05, "clips_per_second": 12_345.678}, 10.0)
    log.advance(99_999)
    console = Console(width=columns, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(log.bar.get_renderable())
    line, *more = console.file.getvalue().splitlines()
    assert not more, console.file.getvalue()
    assert len(line) <= columns and re.match(r"━+[╸╺]? *99999/100000 ETA -:--:-- ", line)
    shown = "loss 1.23e-05 held out 2.35e-05 12,346 clips/s"
    assert (shown in line) == (columns == 100) and ("held out 2.35e-05" in line) == (columns >= 80)
