"""Any Gymnasium environment as a stream of frames and actions.

A frame comes from the observation where that is an image, from one key of a Dict observation, or else from
``render()``. What cannot be turned into frames and actions is refused by :func:`make_stream`, before anything runs.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError, did_you_mean
from worldvq.types import ActionSpace
from worldvq_envs.families import Family, find_family

_FINAL_OBSERVATION = ("final_obs", "final_observation")
"""Where environments that reset themselves in the step that ends an episode put what that step showed."""
_SMALLEST_IMAGE = 8
"""Pixels a side: below this a 2-D or 3-D observation is taken for a board or a table, not for an image."""


class FrameStream:
    """An environment seen as frames (H, W, 3) uint8 and stored actions; made by :func:`make_stream`.

    Attributes:
        env: The Gymnasium environment.
        config: What it was made from.
        action_space: What :meth:`step` takes.
        last_observation: The raw observation behind the last frame, for agents that were trained on it.
        has_frame: False when the environment ended without showing a frame, as ViZDoom does. The frame
            returned then repeats the one before, and a recorder drops this transition.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        config: EnvConfig,
        image: Callable[[Any], np.ndarray],
        family: Family,
        repeat: int,
        observes: bool = True,
    ) -> None:
        self.env = env
        self.config = config
        self.action_space = adapt_actions(env, config.id, family)
        self.last_observation: Any = None
        self.has_frame = True
        self._image = image
        self._family = family
        self._repeat = repeat
        self._observes = observes  # the image is in the observation; else it is rendered, and shows the present
        self._num_steps = 0
        self._frame = np.zeros((*config.size, 3), np.uint8)
        self._folder: str | None = None

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode and return its first frame."""
        if self._family.litters and self._folder is None:
            # The engine starts at the first reset and writes into the directory it starts in, so it gets its own.
            self._folder = tempfile.mkdtemp(prefix="worldvq-")
            with contextlib.chdir(self._folder):
                observation, _ = self.env.reset(seed=seed)
        else:
            observation, _ = self.env.reset(seed=seed)
        self._num_steps = 0
        return self._see(observation)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Take one stored action, ``frame_skip`` times.

        Returns:
            The frame after it, the sum of the rewards, terminated, truncated. Never both: truncated wins.
        """
        env_action = self.to_env_action(action)
        total, terminated, truncated, observation, info = 0.0, False, False, None, {}
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self.env.step(env_action)
            total += float(reward)
            if terminated or truncated:
                break
        self._num_steps += 1
        if not terminated and self._num_steps == self.config.max_steps:
            truncated = True
        over = terminated or truncated
        if over and (final := next((key for key in _FINAL_OBSERVATION if key in info), None)):
            # It has reset itself already: what it returned belongs to the next episode, what ended this one is here.
            frame = self._see(info[final], shown=self._observes)
        else:
            frame = self._see(observation)
        return frame, total, bool(terminated and not truncated), bool(truncated)

    def to_env_action(self, action: Any) -> Any:
        """Turn a stored action into what the environment's own action space takes."""
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            return np.int64(int(action) + int(space.start))
        values = np.asarray(action).reshape(space.shape or ())
        if isinstance(space, spaces.MultiDiscrete):
            return (values + space.start).astype(space.dtype)
        if np.issubdtype(space.dtype, np.integer):
            values = np.rint(values)
        return values.astype(space.dtype)

    def to_stored_action(self, action: Any) -> np.ndarray:
        """Turn an action of the environment's own space into a stored one; the inverse of :meth:`to_env_action`."""
        values = np.asarray(action)
        if isinstance(self.env.action_space, spaces.Discrete | spaces.MultiDiscrete):
            values = values - self.env.action_space.start
        return values.reshape(self.action_space.shape).astype(self.action_space.dtype)

    def close(self) -> None:
        """Close the environment and remove what its engine wrote."""
        self.env.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _see(self, observation: Any, shown: bool = True) -> np.ndarray:
        """Return the frame of an observation, or the last one where it is not ``shown``."""
        self.last_observation = observation
        self.has_frame = shown and self._family.has_frame(self.env)
        if self.has_frame:
            self._frame = fit_frame(self._image(observation), self.config)
        return self._frame


def make_stream(config: EnvConfig) -> FrameStream:
    """Build the environment of ``config`` and adapt it.

    Raises:
        UsageError: Unknown id, missing package, wrong keyword, or spaces that cannot be adapted.
    """
    family = find_family(config.id)
    family.prepare(config)
    kwargs, repeat = family.kwargs(config)
    env = _make(config.id, kwargs)
    try:
        image = _image_of(env.observation_space, config, family)
        observes = image is not None
        if image is None:
            env = _make_rendering(env, config, kwargs)
            image = _render(env)
        return FrameStream(env, config, image, family, repeat, observes)
    except BaseException:
        env.close()
        raise


def adapt_actions(env: gymnasium.Env, env_id: str, family: Family | None = None) -> ActionSpace:
    """Describe the action space of ``env`` in the form in which actions are stored.

    Raises:
        UsageError: The space is none of Discrete, MultiDiscrete, MultiBinary and Box.
    """
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        names = getattr(env.unwrapped, "action_names", None) or (family.action_names(env) if family else ())
        names = tuple(str(name) for name in names)
        return ActionSpace("discrete", nvec=(int(space.n),), names=names if len(names) == space.n else ())
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpace("multi_discrete", nvec=tuple(int(n) for n in space.nvec.reshape(-1)))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpace("multi_discrete", nvec=(2,) * int(np.prod(space.shape)))
    if isinstance(space, spaces.Box):
        low, high = (tuple(float(bound) for bound in side.reshape(-1)) for side in (space.low, space.high))
        return ActionSpace("box", low=low, high=high)
    raise UsageError(
        f"'{env_id}' has the action space {_short(space)}, which cannot be stored: choose env.kwargs with which it "
        "offers Discrete, MultiDiscrete, MultiBinary or Box actions, or wrap it"
    )


