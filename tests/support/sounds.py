"""Small stores of sounds: of each speaker, tones of its own pitch."""

from pathlib import Path

import numpy as np

from worldvq.data.sounds import SoundMeta, SoundStore

RATE = 8000
PITCHES = {"high": 880, "low": 220}


def tone(pitch: float, num_samples: int, level: float = 0.5) -> np.ndarray:
    """Samples (num_samples,) int16."""
    wave = level * np.sin(2 * np.pi * pitch * np.arange(num_samples) / RATE)
    return np.round(wave * 2**15).astype(np.int16)


def write_sounds(path: Path, each: int = 4, heldout_every: int = 4) -> SoundStore:
    """Make a store of some sounds of each speaker, of different lengths."""
    meta = SoundMeta(source="tones", rate=RATE, heldout_every=heldout_every)
    with SoundStore.create(path, meta) as store:
        for number in range(each * len(PITCHES)):
            speaker = list(PITCHES)[number // each]
            store.commit(number, tone(PITCHES[speaker], 700 + 97 * number), {"label": speaker})
    return SoundStore.open(path)
