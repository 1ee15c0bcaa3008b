"""An environment whose every frame says in its pixels which step of which episode it is and what action came last.

Its id is ``support.toy_env:Toy-v0``: pytest puts ``tests`` on ``sys.path``, and
spawned workers are given the same path.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
import os
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from worldvq.types import Episode

ID = "support.toy_env:Toy-v0"
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
    "dict": spaces.Dict(b=spaces.Discrete(2), a=spaces.Discrete(3, start=2)),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Dict(c=spaces.MultiBinary(3)))),
    "mixed": spaces.Dict(binary=spaces.MultiBinary(3), continuous=spaces.Box(-np.inf, np.inf, (2,))),
    "text": spaces.Text(3),
    "nested_text": spaces.Dict(words=spaces.Tuple((spaces.Text(3),))),
    "large": spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32),
}
UNSTORABLE = ("text", "nested_text", "large")
STARTS = {"discrete_offset": 3, "multi_discrete_offset": [10, -1], "box_integer": -3, "dict": [0, 2]}
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
    data = struct.pack("<II", episode, step) + flat(action).tobytes()
    blocks = np.zeros(SIZE[0] // BLOCK * (SIZE[1] // BLOCK), np.uint8)
    blocks[: len(data)] = list(data)
    return blocks.reshape(SIZE[0] // BLOCK, -1).repeat(BLOCK, 0).repeat(BLOCK, 1)


def flat(action: Any) -> np.ndarray:
    """All numbers of an action (n,) float32, nested ones in the order of their space."""
    if isinstance(action, dict):
        action = tuple(action.values())
    parts = [flat(part) for part in action] if isinstance(action, tuple) else [np.asarray(action, np.float32).ravel()]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def decode(frame: np.ndarray, num_values: int = 1) -> tuple[int, int, np.ndarray]:
    """Read back what :func:`draw` drew: fingerprint of the episode, step, last action (in the environment's terms)."""
    assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8
    blocks = frame[::BLOCK, ::BLOCK, 0]
    assert (frame == blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[..., None]).all()
    data = blocks.tobytes()
    return (*struct.unpack_from("<II", data), np.frombuffer(data, np.float32, num_values, 8))


def check_alignment(episode: Episode, kind: str, skip: int, length: int) -> None:
    """Frame t + 1 shows action t and the step after it; frame 0 shows neither. An interrupted episode ends earlier."""
    steps = [min(skip * t, length) for t in range(-(-length // skip) + 1)]
    if episode.interrupted:
        steps = steps[: len(episode.frames)]
    assert len(episode.frames) == len(steps) == len(episode) + 1
    fingerprint = int(seeding.np_random(episode.seed)[0].integers(2**32))
    num_values = episode.actions[0].size
    seen = [decode(frame, num_values) for frame in episode.frames]
    assert [(one, step) for one, step, _ in seen] == [(fingerprint, step) for step in steps]
    done = episode.actions + np.array(STARTS.get(kind, 0))
    np.testing.assert_array_equal([values for *_, values in seen[1:]], done.reshape(len(episode), -1))
    for t, reward in enumerate(episode.rewards):
        assert reward == sum(range(steps[t] + 1, steps[t + 1] + 1))
    if not episode.interrupted:
        assert (done != done[0]).any()
        assert episode.terminated and not episode.truncated


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
        fail_at: str = "step",
        fail_step: int = 3,
        fail_seed: int | None = None,
        fail_modulo: int = 1,
        diary: str | None = None,
        gate: str | None = None,
        pause: float = 0.0,
        engine: bool = False,
        autoreset: bool = False,
        render_mode: str | None = None,
    ):
        if observation == "blind":
            self.metadata = {"render_modes": ["ansi"]}
        self.action_space, self.observation_space = ACTIONS[action], OBSERVATIONS[observation]
        self.observation, self.ending, self.render_mode = observation, ending, render_mode
        self.base_length, self.jitter = length, jitter
        self.fail, self.fail_at, self.fail_step = fail, fail_at, fail_step
        self.fail_seed, self.fail_modulo = fail_seed, fail_modulo  # which episodes fail: one, or those it divides
        self.pause, self.autoreset = pause, autoreset
        self.diary = Path(diary) if diary else None  # a folder that shows which processes began and closed
        self.gate, self.count = Path(gate) if gate else None, 0  # a file without which nobody plays a fourth episode
        self.pixels = np.zeros((*SIZE, 3), np.uint8)  # overwritten at every step, as emulators do
        self.engine = start_engine(Path(diary)) if engine and diary else None
        if self.diary:
            count = len(list(self.diary.glob("built-*")))
            (self.diary / f"built-{count}-{os.getpid()}").touch()
            if fail_at == "constructor" and count == 1:  # not the first: that one would refuse the recording
                go_wrong(fail, self.diary)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if self.diary:
            (self.diary / f"begun-{os.getpid()}").touch()
        self.count += 1
        while self.gate and self.count > 4 and not self.gate.exists():  # one was begun to see whether it can be
            time.sleep(0.01)
        if self.fail_at == "reset" and self._is_to_fail(seed):
            go_wrong(self.fail, self.diary)
        self.seed, self.step_count = seed, 0
        self.episode = int(self.np_random.integers(2**32))
        self.length = self.base_length + int(self.np_random.integers(self.jitter + 1))
        return self._observe([]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.step_count += 1
        time.sleep(self.pause)
        if self.fail_at == "step" and self.step_count == self.fail_step and self._is_to_fail(self.seed):
            go_wrong(self.fail, self.diary)
        over = self.step_count >= self.length
        terminated, truncated = over and self.ending != "truncated", over and self.ending != "terminated"
        reward, info = float(self.step_count), {}
        observation = self._observe(action)
        if over and self.autoreset:  # as gymnasium.vector.AutoresetMode.SAME_STEP has it
            info = {"final_obs": copy.deepcopy(observation), "final_info": {}}
            observation, _ = self.reset(seed=None)
        return observation, reward, terminated, truncated, info

    def _is_to_fail(self, seed: int | None) -> bool:
        return bool(self.fail) and self.fail_seed in (None, seed) and (seed or 0) % self.fail_modulo == 0

    def close(self) -> None:
        if self.engine:
            self.engine[0].kill()
            self.engine[0].wait()
            Path(f"/dev/shm/toy-engine-{os.getpid()}").unlink()
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


class Unpicklable(Exception):
    """Holds what cannot leave its process, and a text that cannot be made."""

    def __init__(self):
        super().__init__(lambda: None, threading.Lock())

    def __str__(self):
        raise RuntimeError("no text")


def go_wrong(how: str | None, diary: Path | None) -> None:
    """Fail in one of the ways in which environments do."""
    if diary:
        (diary / f"failed-{time.monotonic()}").touch()
    if how == "unpicklable":
        raise Unpicklable
    if how == "hang":
        ctypes.PyDLL(None).sleep(1000)  # in C, and it keeps the interpreter's lock
    if how == "segfault":
        ctypes.string_at(0)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    raise OSError("the physics\nexploded")


def start_engine(diary: Path) -> tuple[subprocess.Popen, mmap.mmap]:
    """Start a process as simulators do, with a segment of shared memory between it and this one."""
    segment = Path(f"/dev/shm/toy-engine-{os.getpid()}")
    with segment.open("w+b") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
        process = subprocess.Popen(["sleep", "1000"], stdin=file)
    (diary / f"engine-{process.pid}").touch()
    return process, mapped


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


def failing(space: Any, seed: int) -> Any:
    """A policy with a bug that shows at its third frame."""
    frames = iter(range(2))
    return lambda frame: next(frames)


def self_resetting(**kwargs: Any) -> gymnasium.Env:
    """The environment in gymnasium's wrapper, which resets it in the step after the last."""
    return gymnasium.wrappers.Autoreset(ToyEnv(**kwargs))


gymnasium.register("Toy-v0", ToyEnv)
gymnasium.register("ToySelfResetting-v0", self_resetting)
