"""The maze: rules, pictures against independent geometry, scalar against vector, and saved states."""

import copy
import math

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from worldvq_envs.maze.env import MazeEnv, MazeVectorEnv
from worldvq_envs.maze.layout import make_layout
from worldvq_envs.maze.render import FIELD_OF_VIEW, OBJECT_RADIUS, Renderer, Scene
from worldvq_envs.maze.rules import ACTION_NAMES, AGENT_RADIUS, STEP
from worldvq_envs.maze.textures import OBJECT_COLOURS, TEXELS

from worldvq.errors import UsageError
from worldvq.registration import register_envs

register_envs()
NOOP, FORWARD, BACK, LEFT, RIGHT, LOOK_LEFT, LOOK_RIGHT = range(7)
SMALL = {"num_cells": 5, "num_objects": 3}


def room(side: int = 7, objects: tuple = (), **kwargs) -> MazeEnv:
    """A maze without inner walls, the agent in the middle looking along +x, balls at ``objects``."""
    env = MazeEnv(num_cells=side, num_objects=len(objects), **kwargs)
    env.reset(seed=0)
    state = env.get_state()
    state["grid"][:, 1:-1, 1:-1] = 0
    state["position"][:] = 1 + side / 2
    state["heading"][:] = 0
    if objects:
        state["object_positions"][:] = objects
    env.set_state(state)
    return env


def frame(env: MazeEnv) -> np.ndarray:
    return env.set_state(env.get_state())


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


def march(grid: np.ndarray, position: np.ndarray, angle: float, step: float = 2e-4) -> float:
    """Distance along a ray to the first wall, by tiny steps."""
    distances = np.arange(0, 2 * len(grid), step)
    x = (position[0] + distances * math.cos(angle)).clip(0, len(grid) - 1).astype(int)
    y = (position[1] + distances * math.sin(angle)).clip(0, len(grid) - 1).astype(int)
    return distances[np.argmax(grid[y, x] != 0)]


def test_rays_agree_with_a_fine_march():
    random = np.random.default_rng(0)
    renderer = Renderer(20, 21)
    focal = 10.5 / math.tan(FIELD_OF_VIEW / 2)
    for seed in range(12):
        layout = make_layout(np.random.default_rng(seed), 9, 0)
        cell = random.permutation(np.argwhere(layout.grid == 0))[0][::-1]
        position = cell + random.uniform(0.05, 0.95, 2)
        heading = int(random.integers(24))
        rays = renderer.cast(scene(layout.grid, position, heading))
        for column in range(21):
            aside = math.atan((column + 0.5 - 10.5) / focal)
            angle = heading * math.radians(15) + aside
            distance = march(layout.grid, position, angle)
            assert rays.depth[0, column] == pytest.approx(distance * math.cos(aside), abs=4e-4)
            inside = position + (distance + 1e-3) * np.array([math.cos(angle), math.sin(angle)])
            assert rays.style[0, column] == layout.grid[int(inside[1]), int(inside[0])] - 1


def test_rays_do_not_slip_between_walls_that_meet_at_a_corner():
    grid = np.ones((7, 7), np.uint8)
    grid[1:6, 1:6] = 0
    grid[2, 3] = grid[3, 2] = 2
    rays = Renderer(9, 9).cast(scene(grid, np.array([2.5, 2.5]), 3))  # 45 degrees, straight at the corner (3, 3)
    np.testing.assert_allclose(rays.depth[0, 4], math.sqrt(0.5), atol=1e-6)
    assert (rays.style[0] == 1).all()


def scene(grid: np.ndarray, position: np.ndarray, heading: int) -> Scene:
    none = np.zeros((1, 0))
    return Scene(
        grid[None], position[None], np.array([heading]), np.zeros((1, 0, 2)), none.astype(int), none.astype(bool)
    )


def test_walls_stand_where_perspective_puts_them():
    """Straight at a wall at distance d the edges lie focal / (2 d) from the horizon, in every column."""
    env = room(side=7, size=(101, 101))
    focal = 50.5 / math.tan(FIELD_OF_VIEW / 2)
    rays = env._maze.renderer.cast(env._maze.rules.scene)
    np.testing.assert_allclose(rays.depth[0], 3.5, atol=1e-12)
    top = int(50.5 - focal / 7)
    view = frame(env).astype(int)
    change = np.abs(view[top + 1] - view[top - 1]).sum(-1)
    assert (change > 10).mean() > 0.9


def test_balls_hide_behind_walls_and_behind_each_other():
    env = room(side=7, objects=((6.5, 4.5), (5.9, 4.5)), size=(65, 65))
    state = env.get_state()
    state["object_kinds"][:] = [[0, 3]]
    both = env.set_state(state).astype(int)

    def ball(colour, image):
        hue = OBJECT_COLOURS[colour] / OBJECT_COLOURS[colour].sum()
        lit = image / np.maximum(image.sum(-1, keepdims=True), 1)
        return np.abs(lit - hue).sum(-1) < 0.3

    assert ball(3, both).sum() > 20
    state["object_present"][:] = [[True, False]]
    far = env.set_state(state).astype(int)
    focal = 32.5 / math.tan(FIELD_OF_VIEW / 2)
    expected = math.pi * (OBJECT_RADIUS * focal / 2) ** 2
    assert ball(0, far).sum() == pytest.approx(expected, rel=0.35)
    assert ball(0, both).sum() < ball(0, far).sum()
    state["object_present"][:] = False
    empty = env.set_state(state)
    state["grid"][:, 4, 5] = 1
    walled = env.set_state(state)
    state["object_present"][:] = [[True, False]]
    np.testing.assert_array_equal(env.set_state(state), walled)
    assert (walled != empty).any()


def test_the_map_shows_walls_balls_and_agent():
    env = room(side=7, objects=((6.5, 2.5),), top_down=True)
    _, _, _, _, info = env.step(NOOP)
    plan, pixels = info["map"], 16
    assert plan.shape == (144, 144, 3) and plan.dtype == np.uint8
    assert (plan[2 * pixels + 8, 6 * pixels + 8] == OBJECT_COLOURS[env.get_state()["object_kinds"][0, 0]]).all()
    assert plan[4 * pixels + 8, 4 * pixels + 8].max() < 40
    assert plan[4, 4].tolist() != plan[24, 24].tolist()
    assert "map" not in room().step(NOOP)[4]


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


def test_textures_repeat_without_a_seam():
    """Along u a pattern must continue in the next cell: the step over the border is no larger than inside."""
    from worldvq_envs.maze.textures import BLUR_WIDTHS, patterns

    stack = patterns().reshape(-1, len(BLUR_WIDTHS), TEXELS, TEXELS).astype(int)
    for level in range(1, len(BLUR_WIDTHS)):
        inside = np.abs(np.diff(stack[:, level], axis=2)).max(axis=(1, 2))
        border = np.abs(stack[:, level, :, 0] - stack[:, level, :, -1]).max(axis=1)
        assert (border <= inside + 1).all()
