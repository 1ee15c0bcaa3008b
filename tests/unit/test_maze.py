"""The maze as an environment: made by Gymnasium, scalar against vector, saved states, and wrong calls."""

import copy

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from support.mazes import FORWARD, LOOK_RIGHT, SMALL
from worldvq_envs.maze.env import MazeEnv, MazeVectorEnv
from worldvq_envs.maze.rules import ACTION_NAMES

from worldvq.errors import UsageError
from worldvq.registration import register_envs

register_envs()


def test_passes_the_gymnasium_checker():
    check_env(gymnasium.make("worldvq/Maze-v0", render_mode="rgb_array").unwrapped)
    check_env(
        gymnasium.make("worldvq/Maze-v0", disable_env_checker=True, top_down=True).unwrapped, skip_render_check=True
    )


def test_is_made_by_gymnasium_in_both_forms():
    env = gymnasium.make("worldvq/Maze-v0", size=(48, 40), render_mode="rgb_array", render_size=(30, 50))
    observation, _ = env.reset(seed=1)
    assert observation.shape == (48, 40, 3) and env.render().shape == (30, 50, 3)
    assert env.unwrapped.action_names == ACTION_NAMES == MazeEnv.ACTION_NAMES and env.action_space.n == len(
        ACTION_NAMES
    )
    batch = gymnasium.make_vec("worldvq/Maze-v0", num_envs=3, vectorization_mode="vector_entry_point", size=(48, 40))
    assert isinstance(batch, MazeVectorEnv)
    observations, _ = batch.reset(seed=1)
    assert observations in batch.observation_space
    np.testing.assert_array_equal(observations[0], observation)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_vector_equals_scalar_bit_for_bit(mode):
    kwargs = {"max_steps": 37, "size": (33, 47), "top_down": True, "render_mode": "rgb_array", **SMALL}
    ours = MazeVectorEnv(5, autoreset_mode=mode, **kwargs)
    theirs = gymnasium.vector.SyncVectorEnv([lambda: MazeEnv(**kwargs)] * 5, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    for left, right in zip(ours.reset(seed=7), theirs.reset(seed=7), strict=True):
        same(left, right)
    random = np.random.default_rng(0)
    endings = 0
    for step in range(220):
        actions = random.choice([FORWARD, FORWARD, *range(7)], size=5)
        left, right = ours.step(actions), theirs.step(actions)
        for mine, other in zip(left, right, strict=True):
            same(mine, other)
        endings += int((left[2] | left[3]).sum())
        if step % 50 == 0:
            same(ours.render(), theirs.render())
    assert endings > 20


def same(left, right) -> None:
    """Compare nested infos, frames and flags exactly."""
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, tuple) or (isinstance(left, np.ndarray) and left.dtype == object):
        for one, other in zip(left, right, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                same(one, other)
    else:
        np.testing.assert_array_equal(left, right)


def test_frames_follow_the_seed():
    def walk(seed):
        env = MazeEnv()
        frames = [env.reset(seed=seed)[0]]
        frames += [env.step(action)[0] for action in (1, 1, 5, 1, 6, 6, 1, 3)]
        return np.stack(frames), env.reset()[0]

    (first, next_first), (again, next_again), (other, _) = walk(3), walk(3), walk(4)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(next_first, next_again)
    assert (first != other).any() and (first[0] != next_first).any()


@pytest.mark.parametrize("num_envs", [None, 3])
def test_a_state_continues_exactly_and_branches(num_envs):
    def make():
        kwargs = {"max_steps": 20, **SMALL}
        return MazeEnv(**kwargs) if num_envs is None else MazeVectorEnv(num_envs, **kwargs)

    def follow(env, actions):
        frames = []
        for action in actions:
            observation, _, terminated, truncated, _ = env.step(action)
            frames.append(observation)
            if num_envs is None and (terminated or truncated):
                frames.append(env.reset()[0])
        return np.stack(frames)

    env = make()
    env.reset(seed=5)
    random = np.random.default_rng(1)
    shape = () if num_envs is None else (num_envs,)
    follow(env, random.integers(7, size=(15, *shape)))
    state = env.get_state()
    kept = copy.deepcopy(state)
    future, other = random.integers(7, size=(60, *shape)), random.integers(7, size=(60, *shape))
    expected = follow(env, future)
    fresh = make()
    fresh.reset(seed=99)
    fresh.set_state(state)
    np.testing.assert_array_equal(follow(fresh, future), expected)
    env.set_state(state)
    branch = follow(env, other)
    assert (branch[:5] != expected[:5]).any()
    for key in kept:  # the saved state is a copy, not a view
        np.testing.assert_array_equal(state[key], kept[key])


def test_a_foreign_state_is_refused():
    env = MazeEnv(num_cells=5)
    env.reset(seed=0)
    with pytest.raises(UsageError, match=r"grid.*num_cells"):
        MazeEnv(num_cells=7).set_state(env.get_state())
    state = env.get_state()
    del state["heading"]
    with pytest.raises(UsageError, match="lacks heading"):
        env.set_state(state)


@pytest.mark.parametrize("size", [(8, 8), (9, 33), (65, 31), (120, 160), (63, 8)])
def test_any_frame_size(size):
    env = MazeEnv(size=size)
    observation, _ = env.reset(seed=2)
    for _ in range(24):
        observation = env.step(LOOK_RIGHT)[0]
        assert observation.shape == (*size, 3) and observation.dtype == np.uint8
    assert observation.std() > 3


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"size": (64,)}, r"size \(64,\).*height"),
        ({"size": (7, 64)}, "from 8 to 1024"),
        ({"size": "64"}, "size '64'"),
        ({"num_cells": 8}, "num_cells 8.*odd.*7 or 9"),
        ({"num_cells": 1}, "num_cells 1.*from 3"),
        ({"num_objects": 99}, "num_objects 99.*from 0 to 24"),
        ({"num_objects": True}, "num_objects True"),
        ({"max_steps": 0}, "max_steps 0.*at least 1"),
        ({"render_mode": "human"}, "render_mode 'human'.*rgb_array"),
        ({"render_size": (0, 3)}, "render_size"),
    ],
)
def test_wrong_settings_are_refused_in_words(kwargs, message):
    for make in (MazeEnv, MazeVectorEnv):
        with pytest.raises(UsageError, match=message):
            make(**kwargs)


def test_wrong_calls_are_refused_in_words():
    with pytest.raises(UsageError, match="num_envs 0"):
        MazeVectorEnv(0)
    with pytest.raises(UsageError, match=r"autoreset_mode 'never'.*NextStep"):
        MazeVectorEnv(2, autoreset_mode="never")
    batch = MazeVectorEnv(2)
    with pytest.raises(UsageError, match="3 seeds for 2"):
        batch.reset(seed=[1, 2, 3])
    with pytest.raises(UsageError, match="reset"):
        batch.step([0, 0])
    batch.reset(seed=0)
    with pytest.raises(UsageError, match=r"from 0 to 6.*look_left"):
        batch.step([0, 7])
    env = MazeEnv()
    with pytest.raises(UsageError, match="reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(UsageError, match=r"action \[-1\]"):
        env.step(-1)
