"""What goes to TensorBoard is what stands in metrics.jsonl, after a resume too; other trackers are refused by name."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.batches import Noted
from support.command_line import run
from support.tokenizers import make_tokenizer
from support.training import finish, start

from worldvq.errors import UsageError
from worldvq.models.losses import tokenizer_loss
from worldvq.training.config import TrainConfig

SETTINGS = {"steps": 8, "batch_size": 8, "log_every": 2, "save_every": 4, "picture_every": 4, "precision": "no"}
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0})
events.Reload()
scalars = {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
images = {tag: [[e.step, e.width, e.height] for e in events.Images(tag)] for tag in events.Tags()["images"]}
print(json.dumps([scalars, images]))
"""


def train_tracked(out, kill_at):
    from pathlib import Path

    from worldvq.training.fit import fit

    def picture(network, step):
        return np.full((6, 10, 3), step, np.uint8)

    arguments = (make_tokenizer(), tokenizer_loss, Noted(8, Path(out) / "ids", kill_at), TrainConfig(**SETTINGS))
    fit(*arguments, Path(out) / "run", summary="test", picture=picture, trackers=["tensorboard"])


@pytest.mark.parametrize("kill_at", [None, 7])
def test_tensorboard_shows_what_metrics_jsonl_says(tmp_path, kill_at):
    if kill_at:
        assert finish(start(1, tmp_path / "x", train_tracked, str(tmp_path), kill_at)) == [-9]
    (job,) = start(1, tmp_path / "x", train_tracked, str(tmp_path), None)
    assert finish([job]) == [0], job.log.read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    folder = str(tmp_path / "run" / "worldvq")
    done = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, text=True, check=True)
    scalars, images = json.loads(done.stdout)
    assert scalars.keys() == rows[0].keys() - {"step"}
    for name, points in scalars.items():
        assert [step for step, _ in points] == [2, 4, 6, 8]  # what was repeated after the resume only once
        np.testing.assert_allclose([value for _, value in points], [row[name] for row in rows], rtol=1e-6)
    assert images == {"picture": [[4, 10, 6], [8, 10, 6]]}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_way_out(tmp_path, name):
    if importlib.util.find_spec(name):
        pytest.skip("it is")
    with pytest.raises(UsageError, match=f"the tracker {name} is not installed: pip install {name}"):
        fit_with(tmp_path, name)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no tracker 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        fit_with(tmp_path, "tensorbord")


def fit_with(tmp_path, tracker):
    from worldvq.training.fit import fit

    arguments = (make_tokenizer(), tokenizer_loss, Noted(8, tmp_path / "ids"), TrainConfig(**SETTINGS))
    fit(*arguments, tmp_path / "run", summary="test", trackers=[tracker])


def test_the_command_line_takes_several(tmp_path, road):
    out = tmp_path / "run"
    words = ["train", "tokenizer", "--config", "tiny", "--data", road / "data", "--out", out, "env.size=[16,16]"]
    words += ["tokenizer.frame_size=[16,16]", "tokenizer_training.steps=2", "--track", "tensorboard"]
    done = run(*words, "--track", "tensorbored")
    assert done.returncode == 2 and "did you mean 'tensorboard'" in done.stderr and not out.exists()
    shutil.rmtree(out, ignore_errors=True)
