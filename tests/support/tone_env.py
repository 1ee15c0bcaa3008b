"""An environment that is heard: every step sounds the pitch of its action, whatever is seen.

Its id is ``support.tone_env:Tone-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ID = "support.tone_env:Tone-v0"
SIZE = (16, 16)
RATE, SAMPLES = 2_000, 96
PITCHES = (125.0, 250.0, 500.0)
"""Of the actions, in Hz: whole periods fit into a step."""
KINDS = ("int16", "float", "stereo", "observation", "changing", "missing", "text", "nan")


class Tone(gymnasium.Env):
    """A bar that walks over the picture, and a tone that goes on from step to step without a jump."""

    metadata: dict[str, Any] = {"render_modes": [], "audio_rate": RATE}

    def __init__(self, kind: str = "int16", length: int = 20, rate: int | None = RATE):
        self.kind, self.length = kind, length
        self.metadata = {**self.metadata, "audio_rate": rate}
        picture = spaces.Box(0, 255, (*SIZE, 3), np.uint8)
        sound = spaces.Box(-(2**15), 2**15 - 1, (SAMPLES,), np.int16)
        self.observation_space = spaces.Dict(picture=picture, ear=sound) if kind == "observation" else picture
        self.action_space = spaces.Discrete(len(PITCHES))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.phase = 0, 0.0
        self.start = int(self.np_random.integers(SIZE[1]))
        return self._see(np.zeros(SAMPLES, np.int16)), {}

    def step(self, action):
        self.steps += 1
        angles = self.phase + 2 * np.pi * PITCHES[action] / RATE * np.arange(1, SAMPLES + 1)
        self.phase = angles[-1] % (2 * np.pi)
        wave = 0.5 * np.sin(angles)
        sound = np.rint(wave * 2**15).astype(np.int16)
        heard = {
            "int16": sound,
            "float": wave,
            "stereo": np.stack([sound // 2, sound - sound // 2], axis=1),
            "changing": sound[: SAMPLES - (self.steps > 3)],
            "text": "la",
            "nan": np.full(SAMPLES, np.nan),
        }
        info = {"sound": {"ear": heard[self.kind]}} if self.kind in heard else {"silent": True}
        return self._see(sound), 1.0, False, self.steps >= self.length, info

    def _see(self, sound):
        picture = np.zeros((*SIZE, 3), np.uint8)
        picture[:, (self.start + self.steps) % SIZE[1]] = 255
        return {"picture": picture, "ear": sound} if self.kind == "observation" else picture


def pitches(sounds: np.ndarray) -> np.ndarray:
    """Return which action's pitch is loudest in each sound (..., S): indices into ``PITCHES``."""
    power = np.abs(np.fft.rfft(sounds - sounds.mean(-1, keepdims=True), axis=-1)) ** 2
    bins = np.round(np.array(PITCHES) * sounds.shape[-1] / RATE).astype(int)
    return power[..., bins].argmax(-1)


gymnasium.register("Tone-v0", Tone)
