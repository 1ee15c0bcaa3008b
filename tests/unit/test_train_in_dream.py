"""tools/train_in_dream.py: its numbers are those of the episodes that were played, and the dream alone teaches."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from worldvq.models.dynamics import Dynamics
from worldvq.models.tokenizer import Tokenizer
from worldvq.recording.config import RecordConfig
from worldvq.stages.experiment import load_config
from worldvq.stages.record import record
from worldvq.types import ActionSpace
from worldvq.world.model import WorldModel

pytest.importorskip("stable_baselines3")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/train_in_dream.py"))


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory):
    """An untrained world of the maze, with a little data."""
    root = tmp_path_factory.mktemp("root")
    config = load_config("tiny", ["env.max_steps=30"])
    few = RecordConfig(frames=300, workers=1, heldout_every=2)
    with record(config.env, few, root / "data", progress=False) as store:
        space = store.action_space
    torch.manual_seed(0)
    tokenizer = Tokenizer(config.tokenizer)
    dynamics = Dynamics(config.dynamics, tokenizer.grid, tokenizer.num_codes, space)
    WorldModel(tokenizer, dynamics, {"env_id": config.env.id}).save(root / "world")
    return root


class Corridor:
    """Pays the action's number, ends after as many steps as the seed says."""

    action_space = ActionSpace("discrete", nvec=(3,))

    def reset(self, seed):
        self.left = 2 + seed % 3
        return np.full((4, 4, 3), self.left, np.uint8)

    def step(self, action):
        self.left -= 1
        return np.full((4, 4, 3), self.left, np.uint8), float(action), self.left == 0, False


class Agent:
    def predict(self, frame, deterministic):
        return np.array(2), None


class World:
    """A tokenizer that loses nothing."""

    def tokenize(self, frames):
        return frames

    def render(self, tokens):
        return torch.from_numpy(tokens)


def test_agent_and_chance_play_the_same_episodes():
    result = TOOL["judge"](World(), Corridor(), Agent(), 6)
    lengths = np.array([2 + (TOOL["SEEDS"] + number) % 3 for number in range(6)])
    np.testing.assert_array_equal(result["agent"]["returns"], 2.0 * lengths)
    assert result["agent"]["steps"] == result["random"]["steps"] == lengths.mean()
    chance = np.array(result["random"]["returns"])
    assert (chance <= 2 * lengths).all() and len(set(chance)) > 1
    assert result["over_twice_random"]["mean"] == pytest.approx((2 * lengths - 2 * chance).mean())
    low, high = result["difference"]["ci95"]
    assert low <= result["difference"]["mean"] <= high


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_an_agent_is_trained_kept_and_judged(tiny_world, tmp_path, monkeypatch):
    given = ["--world", str(tiny_world / "world"), "--data", str(tiny_world / "data"), "--out", str(tmp_path / "ppo")]
    short = ["--steps", "128", "--envs", "2", "--horizon", "5", "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", ["train_in_dream.py", *given, *short])
    TOOL["main"]()
    before = (tmp_path / "ppo" / "agent.zip").read_bytes()
    first = json.loads((tmp_path / "ppo" / "result.json").read_text())
    assert len(first["agent"]["returns"]) == len(first["random"]["returns"]) == 2
    assert (tmp_path / "ppo" / "agent.mp4").stat().st_size
    TOOL["main"]()  # the agent is there: it only plays, and comes to the same
    assert (tmp_path / "ppo" / "agent.zip").read_bytes() == before
    assert json.loads((tmp_path / "ppo" / "result.json").read_text()) == first
