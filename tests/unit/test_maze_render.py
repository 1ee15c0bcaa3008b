"""The maze's pictures against independent geometry."""

import math

import numpy as np
import pytest
from support.mazes import NOOP, frame, room
from worldvq_envs.maze.layout import make_layout
from worldvq_envs.maze.render import FIELD_OF_VIEW, OBJECT_RADIUS, Renderer, Scene
from worldvq_envs.maze.textures import OBJECT_COLOURS, TEXELS


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


def test_textures_repeat_without_a_seam():
    """Along u a pattern must continue in the next cell: the step over the border is no larger than inside."""
    from worldvq_envs.maze.textures import BLUR_WIDTHS, patterns

    stack = patterns().reshape(-1, len(BLUR_WIDTHS), TEXELS, TEXELS).astype(int)
    for level in range(1, len(BLUR_WIDTHS)):
        inside = np.abs(np.diff(stack[:, level], axis=2)).max(axis=(1, 2))
        border = np.abs(stack[:, level, :, 0] - stack[:, level, :, -1]).max(axis=1)
        assert (border <= inside + 1).all()
