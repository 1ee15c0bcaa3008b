"""What is heard in a step of an environment: samples by a key, made one channel of int16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldvq.errors import UsageError

MAX_CHANNELS = 8
_WAY_OUT = "mend the environment, or wrap it (env.wrappers)"


class Ears:
    """Finds the sound of a step in its observation or, where that has no such key, in its ``info``.

    Attributes:
        samples: Samples of one step of the environment, always as many; None before the first one was heard.
    """

    def __init__(self, key: str):
        self.key = key
        self.samples: int | None = None
        self._in_observation = True

    def __call__(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """Return the sound (n,) int16 of a step.

        Raises:
            ValueError: There is none under the key, or it is no sound.
            UsageError: It has another length than before.
        """
        if self.samples is None:
            self._in_observation = _find(observation, self.key) is not None
        found = _find(observation if self._in_observation else info, self.key)
        if found is None:
            keys = sorted(str(key) for part in (observation, info) if isinstance(part, Mapping) for key in part)
            raise ValueError(
                f"env.audio_key '{self.key}' is neither in the observation nor in info of a step, which have "
                f"{', '.join(keys) or 'no keys'}"
            )
        heard = mono(np.asarray(found), f"env.audio_key '{self.key}'")
        if self.samples is None:
            self.samples = len(heard)
        elif len(heard) != self.samples:
            raise UsageError(
                f"env.audio_key '{self.key}' gave {len(heard)} samples in a step and {self.samples} before: every step "
                f"has to have as many: {_WAY_OUT}"
            )
        return heard


def mono(sound: np.ndarray, name: str) -> np.ndarray:
    """Return a sound (n,) or (n, channels), int16 or floats in [-1, 1], as int16 (n,): the mean of its channels.

    Floats beyond are cut off.

    Raises:
        ValueError: It is of another shape or type, empty, or not finite; says what ``name`` gave.
    """
    fits = sound.ndim == 1 or (sound.ndim == 2 and 1 <= sound.shape[1] <= MAX_CHANNELS)
    if not fits or not len(sound) or not (sound.dtype == np.int16 or sound.dtype.kind == "f"):
        raise ValueError(
            f"{name} gave {sound.dtype}{list(sound.shape)}: a sound is int16 or float, (samples,) or (samples, "
            f"channels): {_WAY_OUT}"
        )
    wave = sound.astype(np.float32)
    if wave.ndim == 2:
        wave = wave.mean(1)
    if sound.dtype == np.int16:
        return np.rint(wave).astype(np.int16)
    if not np.isfinite(wave).all():
        raise ValueError(f"{name} gave samples that are not finite: {_WAY_OUT}")
    return np.rint(wave * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)


def rate_of(given: int | None, said: Any, env_id: str) -> int:
    """Return samples a second: as the config has it, else as the environment says.

    Raises:
        UsageError: Neither does.
    """
    rate = given if given is not None else said
    if not isinstance(rate, int | np.integer) or rate <= 0:
        raise UsageError(
            f"'{env_id}' does not say how many samples of sound it makes a second (metadata['audio_rate']): set "
            "env.audio_rate"
        )
    return int(rate)


def _find(value: Any, key: str) -> Any:
    """Return what lies under a dotted key of dicts and tuples, or None."""
    for name in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, tuple) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
