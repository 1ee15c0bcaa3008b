"""Who plays while recording: at random in one of three ways, one's own function, or a trained SB3 agent."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldvq.config.code import import_named
from worldvq.config.env import SoundFormat
from worldvq.errors import UsageError, one_line
from worldvq.recording.config import RecordConfig
from worldvq.recording.players import Held, Retrace, random_action
from worldvq.recording.undo import completed, inverse_of
from worldvq.types import ActionSpace


class Stream(Protocol):
    """What recording needs of an adapted environment; ``worldvq_envs.stream.FrameStream`` is one."""

    action_space: ActionSpace
    last_observation: Any
    has_frame: bool
    sound_format: SoundFormat | None
    sound: np.ndarray | None
    """(S,) int16, what was heard in the last step; None where nothing is recorded of that."""

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; returns its first frame (H, W, 3) uint8."""
        ...

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Take a stored action; returns frame, reward, terminated, truncated."""
        ...

    def to_stored_action(self, action: Any) -> np.ndarray:
        """Turn an action of the environment's own space into a stored one."""
        ...

    def as_played(self, action: np.ndarray) -> np.ndarray:
        """Return a stored action as :meth:`step` plays it."""
        ...

    def describe(self) -> list[str]:
        """Say what is recorded, in a line or a few."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...


EXPLORERS = ("random", "held", "retrace")
HUMAN = "human"
"""Somebody plays in a page, which this package knows nothing of (:mod:`worldvq.play`)."""
Policy = Callable[[np.ndarray], Any]
"""From a frame to the stored action to take."""


def check_policy(name: str) -> None:
    """Refuse a policy that cannot be made, before anything is written.

    Raises:
        UsageError: Unknown name, function or file, or stable-baselines3 is missing.
    """
    if name in EXPLORERS:
        return
    if name == HUMAN:
        raise UsageError(f"the policy {HUMAN} plays in a page: worldvq record ENV --policy {HUMAN} --out DIR")
    if name.endswith(".zip"):
        if not Path(name).is_file():
            raise UsageError(f"no such file: {name}")
        try:
            importlib.import_module("stable_baselines3")
        except ImportError:
            raise UsageError(f'playing {name} needs stable-baselines3: pip install "worldvq[rl]"') from None
    elif ":" in name:
        import_named(name)
    else:
        raise UsageError(
            f"unknown policy '{name}': {', '.join(EXPLORERS)}, {HUMAN}, module:function, ./file.py:function or an SB3 "
            "agent's .zip"
        )


def make_policy(config: RecordConfig, stream: Stream, seed: int) -> Policy:
    """Return the policy for one episode.

    ``module:function`` is called as ``function(action_space, seed)`` and returns a callable from a frame to the
    stored action.
    """
    space, rng = stream.action_space, np.random.default_rng(seed)
    if config.policy == "random":
        return lambda frame: random_action(space, rng)
    if config.policy == "held":
        return Held(space, config.hold, rng)
    if config.policy == "retrace":
        return Retrace(space, config.hold, inverse_of(space, completed(config.undo or {})), rng)
    if config.policy.endswith(".zip"):
        return _agent(config.policy, stream, seed)
    return import_named(config.policy)(space, seed)


def _agent(path: str, stream: Stream, seed: int) -> Policy:
    """A trained agent. Its file holds pickles, so only one that the user named is ever opened."""
    library = importlib.import_module("stable_baselines3")
    problems = []
    for kind in ("PPO", "DQN", "A2C", "SAC", "TD3"):
        try:
            agent = getattr(library, kind).load(path, device="cpu")
        except Exception as error:  # the zip does not say which algorithm it is of
            problems.append(f"{kind}: {error}")
            continue
        try:
            agent.predict(stream.last_observation)
        except ValueError as error:
            raise UsageError(
                f"{path} was trained on observations {agent.observation_space}, which these are not "
                f"({one_line(error)}): record with the wrappers that it was trained with, frame stacks "
                "too (env.wrappers: [module:function])"
            ) from None
        agent.set_random_seed(seed)
        return lambda frame: stream.to_stored_action(agent.predict(stream.last_observation, deterministic=False)[0])
    raise UsageError(f"{path} is no agent of PPO, DQN, A2C, SAC or TD3 ({problems[0]})")


def check_action(space: ActionSpace, action: Any) -> np.ndarray:
    """Return an action in the stored form.

    Raises:
        UsageError: It does not fit the space.
    """
    value = np.asarray(action)
    if value.shape == space.shape:
        if space.kind == "box":
            low, high = np.array(space.low, np.float32), np.array(space.high, np.float32)
            if ((value >= low) & (value <= high) & np.isfinite(value)).all():
                return value.astype(np.float32)
        elif value.dtype.kind in "iu" and all(
            0 <= one < n for one, n in zip(value.ravel().tolist(), space.nvec, strict=True)
        ):
            return value.astype(np.int64)
    raise UsageError(f"the policy returned {action!r}, which is no action of {space.kind} {space.nvec or space.shape}")