def fit_frame(image: np.ndarray, config: EnvConfig) -> np.ndarray:
    """Crop and resize an (H, W, 3) uint8 image to ``config.size``.

    The filter is antialiased bilinear (a triangle as wide as two output pixels), as Pillow's BILINEAR: torch has it
    for uint8 with vector instructions, 160x120 to 64x64 in 50 us where Pillow's BOX takes 200.

    Returns:
        A new array: the environment may overwrite ``image`` at its next step.

    Raises:
        UsageError: The crop leaves nothing.
    """
    if config.crop is not None:
        top, bottom, left, right = config.crop
        height, width = image.shape[:2]
        if top + bottom >= height or left + right >= width:
            raise UsageError(f"env.crop {config.crop} leaves nothing of a frame of {height}x{width} pixels")
        image = image[top : height - bottom, left : width - right]
    if image.shape[:2] == config.size:
        return np.array(image)
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)  # channels last
    pixels = torch.nn.functional.interpolate(pixels, config.size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1)[0].numpy())


def _make(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    try:
        # Without the checker, which inspects every step and costs as much as a small environment.
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv:
        hint = did_you_mean(env_id, gymnasium.registry)
        raise UsageError(f"there is no environment '{env_id}'{hint}: set env.id to a Gymnasium id") from None
    except gymnasium.error.DependencyNotInstalled as error:
        install = find_family(env_id).install
        hint = f': pip install "{install}"' if install else ""
        raise UsageError(f"'{env_id}' needs a package that is not installed: {_line(error)}{hint}") from None
    except Exception as error:
        given = f" with env.kwargs {kwargs}" if kwargs else ""
        raise UsageError(f"'{env_id}'{given} cannot be built: {type(error).__name__}: {_line(error)}") from error


def _make_rendering(env: gymnasium.Env, config: EnvConfig, kwargs: dict[str, Any]) -> gymnasium.Env:
    """Return an environment whose ``render()`` gives an image; ``env`` is closed where a new one is needed."""
    if env.render_mode == "rgb_array":
        return env
    modes = env.metadata.get("render_modes") or []
    if "rgb_array" not in modes or "render_mode" in kwargs:
        raise UsageError(
            f"'{config.id}' shows no image: its observation space is {_short(env.observation_space)} and it renders "
            f"{list(modes)}, not rgb_array; set env.observation_key or env.kwargs to what gives pixels"
        )
    env.close()
    return _make(config.id, {**kwargs, "render_mode": "rgb_array"})


def _render(env: gymnasium.Env) -> Callable[[Any], np.ndarray]:
    def image(_: Any) -> np.ndarray:
        picture = env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[-1] not in (3, 4):
            raise UsageError(f"render() gave {type(picture).__name__}, not an (H, W, 3) array")
        return picture[..., :3].astype(np.uint8, copy=False)

    return image


def _image_of(space: spaces.Space, config: EnvConfig, family: Family) -> Callable[[Any], np.ndarray] | None:
    """Return what takes the image out of an observation, or None where it holds none."""
    key = config.observation_key
    if not isinstance(space, spaces.Dict):
        if key is not None:
            raise UsageError(
                f"env.observation_key '{key}': '{config.id}' observes {_short(space)}, not a Dict; leave it out"
            )
        return _convert(space)
    images = [name for name, part in space.items() if _convert(part) is not None]
    if key is None:
        key = family.observation_key if family.observation_key in images else None
    if key is None and len(images) > 1:
        raise UsageError(f"'{config.id}' observes several images, {images}: set env.observation_key to one of them")
    if key is not None and key not in images:
        raise UsageError(f"env.observation_key '{key}': '{config.id}' has the images {images} in {_short(space)}")
    if not images:
        return None
    name = key or images[0]
    convert = _convert(space[name])
    assert convert is not None
    return lambda observation: convert(observation[name])


def _convert(space: spaces.Space) -> Callable[[Any], np.ndarray] | None:
    """Return what turns a value of ``space`` into (H, W, 3) uint8, or None where the space holds no image."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return None
    shape, unit = space.shape, np.issubdtype(space.dtype, np.floating)
    if space.dtype != np.uint8 and not (unit and space.low.min() >= 0 and space.high.max() <= 1):
        return None
    first = len(shape) == 3 and shape[-1] not in (1, 3) and shape[0] in (1, 3)
    if len(shape) == 3 and not first and shape[-1] not in (1, 3):
        return None
    sides = shape[1:] if first else shape[:2]
    if min(sides) < _SMALLEST_IMAGE:
        return None

    def image(value: Any) -> np.ndarray:
        value = np.asarray(value)
        if unit:
            value = np.rint(value * 255).clip(0, 255).astype(np.uint8)
        if value.ndim == 2:
            value = value[..., None]
        elif first:
            value = np.moveaxis(value, 0, -1)
        return value if value.shape[-1] == 3 else np.repeat(value, 3, axis=-1)

    return image


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
