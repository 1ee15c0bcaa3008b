"""NaN and Inf never reach weights, codes or moments: the run stops before the update and says which clips it were."""

import json
import math

import pytest
import torch
from support.batches import Noted
from support.fault_tools import hashes
from support.poison import network, train_poisoned
from support.training import finish, start

from worldvq.errors import RunError
from worldvq.models.losses import tokenizer_loss
from worldvq.nn.quantizer import VectorQuantizer, as_one_pass
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit

SETTINGS = {"steps": 6, "batch_size": 16, "log_every": 1, "save_every": 2, "precision": "no"}
PLACES = ["loss", "gradient", "encoder output"]
VALUES = [math.nan, math.inf, -math.inf]


def outcome(out, rank=0):
    return json.loads((out / f"outcome.{rank}").read_text())


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["ema", "sgd", "fsq"])
def test_nothing_is_updated(tmp_path, kind, place, value, step):
    if kind == "fsq" and place == "encoder output" and math.isinf(value):
        pytest.skip("it is bounded: infinity is the outermost level")
    with pytest.raises(RunError, match=rf"step {step}: loss .* is not finite") as raised:
        train_poisoned(str(tmp_path), SETTINGS, kind, place, value, step, 0)
    same, count, message = outcome(tmp_path)
    assert same and count > 12 and message == str(raised.value)
    first = Noted(16, tmp_path / "x").ids(step).tolist()
    assert ", ".join(f"{number}:{start}" for number, start in first[:8]) + " and 8 more" in message
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).steps() == ([2] if step else [])


@pytest.mark.parametrize("kind", ["ema", "sgd"])
@pytest.mark.parametrize("place", PLACES)
def test_what_the_passes_before_it_changed_is_undone(tmp_path, kind, place):
    with pytest.raises(RunError, match="step 1"):
        train_poisoned(str(tmp_path), {**SETTINGS, "accumulate": 2}, kind, place, math.nan, 1, 0, call=1)
    assert outcome(tmp_path)[0]


def test_the_last_checkpoint_is_intact_and_the_run_continues_from_it(tmp_path):
    with pytest.raises(RunError):
        train_poisoned(str(tmp_path / "bad"), SETTINGS, "ema", "encoder output", math.nan, 4, 0)
    for name in ("bad", "good"):
        batches = Noted(16, tmp_path / name / "x")
        (tmp_path / name).mkdir(exist_ok=True)
        fit(network(), tokenizer_loss, batches, TrainConfig(**SETTINGS), tmp_path / name / "run", summary="test")
    assert hashes(tmp_path / "bad" / "run" / "checkpoints") == hashes(tmp_path / "good" / "run" / "checkpoints")


@pytest.mark.parametrize(("kind", "place"), [("ema", "encoder output"), ("ema", "loss"), ("sgd", "gradient")])
def test_two_processes_stop_together_when_one_has_it(tmp_path, kind, place):
    jobs = start(2, tmp_path / "log", train_poisoned, str(tmp_path), SETTINGS, kind, place, math.inf, 3, 1)
    assert finish(jobs) == [1, 1]
    for rank in range(2):
        same, count, message = outcome(tmp_path, rank)
        assert same and count > 12 and message.startswith("step 3: ")
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).steps() == [2]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("ema", {}), ("ema", {"initialize": "kmeans"}), ("ema", {"cosine": True}), ("sgd", {}), ("sgd", {"cosine": True})],
)
@pytest.mark.parametrize("passes", [1, 2])
def test_quantizers_learn_nothing_from_a_batch_that_is_not_finite(kind, changes, passes):
    """Wherever it comes from: also in a loop that does not put back what it finds changed, and of any of its passes."""

    def see(batch):
        if passes == 1:
            quantizer(batch)
            return
        for use in (VectorQuantizer.initialize, VectorQuantizer.learn):
            with as_one_pass(quantizer, use):
                for part in batch.chunk(passes):
                    quantizer(part)

    quantizer = network(kind, **changes).quantizer.train()
    torch.manual_seed(0)
    batches = torch.randn(12, 4, 4, 4, 4)
    for number, batch in enumerate(batches):
        for value in VALUES:
            before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
            bad = batch.clone()
            bad[number % 4, number % 3, 1, 2] = value
            random = torch.get_rng_state()
            see(bad)
            torch.set_rng_state(random)
            assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
        see(batch)
    assert quantizer.state_dict()["initialized"]
    assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())
