"""``worldvq/Maze-v0``: a first-person 3D maze in NumPy, one at a time or a batch of them.

Gymnasium makes :class:`MazeEnv` with ``gymnasium.make`` and :class:`MazeVectorEnv` with
``gymnasium.make_vec(..., vectorization_mode="vector_entry_point")``; from the same seeds both show the same frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from worldvq.errors import UsageError
from worldvq_envs import vector
from worldvq_envs.maze.render import Renderer, draw_map
from worldvq_envs.maze.rules import ACTION_NAMES, Rules

_SIZE_RANGE = (8, 1024)
_CELLS_RANGE = (3, 63)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_size(name: str, size: Any) -> tuple[int, int]:
    low, high = _SIZE_RANGE
    pair = list(size) if isinstance(size, Sequence | np.ndarray) and not isinstance(size, str) else []
    if len(pair) != 2 or not all(_is_int(side) and low <= side <= high for side in pair):
        raise UsageError(f"{name} {size!r}: give (height, width) in pixels, each a whole number from {low} to {high}")
    return int(pair[0]), int(pair[1])


def _check_int(name: str, value: Any, low: int, high: int | None, hint: str = "") -> int:
    if not _is_int(value) or value < low or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UsageError(f"{name} {value!r}: give a whole number {bounds}{hint}")
    return int(value)


class _Maze:
    """What the scalar and the vector environment share: the checked settings, the rules and the pictures."""

    def __init__(
        self,
        num_envs: int,
        size: tuple[int, int],
        num_cells: int,
        num_objects: int,
        max_steps: int,
        top_down: bool,
        render_mode: str | None,
        render_size: tuple[int, int] | None,
    ) -> None:
        size = _check_size("size", size)
        num_cells = _check_int("num_cells", num_cells, *_CELLS_RANGE)
        if num_cells % 2 == 0:
            raise UsageError(f"num_cells {num_cells}: give an odd number, {num_cells - 1} or {num_cells + 1}")
        room = ((num_cells + 1) // 2) ** 2 - 1
        hint = f", which a maze of num_cells {num_cells} has room for"
        num_objects = _check_int("num_objects", num_objects, 0, room, hint)
        max_steps = _check_int("max_steps", max_steps, 1, None)
        if render_mode not in (None, "rgb_array"):
            raise UsageError(f"render_mode {render_mode!r}: choose 'rgb_array' or None")
        self.top_down = bool(top_down)
        self.rules = Rules(num_envs, num_cells, num_objects, max_steps)
        self.renderer = Renderer(*size)
        shown = size if render_size is None else _check_size("render_size", render_size)
        self.shown = self.renderer if shown == size else Renderer(*shown)
        self.observation_space = spaces.Box(0, 255, (*size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(ACTION_NAMES))
        self.reset_needed = np.ones(num_envs, bool)

    def check_actions(self, actions: Any) -> np.ndarray:
        """Return (E,) int64 actions, or refuse."""
        values = np.asarray(actions)
        expected = self.reset_needed.shape
        if values.shape != expected or not np.issubdtype(values.dtype, np.integer):
            raise UsageError(f"action {values.tolist()}: give whole numbers of shape {expected}")
        if values.size and not (values.min() >= 0 and values.max() < len(ACTION_NAMES)):
            raise UsageError(
                f"action {values.tolist()}: choose from 0 to {len(ACTION_NAMES) - 1} ({', '.join(ACTION_NAMES)})"
            )
        return values.astype(np.int64)

    def info(self) -> dict[str, np.ndarray]:
        """Return (E, ...) position, heading and objects left, and the map where it was asked for."""
        scene = self.rules.scene
        info = {
            "position": scene.position.copy(),
            "heading": scene.heading.copy(),
            "objects_left": scene.object_present.sum(1),
        }
        return {**info, "map": draw_map(scene)} if self.top_down else info

    def get_state(self, generators: Sequence[np.random.Generator]) -> dict[str, Any]:
        """Return everything that decides what happens next."""
        rng = [generator.bit_generator.state for generator in generators]
        return {**self.rules.get_state(), "reset_needed": self.reset_needed.copy(), "rng": rng}

    def set_state(self, state: dict[str, Any], generators: Sequence[np.random.Generator]) -> None:
        """Inverse of :meth:`get_state`."""
        expected = self.rules.get_state()
        missing = sorted(({*expected, "reset_needed", "rng"}) - set(state))
        if missing:
            raise UsageError(f"the state lacks {', '.join(missing)}: give one that get_state() returned")
        for name, value in expected.items():
            if np.shape(state[name]) != value.shape:
                raise UsageError(
                    f"the state's {name} has shape {np.shape(state[name])}, this maze needs {value.shape}: "
                    "set the state of an environment made with the same num_cells, num_objects and num_envs"
                )
        self.rules.set_state(state)
        self.reset_needed[...] = state["reset_needed"]
        for generator, rng in zip(generators, state["rng"], strict=True):
            generator.bit_generator.state = rng


class MazeEnv(gymnasium.Env):
    """A random maze seen through the eyes of an agent that collects coloured balls.

    Each ball is worth 1 and vanishes. The episode terminates when none is left and is truncated after ``max_steps``.
    The layout is drawn at every reset. ``info`` holds ``position`` (x, y, in cells), ``heading`` (in 15 degrees, to
    the right from +x), ``objects_left`` and, with ``top_down``, ``map`` (the plan as an image, y downwards).

    Args:
        size: Height and width of the observation, (H, W, 3) uint8.
        num_cells: Cells along each side of the maze, odd.
        num_objects: Balls to collect.
        max_steps: Steps after which the episode is truncated.
        top_down: Put the plan into ``info["map"]``.
        render_mode: ``rgb_array`` or None.
        render_size: Height and width of what :meth:`render` returns; None takes ``size``.

    Raises:
        UsageError: A value is out of range.
    """

    ACTION_NAMES = ACTION_NAMES
    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        size: tuple[int, int] = (64, 64),
        num_cells: int = 9,
        num_objects: int = 6,
        max_steps: int = 500,
        top_down: bool = False,
        render_mode: str | None = None,
        render_size: tuple[int, int] | None = None,
    ) -> None:
        self._maze = _Maze(1, size, num_cells, num_objects, max_steps, top_down, render_mode, render_size)
        self.render_mode = render_mode
        self.observation_space = self._maze.observation_space
        self.action_space = self._maze.action_space
        self.action_names = ACTION_NAMES

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in a new layout."""
        super().reset(seed=seed)
        self._maze.rules.reset(0, self.np_random)
        self._maze.reset_needed[:] = False
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one action, an index into :attr:`ACTION_NAMES`.

        Raises:
            UsageError: There is no such action, or the episode is over.
        """
        if self._maze.reset_needed[0]:
            raise UsageError("the episode is over or has not begun: call reset() before step()")
        actions = self._maze.check_actions(np.asarray(action)[None])
        rewards, terminated, truncated = self._maze.rules.step(actions, np.ones(1, bool))
        self._maze.reset_needed[:] = terminated | truncated
        return self._observe(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), self._info()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the current view as (H, W, 3) uint8 of ``render_size``; None without a render mode."""
        if self.render_mode is None:
            return None
        return self._maze.shown.render(self._maze.rules.scene)[0]

    def get_state(self) -> dict[str, Any]:
        """Return the whole state, the random generator included, as a dict of arrays and numbers."""
        return self._maze.get_state([self.np_random])

    def set_state(self, state: dict[str, Any]) -> np.ndarray:
        """Continue from a state of :meth:`get_state`, also one of another instance, and return its frame.

        Raises:
            UsageError: The state is of a maze with other settings.
        """
        self._maze.set_state(state, [self.np_random])
        return self._observe()

    def frames_without_objects(self) -> np.ndarray:
        """Return the frame as it is, and then without each ball, (1 + num_objects, H, W, 3) uint8."""
        scene = self._maze.rules.scene
        num_objects = scene.object_present.shape[1]
        copies = scene[np.zeros(1 + num_objects, np.int64)]
        copies.object_present[np.arange(1, 1 + num_objects), np.arange(num_objects)] = False
        return self._maze.renderer.render(copies)

    def _observe(self) -> np.ndarray:
        return self._maze.renderer.render(self._maze.rules.scene)[0]

    def _info(self) -> dict[str, Any]:
        return {name: value[0] for name, value in self._maze.info().items()}


