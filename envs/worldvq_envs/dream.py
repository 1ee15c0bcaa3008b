"""``worldvq/Dream-v0``: a trained world as an environment, one dream at a time or a batch of them in step.

Gymnasium makes :class:`DreamEnv` with ``gymnasium.make`` and :class:`DreamVectorEnv` with
``gymnasium.make_vec(..., vectorization_mode="vector_entry_point")``; from the same seeds both dream the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.world.dream import Step
from worldvq.world.model import WorldModel
from worldvq_envs import vector
from worldvq_envs.dream_rows import DreamRows, DreamState, at_least

METADATA = {"render_modes": ["rgb_array"], "render_fps": 15}


class DreamEnv(gymnasium.Env):
    """A dream that is acted in.

    It begins from frames of a held-out episode, of which the newest is the first observation, as the tokenizer has it.
    Actions are the recorded ones (:attr:`action_names` where they have names), rewards what the model expects. Whether
    an episode terminates is drawn from the model's probability that it does. ``reset(options={"frames": (C, H, W, 3)
    uint8, "actions": (C - 1, ...)})`` begins from a context of your own; a world with sound also takes ``"sounds"``
    (C, S) int16, what was heard before each frame. What is dreamt follows from the seed and the actions.

    Args:
        world: Folder of a trained world, or a loaded one.
        data: Dataset whose held-out episodes give the contexts; None where every reset brings its own.
        context: Frames of a context, at least 2.
        horizon: Steps after which an episode is truncated.
        info: What ``info`` holds of the newest frame, among ``entropy`` ((h, w) float32, nats of what each token was
            drawn from at temperature 1), ``tokens`` ((h, w) int64) and ``feature`` ((D,) float32, mean over positions
            of what the context network said of it from all frames and actions before it).
        sampling: Fields of :class:`~worldvq.models.config.SamplingConfig`; the rest is as the world's config says.
        device: See :meth:`WorldModel.load`.
        render_mode: ``rgb_array`` or None.

    Raises:
        UsageError: There is no such world, the dataset does not fit it, or a value is out of range.
    """

    metadata = METADATA

    def __init__(
        self,
        world: Path | str | WorldModel,
        data: Path | str | EpisodeStore | None = None,
        context: int = 6,
        horizon: int = 100,
        info: Sequence[str] = (),
        sampling: dict[str, Any] | None = None,
        device: str = "auto",
        render_mode: str | None = None,
    ) -> None:
        self._dreams = DreamRows(1, world, data, context, horizon, info, sampling, device, render_mode)
        self.render_mode = render_mode
        self.observation_space, self.action_space = self._dreams.observation_space, self._dreams.action_space
        self.action_names = self._dreams.world.action_space.names

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._dreams.begin(np.zeros(1, np.int64), [self.np_random], options or {})
        return self._dreams.look()[0], self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one action.

        Raises:
            UsageError: There is no such action, or the episode is over.
        """
        if self._dreams.ended[0]:
            raise UsageError("the episode is over or has not begun: call reset() before step()")
        rewards, terminated, truncated = self._dreams.step(np.asarray(action)[None])
        self._dreams.ended = terminated | truncated
        return self._dreams.look()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), self._info()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the newest frame (H, W, 3) uint8; None without a render mode."""
        return None if self.render_mode is None else self._dreams.frames[0].copy()

    def get_state(self) -> DreamState:
        """Return the whole state, the random generator included."""
        return self._dreams.get_state([self.np_random])

    def set_state(self, state: DreamState) -> np.ndarray:
        """Continue from a state of :meth:`get_state`, also one of another instance, and return its frame.

        Raises:
            UsageError: The state is of another world.
        """
        self._dreams.set_state(state, [self.np_random])
        return self._dreams.look()[0]

    def fork(self, num_envs: int, row_seeds: ArrayLike | None = None) -> DreamVectorEnv:
        """Return copies of this dream as a batch; see :meth:`DreamVectorEnv.fork`."""
        dreams = self._dreams.fork(np.zeros(num_envs, np.int64), row_seeds)
        rngs = [copy.deepcopy(self.np_random) for _ in range(num_envs)]
        return DreamVectorEnv._around(dreams, rngs, AutoresetMode.NEXT_STEP, self.render_mode)

    def _info(self) -> dict[str, Any]:
        return {name: value[0] for name, value in self._dreams.info().items()}


class DreamVectorEnv(gymnasium.vector.VectorEnv):
    """A batch of :class:`DreamEnv` that is dreamt together; environment i dreams what one alone does from its seed.

    Args:
        num_envs: Environments in the batch.
        autoreset_mode: ``NextStep`` (the step after the last one resets and ignores the action) or ``SameStep`` (the
            last step resets at once; the last frame is in ``info["final_obs"]``).
        world: This and the following: see :class:`DreamEnv`.
        data: Where contexts come from.
        context: Frames of a context.
        horizon: Steps after which an episode is truncated.
        info: What ``info`` holds.
        sampling: How tokens are drawn.
        device: Where it runs.
        render_mode: ``rgb_array`` or None.

    Raises:
        UsageError: There is no such world, the dataset does not fit it, or a value is out of range.
    """

    def __init__(
        self,
        world: Path | str | WorldModel,
        data: Path | str | EpisodeStore | None = None,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        context: int = 6,
        horizon: int = 100,
        info: Sequence[str] = (),
        sampling: dict[str, Any] | None = None,
        device: str = "auto",
        render_mode: str | None = None,
    ) -> None:
        num_envs, mode = at_least("num_envs", num_envs, 1), vector.autoreset_mode(autoreset_mode)
        dreams = DreamRows(num_envs, world, data, context, horizon, info, sampling, device, render_mode)
        self._set_up(dreams, [seeding.np_random(None)[0] for _ in range(num_envs)], mode, render_mode)

    def _set_up(
        self, dreams: DreamRows, rngs: list[np.random.Generator], mode: AutoresetMode, render_mode: str | None
    ) -> None:
        self._dreams, self._rngs, self.render_mode = dreams, rngs, render_mode
        self.num_envs, self.metadata = len(rngs), {**METADATA, "autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = dreams.observation_space, dreams.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.action_names = dreams.world.action_space.names

    @classmethod
    def _around(
        cls, dreams: DreamRows, rngs: list[np.random.Generator], mode: AutoresetMode, render_mode: str | None
    ) -> DreamVectorEnv:
        env = object.__new__(cls)
        env._set_up(dreams, rngs, mode, render_mode)
        return env

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begin an episode in every environment; an int gives environment i the seed ``seed + i``.

        Args:
            seed: One, or one each.
            options: ``reset_mask`` (E,) bool has only these begin again; ``frames`` (n, C, H, W, 3), ``actions``
                (n, C - 1, ...) and, in worlds with sound, ``sounds`` (n, C, S) are contexts for those n that begin, or
                one for all without the first axis.

        Raises:
            UsageError: Seeds, mask or contexts do not fit.
        """
        options, everyone = dict(options or {}), np.ones(self.num_envs, bool)
        mask = np.asarray(options.pop("reset_mask", everyone))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise UsageError(f"reset_mask: give {self.num_envs} booleans of which one or more are True")
        if self._dreams.dream is None and not mask.all():
            raise UsageError("reset_mask: no episode has begun, the first reset is of all environments")
        for env, one in enumerate(vector.seeds_of(seed, self.num_envs)):
            if one is not None and mask[env]:
                self._rngs[env] = seeding.np_random(one)[0]
        self._begin(mask, options)
        return self._dreams.look(), vector.with_masks(self._dreams.info(), mask)

    def _begin(self, chosen: np.ndarray, options: dict[str, Any]) -> None:
        rows = np.flatnonzero(chosen)
        self._dreams.begin(rows, [self._rngs[row] for row in rows], options)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Take one action in every environment.

        Raises:
            UsageError: An action does not exist, or there was no reset yet.
        """
        dreams, everyone = self._dreams, np.ones(self.num_envs, bool)
        if dreams.dream is None:
            raise UsageError("no episode has begun: call reset() before step()")
        restart = dreams.ended.copy()
        rewards, terminated, truncated = dreams.step(actions)
        if restart.any():  # of the mode NextStep: what these rows dreamt is nobody's
            rewards[restart], terminated[restart], truncated[restart] = 0, False, False
            self._begin(restart, {})
        ended, final = terminated | truncated, {}
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            dreams.ended = ended
        elif ended.any():
            final = vector.final_info(dreams.look(), dreams.info(), ended)
            self._begin(ended, {})
        return dreams.look(), rewards, terminated, truncated, vector.with_masks(dreams.info(), everyone) | final

    def forecast(self, actions: Any) -> Step:
        """Move every dream on by a frame whose tokens are drawn in one pass, see :meth:`Dream.forecast`.

        For planners, on a :meth:`fork`: there is no picture, nothing ends and nothing is reset.
        """
        if self._dreams.dream is None:
            raise UsageError("no episode has begun: call reset() before forecast()")
        return self._dreams.dream.forecast(actions)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the newest frames, each (H, W, 3) uint8; None without a render mode."""
        return None if self.render_mode is None else tuple(self._dreams.frames.copy())

    def get_state(self) -> DreamState:
        """Return the whole state, the random generators included."""
        return self._dreams.get_state(self._rngs)

    def set_state(self, state: DreamState) -> np.ndarray:
        """Continue from a state of :meth:`get_state` of as many dreams, and return their frames.

        Raises:
            UsageError: The state is of another world, or of another number of dreams.
        """
        self._dreams.set_state(state, self._rngs)
        return self._dreams.look()

    def fork(self, rows: ArrayLike, row_seeds: ArrayLike | None = None) -> DreamVectorEnv:
        """Return copies of some dreams as a batch of their own; this one stays as it is.

        Args:
            rows: (n,) indices, of which one may stand more than once.
            row_seeds: (n,) seeds of the copies; where they are left out, a copy dreams under the same actions what its
                row does.
        """
        dreams = self._dreams.fork(rows, row_seeds)
        rngs = [copy.deepcopy(self._rngs[row]) for row in np.arange(self.num_envs)[rows]]  # type: ignore[index]
        return self._around(dreams, rngs, self.metadata["autoreset_mode"], self.render_mode)
