"""stable-baselines3 trains on our vector environments as it does on its own."""

import gymnasium
import numpy as np
import pytest
from support.mazes import SMALL

import worldvq  # noqa: F401  (registers the maze)
from worldvq.errors import UsageError

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from worldvq_envs.sb3 import SB3VecEnv

ID, KWARGS = "worldvq/Maze-v0", {"size": (16, 24), "max_steps": 9, **SMALL}


def make(num_envs, mode="SameStep"):
    return gymnasium.make_vec(ID, num_envs, "vector_entry_point", autoreset_mode=mode, **KWARGS)


def test_it_steps_and_ends_as_stable_baselines3s_own():
    ours = SB3VecEnv(make(3))
    theirs = DummyVecEnv([lambda: gymnasium.make(ID, **KWARGS)] * 3)
    for env in (ours, theirs):
        env.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng, ended = np.random.default_rng(0), 0
    for _ in range(40):
        actions = rng.integers(7, size=3)
        (left, *mine, infos), (right, *other, others) = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(left, right)
        for one, another in zip(mine, other, strict=True):
            np.testing.assert_array_equal(one, another)
            assert one.dtype == another.dtype
        for one, another in zip(infos, others, strict=True):
            assert ("terminal_observation" in one) == ("terminal_observation" in another)
            if "terminal_observation" in one:
                np.testing.assert_array_equal(one["terminal_observation"], another["terminal_observation"])
                assert one["TimeLimit.truncated"] == another["TimeLimit.truncated"]
                ended += 1
    assert ended == 12


def test_ppo_learns_on_it_and_what_resets_otherwise_is_refused():
    env = VecMonitor(SB3VecEnv(make(4)))
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, device="cpu", seed=0)
    before = next(agent.policy.parameters()).detach().clone()
    agent.learn(128)
    assert len(agent.ep_info_buffer) >= 8 and (next(agent.policy.parameters()) != before).any()
    with pytest.raises(UsageError, match=r"NextStep.*SameStep"):
        SB3VecEnv(make(2, "NextStep"))
