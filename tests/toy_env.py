"""An environment whose every frame says in its pixels which step of which episode it is and what action came last.

Its id is ``toy_env:Toy-v0``: pytest puts this folder on ``sys.path``, and spawned workers are given the same path.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ID = "toy_env:Toy-v0"
SIZE = (16, 24)  # not square, so that height and width cannot be exchanged unseen
BLOCK = 2

ACTIONS = {
    "discrete": spaces.Discrete(5),
    "discrete_offset": spaces.Discrete(5, start=3),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 7]),
    "multi_discrete_offset": spaces.MultiDiscrete([3, 2], start=[10, -1]),
    "multi_binary": spaces.MultiBinary(4),
    "multi_binary_grid": spaces.MultiBinary((2, 3)),
    "box": spaces.Box(np.float32([-1.5, 0]), np.float32([0.5, 2])),
    "box_grid": spaces.Box(-1, 1, (2, 2), np.float64),
    "box_integer": spaces.Box(-3, 3, (2,), np.int32),
    "dict": spaces.Dict(a=spaces.Discrete(2)),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
}
IMAGE = spaces.Box(0, 255, (*SIZE, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
OBSERVATIONS = {
    "image": IMAGE,
    "first": spaces.Box(0, 255, (3, *SIZE), np.uint8),
    "grey": spaces.Box(0, 255, SIZE, np.uint8),
    "grey_last": spaces.Box(0, 255, (*SIZE, 1), np.uint8),
    "float": spaces.Box(0, 1, (*SIZE, 3), np.float32),
    "float_first": spaces.Box(0, 1, (3, *SIZE), np.float64),
    "dict": spaces.Dict(speed=VECTOR, picture=IMAGE),
    "two": spaces.Dict(left=IMAGE, right=IMAGE, speed=VECTOR),
    "vector": VECTOR,
    "board": spaces.Box(0, 255, (4, 4), np.uint8),
    "blind": VECTOR,
}


def draw(episode: int, step: int, action: Any) -> np.ndarray:
    """Grey picture whose blocks are the bytes of the two numbers and of the action."""
    data = struct.pack("<II", episode, step) + np.asarray(action, np.float32).tobytes()
    blocks = np.zeros(SIZE[0] // BLOCK * (SIZE[1] // BLOCK), np.uint8)
    blocks[: len(data)] = list(data)
    return blocks.reshape(SIZE[0] // BLOCK, -1).repeat(BLOCK, 0).repeat(BLOCK, 1)


def decode(frame: np.ndarray, num_values: int = 1) -> tuple[int, int, np.ndarray]:
    """Read back what :func:`draw` drew: fingerprint of the episode, step, last action (in the environment's terms)."""
    assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8
    blocks = frame[::BLOCK, ::BLOCK, 0]
    assert (frame == blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[..., None]).all()
    data = blocks.tobytes()
    return (*struct.unpack_from("<II", data), np.frombuffer(data, np.float32, num_values, 8))


class ToyEnv(gymnasium.Env):
    """Pays the number of the step as reward, so sums over skipped steps can be told apart."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 30}

    def __init__(
        self,
        action: str = "discrete",
        observation: str = "image",
        length: int = 10,
        jitter: int = 0,
        ending: str = "terminated",
        fail: str | None = None,
        fail_step: int = 3,
        fail_seed: int | None = None,
        fail_after: str | None = None,
        diary: str | None = None,
        render_mode: str | None = None,
    ):
        if observation == "blind":
            self.metadata = {"render_modes": ["ansi"]}
        self.action_space, self.observation_space = ACTIONS[action], OBSERVATIONS[observation]
        self.observation, self.ending, self.render_mode = observation, ending, render_mode
        self.base_length, self.jitter = length, jitter
        self.fail, self.fail_step, self.fail_seed = fail, fail_step, fail_seed
        self.fail_after = Path(fail_after) if fail_after else None  # a file to wait for
        self.diary = Path(diary) if diary else None  # a folder that shows which processes began and closed
        self.pixels = np.zeros((*SIZE, 3), np.uint8)  # overwritten at every step, as emulators do

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if self.diary:
            (self.diary / f"begun-{os.getpid()}").touch()
        if self.fail == "reset":
            raise OSError("no world")
        self.seed, self.step_count = seed, 0
        self.episode = int(self.np_random.integers(2**32))
        self.length = self.base_length + int(self.np_random.integers(self.jitter + 1))
        return self._observe([]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.step_count += 1
        if self.fail and self.step_count == self.fail_step and self.fail_seed in (None, self.seed):
            deadline = time.monotonic() + 60
            while self.fail_after and not self.fail_after.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            if self.fail == "exit":
                os._exit(7)
            raise OSError("the physics\nexploded")
        over = self.step_count >= self.length
        terminated, truncated = over and self.ending != "truncated", over and self.ending != "terminated"
        return self._observe(action), float(self.step_count), terminated, truncated, {}

    def close(self) -> None:
        if self.diary:
            (self.diary / f"closed-{os.getpid()}").touch()

    def render(self) -> np.ndarray:
        return self.pixels

    def _observe(self, action: Any) -> Any:
        self.pixels[:] = draw(self.episode, self.step_count, action)[..., None]
        vector = np.full(3, self.step_count, np.float32)
        space: Any = self.observation_space
        if self.observation in ("vector", "blind", "board"):
            return vector if self.observation != "board" else np.zeros((4, 4), np.uint8)
        if self.observation == "two":
            return {"left": np.zeros_like(self.pixels), "right": self.pixels, "speed": vector}
        if self.observation == "dict":
            return {"speed": vector, "picture": self.pixels}
        if self.observation.startswith("grey"):
            return self.pixels[..., 0].reshape(space.shape)
        image = self.pixels.transpose(2, 0, 1) if self.observation.endswith("first") else self.pixels
        if self.observation.startswith("float"):  # as inexact as what a simulator computes
            return (image / 255 - 0.001).clip(0).astype(space.dtype)
        return image


def always_two(space: Any, seed: int) -> Any:
    """A policy for ``record.policy``: the same action whatever it sees."""
    return lambda frame: 2


def seven_later(space: Any, seed: int) -> Any:
    """A policy whose fourth action does not exist."""
    actions = iter([0, 1, 2, 7])
    return lambda frame: next(actions)


def seven(space: Any, seed: int) -> Any:
    """A policy whose first action does not exist already."""
    return lambda frame: 7


gymnasium.register("Toy-v0", ToyEnv)
