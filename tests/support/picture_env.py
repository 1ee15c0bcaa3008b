"""Environments that give the same moving picture in many ways, some of them wrong."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 32
BYTES = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
VECTOR = spaces.Box(-1, 1, (2,), np.float32)


def picture(step: int) -> np.ndarray:
    """(32, 32, 3) uint8: a ramp over which a bright bar moves."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    shown = np.stack([rows * 6, columns * 6, (rows + columns) * 3], -1).astype(np.uint8)
    shown[:, 3 * (step % 10) : 3 * (step % 10) + 3] = 255
    return shown


def grey(step: int) -> np.ndarray:
    return picture(step)[..., 1]


def box(low: float, high: float, shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


KINDS: dict[str, tuple[spaces.Space, Any]] = {
    "rgb": (BYTES, lambda p: p),
    "rgba": (box(0, 255, (SIDE, SIDE, 4), np.uint8), lambda p: np.dstack([p, p[..., :1]])),
    "first": (box(0, 255, (3, SIDE, SIDE), np.uint8), lambda p: p.transpose(2, 0, 1)),
    "frames": (box(0, 255, (4, SIDE, SIDE, 3), np.uint8), lambda p: np.stack([p * 0, p * 0, p // 2, p])),
    "frames_first": (
        box(0, 255, (9, SIDE, SIDE), np.uint8),
        lambda p: np.concatenate([p * 0, p // 2, p], -1).transpose(2, 0, 1),
    ),
    "float_255": (box(0, 255, (SIDE, SIDE, 3), np.float32), lambda p: p.astype(np.float32)),
    "unit": (box(0, 1, (SIDE, SIDE, 3), np.float32), lambda p: p / np.float32(255)),
    "signed": (box(-1, 1, (SIDE, SIDE, 3), np.float64), lambda p: p / 127.5 - 1),
    "int64": (box(0, 255, (SIDE, SIDE, 3), np.int64), lambda p: p.astype(np.int64)),
    "unit_in_bytes": (BYTES, lambda p: p / 255),  # the space lies
    "bytes_in_unit": (box(0, 1, (SIDE, SIDE, 3), np.float32), lambda p: p.astype(np.float32)),  # it lies
    "tuple": (spaces.Tuple([VECTOR, BYTES]), lambda p: (np.zeros(2, np.float32), p)),
    "nested": (spaces.Dict(x=VECTOR, s=spaces.Dict(cam=BYTES)), lambda p: {"x": np.zeros(2), "s": {"cam": p}}),
    "vector": (VECTOR, lambda p: np.zeros(2, np.float32)),
    "codes": (box(0, 255, (SIDE, SIDE), np.uint8), lambda p: (p[..., 0] // 32).astype(np.uint8)),
    "table": (box(0, 255, (9, 9), np.uint8), lambda p: p[:9, :9, 0]),
    "far": (box(0, 1, (SIDE, SIDE, 3), np.float32), lambda p: p * np.float32(7)),
}
RENDERS: dict[str, Any] = {
    "bytes": lambda p: p,
    "unit": lambda p: p / 255,
    "list": lambda p: [p * 0, p],
    "first": lambda p: p.transpose(2, 0, 1),
    "rgba": lambda p: np.dstack([p, p[..., :1]]),
    "none": lambda p: None,
}
STEPS: dict[str, Any] = {
    "four": lambda o, r, t: (o, r, t, {}),
    "reward_array": lambda o, r, t: (o, np.array([r]), t, False, {}),
    "reward_none": lambda o, r, t: (o, None, t, False, {}),
    "no_info": lambda o, r, t: (o, r, t, False, None),
    "numpy": lambda o, r, t: (o, np.float32(r), np.bool_(t), np.bool_(False), {}),
    "zero_dim": lambda o, r, t: (o, np.array(r), t, False, {}),
}


class PictureEnv(gymnasium.Env):
    """Args: kind of observation, kind of render and of step, when it goes wrong (``bad``: step to how), its length."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        kind: str = "rgb",
        render: str = "bytes",
        step: str = "",
        bad: dict[int, str] | None = None,
        bad_every: int = 1,
        length: int | None = 12,
        action: spaces.Space | None = None,
        render_mode: str | None = None,
    ):
        self.observation_space, self.make = KINDS[kind]
        self.action_space = action or spaces.Discrete(3)
        self.kind, self.how, self.shown, self.length, self.render_mode = (
            kind,
            step,
            RENDERS[render],
            length,
            render_mode,
        )
        self.bad, self.bad_every = bad or {}, bad_every

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps, self.is_bad = 0, bool(self.np_random.integers(self.bad_every) == 0)
        return self.make(picture(0)), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), repr(action)
        self.steps += 1
        observation, reward = self.make(picture(self.steps)), 1.0
        terminated = self.length is not None and self.steps >= self.length
        wrong = self.bad.get(self.steps, "") if self.is_bad else ""
        if wrong == "nan":
            reward = float("nan")
        if wrong == "shape":
            observation = observation[1:]
        if wrong == "bright":
            observation = observation * 3
        if wrong or self.how:
            how = STEPS.get(wrong or self.how)
            if how:
                return how(observation, reward, terminated)
        return observation, reward, terminated, False, {}

    def render(self) -> Any:
        return self.shown(picture(self.steps))


class Inverted(gymnasium.ObservationWrapper):
    def observation(self, observation: np.ndarray) -> np.ndarray:
        return 255 - observation


gymnasium.register("Picture-v0", PictureEnv)
