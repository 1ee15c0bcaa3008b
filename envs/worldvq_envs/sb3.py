"""Any of Gymnasium's vector environments as one of stable-baselines3, which knows another interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from worldvq.errors import UsageError


class SB3VecEnv(VecEnv):
    """A vector environment that resets in the step that ends an episode, for stable-baselines3's algorithms.

    Args:
        env: Made with ``autoreset_mode="SameStep"``.

    Raises:
        UsageError: It resets otherwise.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            given = getattr(mode, "value", mode)
            raise UsageError(f'autoreset_mode {given}: stable-baselines3 takes one made with autoreset_mode="SameStep"')
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Any = None

    def reset(self) -> Any:
        """Begin an episode in every environment, with the seeds given to ``seed()`` before."""
        given = any(seed is not None for seed in self._seeds)
        seeds: Any = list(self._seeds) if given else None
        observations, _ = self.env.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take a step: observations, rewards, whether an episode ended, and of those the last observation in infos."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(terminated | truncated):
            infos[row]["terminal_observation"] = info["final_obs"][row]
            infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return observations, rewards.astype(np.float32), terminated | truncated, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the environment, once for each row asked for."""
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: rows have no attributes of their own."""
        raise NotImplementedError(f"{attr_name}: the rows of {self.env} share their attributes; set it on that")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Refuse: rows have no methods of their own."""
        raise NotImplementedError(f"{method_name}: the rows of {self.env} are moved together; call it on that")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        """Say that no row is wrapped by itself."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
