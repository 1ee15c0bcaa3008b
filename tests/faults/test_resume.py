"""A run that is killed and started again equals one that was not, to the bit, with one process and with two."""

import hashlib
import json
import random

import numpy as np
import pytest
from support.fault_tools import hashes
from support.training import finish, start, train

STEPS, SAVE = 9, 3
SETTINGS = {"steps": STEPS, "batch_size": 8, "log_every": 1, "save_every": SAVE, "precision": "no"}


def run(out, count, accumulate=1, kill_at=None, killed_rank=0, architecture="patches"):
    """Train with some processes; the exit codes."""
    settings = {**SETTINGS, "accumulate": accumulate}
    return finish(start(count, out.with_suffix(".x"), train, str(out), settings, kill_at, killed_rank, architecture))


def seen(out):
    """The ids of each step in the order of the global batch, from what the processes noted when they last did it."""
    shares = {}
    for path in sorted(out.glob("ids.*")):
        for step, rank, world, ids in map(json.loads, path.read_text().splitlines()):
            shares.setdefault(step, {}).setdefault(world, {})[rank] = ids
    return shares


def assert_global_batches_are_right(out):
    shares = seen(out)
    assert sorted(shares) == list(range(STEPS))
    for step, by_world in shares.items():
        wanted = np.random.default_rng(step + 1000).integers(0, 10**6, (8, 2)).tolist()
        for world, by_rank in by_world.items():
            if len(by_rank) == world:  # else it was killed in the middle
                assert [row for rank in range(world) for row in by_rank[rank]] == wanted
        assert any(len(by_rank) == world for world, by_rank in by_world.items())


def checkpoint(out):
    """Hashes of weights, buffers and optimizer state at the end."""
    return hashes(out / "run" / "checkpoints" / f"step_{STEPS:08d}")


def losses(out):
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["perplexity"]) for row in rows]


def assert_same(out, whole, count):
    assert checkpoint(out) == checkpoint(whole)
    assert losses(out) == losses(whole)
    assert [step for step, *_ in losses(out)] == list(range(1, STEPS + 1))
    for rank in range(count):
        states = [hashlib.sha256((path / f"random.{rank}").read_bytes()).hexdigest() for path in (out, whole)]
        assert states[0] == states[1]
    assert_global_batches_are_right(out)


@pytest.mark.parametrize(
    ("count", "accumulate", "architecture"),
    [(1, 1, "patches"), (1, 2, "patches"), (2, 1, "patches"), (2, 2, "patches"), (1, 1, "strided")],
)
def test_a_killed_run_continues_to_the_same_bits(tmp_path, slow, count, accumulate, architecture):
    whole = tmp_path / "whole"
    assert run(whole, count, accumulate, architecture=architecture) == [0] * count
    chance = random.Random(count + 10 * accumulate)
    passes = range(STEPS * accumulate)
    kills = list(passes) if slow else chance.sample(passes, 2)
    if accumulate > 1:
        kills.append(2 * accumulate * SAVE - 1)  # between two passes of a step that would have been saved
    for number, kill_at in enumerate(kills):
        out = tmp_path / str(number)
        assert any(run(out, count, accumulate, kill_at, chance.randrange(count), architecture))
        assert run(out, count, accumulate, architecture=architecture) == [0] * count, (
            tmp_path / f"{number}.0.log"
        ).read_text()
        assert_same(out, whole, count)


def test_another_number_of_processes_sees_the_same_global_batches(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(whole, 1) == [0]
    assert any(run(out, 1, kill_at=4))
    assert any(run(out, 2, kill_at=4))  # from step 3 on, so killed in step 7
    assert run(out, 1) == [0]
    assert_global_batches_are_right(out)
    assert {step: sorted(worlds) for step, worlds in seen(out).items()} == {
        **{step: [1] for step in (0, 1, 2, 8)},
        **{step: [1, 2] for step in (3, 4, 6, 7)},
        5: [2],
    }
    # The perplexity is the mean over processes of that of their parts, so it is another number.
    np.testing.assert_allclose([row[1] for row in losses(out)], [row[1] for row in losses(whole)], rtol=1e-3)


def test_a_torn_last_line_of_the_metrics_is_dropped_and_seconds_go_on(tmp_path):
    out = tmp_path / "out"
    assert any(run(out, 1, kill_at=7))
    path = out / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 7
    changed = {**json.loads(lines[5]), "seconds": 1000.0}
    path.write_text("\n".join([*lines[:5], json.dumps(changed), lines[6], '{"step": 8, "lo']))
    assert run(out, 1) == [0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert 1000 < rows[6]["seconds"] < rows[8]["seconds"] < 10_000
    assert_global_batches_are_right(out)
