"""The rules of the maze: balls, walls, moves, and that every place can be reached."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mazes import BACK, FORWARD, LEFT, LOOK_LEFT, LOOK_RIGHT, NOOP, RIGHT, SMALL, frame, room
from worldvq_envs.maze.env import MazeEnv
from worldvq_envs.maze.layout import make_layout
from worldvq_envs.maze.rules import AGENT_RADIUS, STEP

from worldvq.errors import UsageError


def test_a_ball_pays_once_and_vanishes_and_the_last_one_ends():
    env = room(objects=((6.5, 4.5), (2.5, 2.5)))
    first, rewards = frame(env), []
    for _ in range(8):
        observation, reward, terminated, truncated, info = env.step(FORWARD)
        rewards.append(reward)
        assert not terminated and not truncated
    assert sum(rewards) == 1 and max(rewards) == 1 and info["objects_left"] == 1
    for _ in range(8):
        observation = env.step(BACK)[0]
    assert (observation != first).any()
    state = env.get_state()
    state["object_present"][:] = True
    np.testing.assert_array_equal(env.set_state(state), first)
    state["object_present"][:] = [[False, True]]
    state["position"][:] = (3.5, 2.5)
    env.set_state(state)
    steps = [env.step(BACK) for _ in range(2)]
    assert steps[-1][1:4] == (1.0, True, False)
    with pytest.raises(UsageError, match="reset"):
        env.step(NOOP)


def test_truncation():
    env = MazeEnv(max_steps=12)
    env.reset(seed=0)
    ends = [env.step(NOOP)[2:4] for _ in range(12)]
    assert ends == [(False, False)] * 11 + [(False, True)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**20), st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), max_size=30))
def test_the_agent_never_touches_the_inside_of_a_wall(seed, runs):
    env = MazeEnv(size=(8, 8), **SMALL)
    env.reset(seed=seed)
    for action, times in runs:
        for _ in range(times):
            _, _, terminated, truncated, info = env.step(action)
            grid = env.get_state()["grid"][0]
            low = np.floor(info["position"] - AGENT_RADIUS).astype(int)
            high = np.ceil(info["position"] + AGENT_RADIUS).astype(int)
            assert not grid[low[1] : high[1], low[0] : high[0]].any()
            if terminated or truncated:
                env.reset()


def test_sliding_along_a_wall_keeps_the_other_direction():
    env = room()
    for _ in range(20):
        env.step(FORWARD)
    env.step(LOOK_RIGHT)
    before = env.get_state()["position"][0]
    env.step(FORWARD)
    after = env.get_state()["position"][0]
    assert before[0] == after[0] == 8 - AGENT_RADIUS
    assert after[1] - before[1] == pytest.approx(STEP * math.sin(math.radians(15)), abs=1e-4)


@pytest.mark.parametrize("there, back", [(FORWARD, BACK), (LEFT, RIGHT)])
def test_there_and_back(there, back):
    env = room()
    for _ in range(24):
        position, view = env.get_state()["position"], frame(env)
        for action in (there, there, back, back):
            last = env.step(action)[0]
        np.testing.assert_array_equal(env.get_state()["position"], position)
        np.testing.assert_array_equal(last, view)
        env.step(LOOK_LEFT)


def test_moves_go_where_the_names_say():
    for action, expected in ((FORWARD, (STEP, 0)), (BACK, (-STEP, 0)), (LEFT, (0, -STEP)), (RIGHT, (0, STEP))):
        env = room()
        before = env.get_state()["position"][0]
        env.step(action)
        np.testing.assert_allclose(env.get_state()["position"][0] - before, expected, atol=1e-4)


def test_turning_once_round_shows_the_same_frame():
    env = MazeEnv(max_steps=100)
    first, _ = env.reset(seed=11)
    views = [env.step(LOOK_LEFT)[0] for _ in range(24)]
    np.testing.assert_array_equal(views[-1], first)
    assert (views[0] != first).any()
    env.step(LOOK_RIGHT)
    np.testing.assert_array_equal(env.step(LOOK_LEFT)[0], first)


@pytest.mark.parametrize("num_cells", [3, 5, 9, 21])
def test_every_open_cell_can_be_reached(num_cells):
    for seed in range(20):
        layout = make_layout(np.random.default_rng(seed), num_cells, ((num_cells + 1) // 2) ** 2 - 1)
        is_open = layout.grid == 0
        assert not (is_open[0].any() or is_open[-1].any() or is_open[:, 0].any() or is_open[:, -1].any())
        reached = np.zeros_like(is_open)
        reached[tuple(layout.start[::-1].astype(int))] = True
        for _ in range(num_cells**2):
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            grown &= is_open
            if (grown == reached).all():
                break
            reached = grown
        np.testing.assert_array_equal(reached, is_open)
        places = {tuple(place) for place in [layout.start, *layout.object_positions]}
        assert len(places) == 1 + len(layout.object_positions)
        assert all(is_open[int(y), int(x)] for x, y in places)
