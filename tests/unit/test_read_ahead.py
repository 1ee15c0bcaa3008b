"""Batches that are read ahead: the same ones, and the same run to the bit, also one that is killed and goes on."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.batches import Batches, Noted
from support.fault_tools import hashes
from support.tokenizers import make_tokenizer
from support.training import finish, start

from worldvq.models.losses import tokenizer_loss
from worldvq.training.batches import ReadAhead
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit

SETTINGS = {"steps": 6, "batch_size": 8, "save_every": 2, "precision": "no"}


class Threads(Batches):
    """Batches that note who reads them, and whether somebody else does at that time."""

    def __init__(self, batch_size):
        super().__init__(batch_size)
        self.read, self.at_once, self._busy = [], False, False

    def batch(self, step, rank=0, world=1):
        self.at_once |= self._busy
        self._busy = True
        time.sleep(0.01)
        self.read.append((step, rank, world, threading.current_thread() is threading.main_thread()))
        clip = super().batch(step, rank, world)
        self._busy = False
        return clip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_run_is_the_same_and_a_thread_reads_all_but_the_first_step(tmp_path, accumulate):
    config = TrainConfig(**SETTINGS, accumulate=accumulate)
    batches = Threads(8)
    for name, given in (("plain", Batches(8)), ("ahead", ReadAhead(batches))):
        fit(make_tokenizer(), tokenizer_loss, given, config, tmp_path / name, summary="test")
    last = Path("checkpoints/step_00000006")
    assert hashes(tmp_path / "ahead" / last) == hashes(tmp_path / "plain" / last)
    parts = [(step, part, accumulate) for step in range(6) for part in range(accumulate)]
    timed, *read = batches.read
    assert timed == (0, 0, accumulate, True) and not batches.at_once
    assert sorted(request for *request, _ in read) == [list(part) for part in parts]
    assert all(on_main == (step == 0) for step, *_, on_main in read)


def test_a_batch_that_cannot_be_read_fails_at_its_step():
    class Broken(Batches):
        def batch(self, step, rank=0, world=1):
            if step == 3:
                raise OSError("gone")
            return super().batch(step, rank, world)

    ahead = ReadAhead(Broken(8))
    with ahead.reading([(3, 0, 1), (4, 0, 1)]):
        assert torch.equal(ahead.batch(2).frames, Batches(8).batch(2).frames)
    assert torch.equal(ahead.batch(4).frames, Batches(8).batch(4).frames)
    with pytest.raises(OSError, match="gone"):
        ahead.batch(3)
    assert np.array_equal(ahead.ids(5), Batches(8).ids(5))


def train_ahead(out: Path, kill_at: int | None) -> None:
    batches = ReadAhead(Noted(8, out / "ids", kill_at))
    fit(make_tokenizer(), tokenizer_loss, batches, TrainConfig(**SETTINGS), out / "run", summary="test")


def test_a_run_killed_while_it_reads_ahead_goes_on_to_the_same_bits(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert finish(start(1, tmp_path / "log", train_ahead, tmp_path / "whole", None)) == [0]
    assert finish(start(1, tmp_path / "log", train_ahead, tmp_path / "killed", 4)) == [-9]
    assert finish(start(1, tmp_path / "log", train_ahead, tmp_path / "killed", None)) == [0]
    last = Path("run/checkpoints/step_00000006")
    assert hashes(tmp_path / "killed" / last) == hashes(tmp_path / "whole" / last)
