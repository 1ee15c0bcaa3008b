"""An environment as a stream of frames and actions; what it gives is checked at every step."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.errors import UsageError, one_line
from worldvq_envs.actions import Actions, names_of
from worldvq_envs.families import Family
from worldvq_envs.fitting import cropped_size, fit_frame
from worldvq_envs.images import Picture
from worldvq_envs.sounds import Ears, rate_of

_FINAL_OBSERVATION = ("final_obs", "final_observation")
"""Where environments that reset themselves in the step that ends an episode put what that step showed."""
_LOOK_SEED = 1
_LONGEST_LOOK = 8
"""Steps after which it must be plain what an image's numbers mean."""
_OLD_GYM = "old Gym's interface: wrap it with shimmy (pip install shimmy), or let step return five values"
_MEND = "mend the environment, or wrap it (env.wrappers)"
LIMIT = 10_000
"""Steps of an episode where neither the environment nor the config has a limit."""


class FrameStream:
    """An environment seen as frames (H, W, 3) uint8 and stored actions.

    :func:`worldvq_envs.adapters.make_stream` makes it.

    Attributes:
        env: The Gymnasium environment.
        config: What it was made from.
        action_space: What :meth:`step` takes.
        last_observation: The raw observation behind the last frame, for agents that were trained on it.
        has_frame: False when the environment ended without showing a frame, as ViZDoom does. The frame
            returned then repeats the one before, and a recorder drops this transition.
        sound_format: Rate and samples of what is heard in a step, None where ``env.audio_key`` names nothing.
        sound: (S,) int16, what was heard in the last step: between the frame before it and the one it returned, over
            all repeats of its action, and silence after the episode's end. None without a ``sound_format``, and before
            the first step.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        config: EnvConfig,
        picture: Picture | None,
        family: Family,
        repeat: int,
        rendering: Callable[[], gymnasium.Env] | None,
    ) -> None:
        self.env = env
        self.config = config
        names = config.action_names or family.action_names(env) or names_of(env)
        self._actions = Actions(env.action_space, tuple(names), config.id)
        self.action_space = self._actions.space
        if config.action_names and not self.action_space.names:
            raise UsageError(
                f"env.action_names has {len(config.action_names)} names, '{config.id}' has the actions "
                f"{self.action_space.kind} {self.action_space.nvec or self.action_space.shape}"
            )
        self.last_observation: Any = None
        self.has_frame = True
        self.sound_format: SoundFormat | None = None
        self.sound: np.ndarray | None = None
        self._ears = Ears(config.audio_key) if config.audio_key is not None else None
        self._picture: Picture = picture  # type: ignore[assignment] (_render sets it where there is none)
        self._family = family
        self._repeat = repeat
        self._observes = True  # the image is in the observation; else it is rendered, and shows the present
        self._rendering = rendering
        if picture is None:
            self._render()
        spec = env.spec.max_episode_steps if env.spec else None
        self.limit = config.max_steps or (LIMIT if spec is None else 0)
        self._num_steps = 0
        self._frame = np.zeros((*config.size, 3), np.uint8)
        self._folder: str | None = None

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode and return its first frame; before the first one, see what images look like."""
        if self._picture.scale is None:
            self._look()
        return self._see(self._reset(seed))

    def _reset(self, seed: int) -> Any:
        if self._family.litters and self._folder is None:
            # The engine starts at the first reset and writes into the directory it starts in, so it gets its own.
            self._folder = tempfile.mkdtemp(prefix="worldvq-")
            with contextlib.chdir(self._folder):
                result = self.env.reset(seed=seed)
        else:
            result = self.env.reset(seed=seed)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
            raise ValueError(f"reset gave {_kind(result)}, not an observation and a dict: {_OLD_GYM}")
        self._num_steps = 0
        return result[0]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Take one stored action, ``frame_skip`` times.

        Returns:
            The frame after it, the sum of the rewards, terminated, truncated. Never both: truncated wins.

        Raises:
            ValueError: What came back is no step of an environment, or no such image as before; says which part.
            FloatingPointError: The reward is not finite.
        """
        env_action = self._actions.to_env(action)
        total, terminated, truncated, observation, info, heard = 0.0, False, False, None, {}, []
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = _checked_step(self.env.step(env_action))
            total += reward
            if self._ears is not None:
                heard.append(self._ears(_last_seen(observation, terminated or truncated, info), info))
            if terminated or truncated:
                break
        if self.sound_format is not None:
            self.sound = np.zeros(self.sound_format.samples, np.int16)
            self.sound[: sum(map(len, heard))] = np.concatenate(heard)
        self._num_steps += 1
        if not terminated and self._num_steps == self.limit:
            truncated = True
        last = _last_seen(observation, terminated or truncated, info)
        frame = self._see(last, shown=last is observation or self._observes)
        return frame, total, terminated and not truncated, truncated

    def to_env_action(self, action: Any) -> Any:
        """Turn a stored action into what the environment's own action space takes."""
        return self._actions.to_env(action)

    def to_stored_action(self, action: Any) -> np.ndarray:
        """Turn an action of the environment's own space into a stored one; the inverse of :meth:`to_env_action`."""
        return self._actions.to_stored(action)

    def as_played(self, action: np.ndarray) -> np.ndarray:
        """Return a stored action as it is played, rounded and clipped where the environment's own space wants it."""
        return self.to_stored_action(self.to_env_action(action)) if self._actions.changes else action

    def describe(self) -> list[str]:
        """Say what is recorded, and what about it may surprise; one line each."""
        (height, width), (out_height, out_width) = cropped_size(self._picture.size, self.config), self.config.size
        lines = [f"{self._picture.describe()}, stored as {out_height}x{out_width}"]
        if self.limit and not self.config.max_steps:
            lines.append(f"it sets no limit: episodes are cut after {self.limit:,} steps (env.max_steps)")
        if self.sound_format is not None:
            rate, samples = self.sound_format.rate, self.sound_format.samples
            lines.append(f"sound '{self.config.audio_key}', {rate:,} samples/s in one channel, {samples:,} a step")
        ratio = width / height * out_height / out_width
        if not 0.9 < ratio < 1.1 and self.config.fit == "squash":
            lines.append(f"{height}x{width} is squashed to {out_height}x{out_width}: env.fit=pad or crop keeps shapes")
        if self._picture.is_faint:
            lines.append(
                f"warning: hardly anything is to be seen in {self._picture.name}: values from {self._picture.low:g} to "
                f"{self._picture.high:g} in its first frames; look at `worldvq data preview`, or set env.source"
            )
        return lines

    def frames_without_objects(self) -> np.ndarray:
        """Return the last frame as it is, and then without each object, (1 + K, H, W, 3) uint8.

        Raises:
            UsageError: The environment has no such method, or shows another frame with it than is recorded.
        """
        about = "see `Objects` in docs/your_environment.md"
        if not self.env.has_wrapper_attr("frames_without_objects"):
            raise UsageError(f"'{self.config.id}' has no method frames_without_objects(): {about}")
        images = self.env.get_wrapper_attr("frames_without_objects")()
        frames = np.stack([fit_frame(np.asarray(image), self.config) for image in images])
        if not np.array_equal(frames[0], self._frame):
            raise UsageError(
                f"the first frame of '{self.config.id}'.frames_without_objects() is not the one that is recorded: "
                f"where a wrapper changes the picture, give it that method too; {about}"
            )
        return frames

    def close(self) -> None:
        """Close the environment and remove what its engine wrote."""
        self.env.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _render(self) -> None:
        """Take what ``render()`` gives for the image from now on."""
        assert self._rendering is not None
        self.env, self._observes = self._rendering(), False
        self._picture, self._rendering = Picture("render()", lambda _: self.env.render()), None

    def _look(self) -> None:
        """Look at frames until it is plain what their numbers mean; the same ones in every process.

        Raises:
            UsageError: They are no pictures, or the environment fails in its first steps.
        """
        self.env.action_space.seed(_LOOK_SEED)
        try:
            self._look_at_steps()
            self._picture.decide()
        except UsageError as error:
            raise UsageError(f"'{self.config.id}': {error}") from None
        except ValueError as error:
            raise UsageError(f"'{self.config.id}' cannot be recorded: {one_line(error)}") from None
        if self._picture.may_be_codes and self._rendering is not None:
            self._render()
            self._look()

    def _look_at_steps(self) -> None:
        """Show the picture a first frame and, while it is in doubt, those of random steps after it."""
        self._picture.look(self._reset(_LOOK_SEED))
        for step in range(_LONGEST_LOOK):
            if self._picture.is_plain:
                return
            try:
                observation, _, terminated, truncated, _ = _checked_step(self.env.step(self.env.action_space.sample()))
                if self._family.has_frame(self.env):
                    self._picture.look(observation)
            except Exception as error:
                if isinstance(error, UsageError) or (step == 0 and isinstance(error, ValueError)):
                    raise
                return  # its simulator failed, or has a fault that an episode will meet too: what was seen has to do
            if terminated or truncated:
                return

    def listen(self) -> None:
        """Take one step of an episode of its own, to know how much is heard in each.

        Raises:
            UsageError: Nothing is heard under ``env.audio_key``, or nobody says at which rate.
        """
        assert self._ears is not None
        rate = rate_of(self.config.audio_rate, self._family.audio_rate(self.env), self.config.id)
        self.env.action_space.seed(_LOOK_SEED)
        try:
            self._reset(_LOOK_SEED)
            observation, _, _, _, info = _checked_step(self.env.step(self.env.action_space.sample()))
            samples = len(self._ears(observation, info))
        except ValueError as error:
            raise UsageError(f"'{self.config.id}' cannot be recorded: {one_line(error)}") from None
        self.sound_format = SoundFormat(rate=rate, samples=samples * self._repeat)

    def _see(self, observation: Any, shown: bool = True) -> np.ndarray:
        """Return the frame of an observation, or the last one where it is not ``shown``."""
        self.last_observation = observation
        self.has_frame = shown and self._family.has_frame(self.env)
        if self.has_frame:
            self._frame = fit_frame(self._picture(observation), self.config)
        return self._frame


def _last_seen(observation: Any, over: bool, info: Mapping[str, Any]) -> Any:
    """Return the observation of a step: where it has reset itself already, what it returned is the next episode's."""
    final = next((key for key in _FINAL_OBSERVATION if over and key in info), None)
    return observation if final is None else info[final]


def _checked_step(result: Any) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
    """Return what ``step`` gave, if it is a step: five parts, a finite reward that is one number, a dict of info."""
    if not isinstance(result, tuple) or len(result) != 5:
        raise ValueError(f"step gave {_kind(result)}, not five: {_OLD_GYM}")
    observation, reward, terminated, truncated, info = result
    if type(reward) is not float:
        if not isinstance(reward, int | float | np.number | np.bool | np.ndarray) or np.ndim(reward):
            raise ValueError(f"step gave {_kind(reward)} as reward, not one number: {_MEND}")
        reward = float(reward)  # type: ignore[arg-type]
    if not math.isfinite(reward):
        raise FloatingPointError(f"step gave a reward that is not finite: {reward}")
    if not isinstance(info, Mapping):
        raise ValueError(f"step gave {_kind(info)} as info, not a dict: {_MEND}")
    return observation, reward, bool(terminated), bool(truncated), info


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return f"an array of shape {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