class MazeVectorEnv(gymnasium.vector.VectorEnv):
    """A batch of :class:`MazeEnv` that is moved and drawn together.

    Args:
        num_envs: Environments in the batch.
        autoreset_mode: ``NextStep`` (the step after the last one resets and ignores the action) or ``SameStep`` (the
            last step resets at once; the last frame is in ``info["final_obs"]``).
        size: This and the following: see :class:`MazeEnv`.
        num_cells: Cells along each side.
        num_objects: Balls to collect.
        max_steps: Steps after which an episode is truncated.
        top_down: Put the plans into ``info["map"]``.
        render_mode: ``rgb_array`` or None.
        render_size: Height and width of each image of :meth:`render`.

    Raises:
        UsageError: A value is out of range.
    """

    ACTION_NAMES = ACTION_NAMES

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        size: tuple[int, int] = (64, 64),
        num_cells: int = 9,
        num_objects: int = 6,
        max_steps: int = 500,
        top_down: bool = False,
        render_mode: str | None = None,
        render_size: tuple[int, int] | None = None,
    ) -> None:
        self.num_envs = _check_int("num_envs", num_envs, 1, None)
        mode = vector.autoreset_mode(autoreset_mode)
        self._maze = _Maze(self.num_envs, size, num_cells, num_objects, max_steps, top_down, render_mode, render_size)
        self.metadata = {**MazeEnv.metadata, "autoreset_mode": mode}
        self.render_mode = render_mode
        self.single_observation_space = self._maze.observation_space
        self.single_action_space = self._maze.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.action_names = ACTION_NAMES
        self._begun = False
        self._same_step = mode is AutoresetMode.SAME_STEP
        self._generators = [seeding.np_random(None)[0] for _ in range(self.num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begin an episode in every environment; an int gives environment i the seed ``seed + i``.

        Raises:
            UsageError: There are not as many seeds as environments.
        """
        for env, one in enumerate(vector.seeds_of(seed, self.num_envs)):
            if one is not None:
                self._generators[env] = seeding.np_random(one)[0]
            self._maze.rules.reset(env, self._generators[env])
        self._maze.reset_needed[:] = False
        self._begun = True
        return self._observe(), self._info()

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Take one action in every environment.

        Raises:
            UsageError: An action does not exist, or there was no reset yet.
        """
        maze = self._maze
        if not self._begun:
            raise UsageError("no episode has begun: call reset() before step()")
        actions = maze.check_actions(actions)
        restart = maze.reset_needed.copy()
        rewards, terminated, truncated = maze.rules.step(actions, ~restart)
        ended = terminated | truncated
        for env in np.flatnonzero(restart):
            maze.rules.reset(int(env), self._generators[env])
        maze.reset_needed[:] = ended & (not self._same_step)
        frames, info = self._observe(), self._info()
        if self._same_step and ended.any():
            final = vector.final_info(frames, maze.info(), ended)
            for env in np.flatnonzero(ended):
                maze.rules.reset(int(env), self._generators[env])
            frames[ended] = maze.renderer.render(maze.rules.scene[ended])
            info = {**self._info(), **final}
        return frames, rewards, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the current views, each (H, W, 3) uint8 of ``render_size``; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self._maze.shown.render(self._maze.rules.scene))

    def get_state(self) -> dict[str, Any]:
        """Return the whole state, the random generators included, as a dict of arrays and numbers."""
        return self._maze.get_state(self._generators)

    def set_state(self, state: dict[str, Any]) -> np.ndarray:
        """Continue from a state of :meth:`get_state` and return the frames.

        Raises:
            UsageError: The state is of mazes with other settings.
        """
        self._maze.set_state(state, self._generators)
        self._begun = True
        return self._observe()

    def _observe(self) -> np.ndarray:
        return self._maze.renderer.render(self._maze.rules.scene)

    def _info(self) -> dict[str, np.ndarray]:
        return vector.with_masks(self._maze.info(), np.ones(self.num_envs, bool))
