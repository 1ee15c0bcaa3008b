"""Training scene codes: a run that is killed and started again equals one that was not, to the bit."""

import json

from support.fault_tools import hashes
from support.training import finish, start, train_scene

STEPS = 7
SETTINGS = {"steps": STEPS, "batch_size": 8, "log_every": 1, "save_every": 2, "precision": "no"}


def run(out, kill_at=None):
    return finish(start(1, out.with_suffix(".x"), train_scene, str(out), SETTINGS, kill_at))


def result(out):
    """Weights, codebooks and optimizer; what was logged; the state of the random numbers."""
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [(row["step"], row["loss"], row["nats_per_token"], row["perplexity"]) for row in rows]
    checkpoint = hashes(out / "run" / "checkpoints" / f"step_{STEPS:08d}")
    return checkpoint, logged, (out / "random.0").read_bytes()


def test_a_killed_run_continues_to_the_same_bits(tmp_path):
    whole = tmp_path / "whole"
    assert run(whole) == [0]
    assert [step for step, *_ in result(whole)[1]] == list(range(1, STEPS + 1))
    for kill_at in (1, 5):  # before there is a checkpoint; between two
        out = tmp_path / str(kill_at)
        assert run(out, kill_at) == [-9]
        assert run(out) == [0], (tmp_path / f"{kill_at}.0.log").read_text()
        assert result(out) == result(whole)
    before = hashes(whole / "run" / "checkpoints" / f"step_{STEPS - 1:08d}")
    assert all(before[name] != digest for name, digest in result(whole)[0].items())  # every step changes the bits
