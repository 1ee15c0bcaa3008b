"""What was heard in the episodes of a dataset, as sounds that a codec is trained on: each episode is one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from worldvq.config.env import SoundFormat
from worldvq.data.episodes import EpisodeStore
from worldvq.data.store import Split
from worldvq.errors import UsageError


def tokens_of_step(sound: SoundFormat, hop: int, source: Path) -> int:
    """Return how many tokens of ``hop`` samples a step is.

    Raises:
        UsageError: It does not divide into them.
    """
    if sound.samples % hop:
        fitting = [n for n in range(2, sound.samples + 1) if sound.samples % n == 0]
        nearest = sorted(sorted(fitting, key=lambda n: abs(math.log(n / hop)))[:8])
        raise UsageError(
            f"{source} has {sound.samples} samples of sound a step, which do not divide into tokens of {hop}: choose "
            f"sound.strides that multiply to one of {', '.join(map(str, nearest)) or 'none'}"
        )
    return sound.samples // hop


class EpisodeSounds:
    """The :class:`~worldvq.data.sounds.Sounds` of a dataset; the environment is their only speaker.

    Attributes:
        store: The dataset.
        rate: Samples a second.
    """

    def __init__(self, store: EpisodeStore, hop: int):
        """Take a dataset.

        Args:
            store: The dataset.
            hop: Samples of a token, into which its steps are to divide.

        Raises:
            UsageError: It was recorded without sound, or its steps do not divide.
        """
        if store.meta.sound is None:
            raise UsageError(
                f"{store.path} was recorded without sound: record with env.audio_key (a key of the observation or of "
                "info; for ViZDoom env.audio_key=audio)"
            )
        tokens_of_step(store.meta.sound, hop, store.path)
        self.store, self.rate, self._step = store, store.meta.sound.rate, store.meta.sound.samples

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.store.path

    @property
    def heldout_every(self) -> int:
        """One episode in so many is held out."""
        return self.store.heldout_every

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.store)

    def numbers(self, split: Split = "all") -> list[int]:
        """Numbers of the episodes of a split."""
        return self.store.numbers(split)

    def num_samples(self, number: int) -> int:
        """Length of an episode's sound."""
        return (self.store.entry(number).num_frames - 1) * self._step

    def samples(self, number: int) -> np.ndarray:
        """Samples (N,) int16 of an episode, memory-mapped."""
        sounds = self.store.mapped(number).sounds
        assert sounds is not None
        return sounds.reshape(-1)

    def label(self, number: int) -> str:
        """Return the environment."""
        return self.store.environment

    def fingerprint(self) -> dict[str, int | str]:
        """What tells these episodes from others."""
        return self.store.fingerprint()
