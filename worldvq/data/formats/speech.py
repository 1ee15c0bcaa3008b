"""A corpus of speech that a machine reads: sentences of a grammar, voices of festival, and where each phone ends.

Festival (Black, Taylor and Caley, University of Edinburgh) says where each phone ends that it has spoken, so that what
codes have learnt of phonemes can be measured. Its voices come as packages of Debian.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from worldvq.data.formats.exported import counted
from worldvq.data.formats.sentences import sentence
from worldvq.data.sounds import SoundMeta, SoundStore
from worldvq.errors import RunError, UsageError
from worldvq.files.lock import check_unlocked
from worldvq.media.sound_reading import read_sound
from worldvq.types import samples_from_model

VOICES = {
    "kal": ("kal_diphone", "festvox-kallpc16k"),
    "ked": ("ked_diphone", "festvox-kdlpc16k"),
    "slt": ("cmu_us_slt_arctic_hts", "festvox-us-slt-hts"),
}
"""Speakers: what festival calls each, and the Debian package that it comes in."""
PAUSE = "pau"
"""The phone of silence."""
AT_ONCE = 20
"""Sentences that one process of festival reads."""
EDGE = 0.05
"""Seconds of silence that are left before the first phone and after the last."""
PEAK = 0.7
"""Largest absolute sample of every sentence: voices are of different loudness."""


def make_speech(
    out: Path,
    *,
    sentences: int = 600,
    rate: int = 16_000,
    seed: int = 0,
    heldout_every: int = 10,
    progress: bool = True,
) -> SoundStore:
    """Make a corpus, or continue one. Every sentence is read once, so held-out ones were heard from nobody.

    Of ``heldout_every`` sentences in a row, of which the last is held out, all are read by one voice. In the
    description of each stand its ``text`` and ``segments``: phones of festival's set (radio), with the sample that each
    ends before.

    Args:
        out: Folder of the store.
        sentences: How many there shall be.
        rate: Samples a second.
        seed: Of the sentences.
        heldout_every: Sentence n is held out when n % heldout_every == heldout_every - 1.
        progress: Show a progress bar on a terminal.

    Returns:
        The store, open for reading and writing.

    Raises:
        UsageError: Festival or one of its voices is not installed, or ``out`` holds something else.
        RunError: Festival failed, or the disk is full. What was committed stays.
    """
    SoundStore.refuse_strangers(out)
    check_unlocked(out)
    check_festival()
    meta = SoundMeta(
        source="speech",
        made_of={"voices": list(VOICES), "grammar": 1},
        rate=rate,
        heldout_every=heldout_every,
        seed=seed,
        versions={name: metadata.version(name) for name in ("worldvq", "numpy")},
    )
    store = SoundStore.create(out, meta)
    try:
        missing = [number for number in range(sentences) if number not in store]
        parts = [missing[first : first + AT_ONCE] for first in range(0, len(missing), AT_ONCE)]
        for part in counted(parts, "reading aloud", progress):
            read_aloud(store, part)
    except BaseException:
        store.close()
        raise
    return store


def check_festival() -> None:
    """Raise a UsageError that names the Debian packages that are missing, if any are."""
    if not shutil.which("festival"):
        packages = " ".join(["festival", *(package for _, package in VOICES.values())])
        raise UsageError(f"festival, which reads the sentences, is not installed: apt install {packages}")
    there = _festival("(print (voice.list))")
    missing = [package for name, package in VOICES.values() if name not in re.findall(r"\w+", there)]
    if missing:
        raise UsageError(f"voices of festival are not installed: apt install {' '.join(missing)}")


def read_aloud(store: SoundStore, numbers: list[int]) -> None:
    """Have sentences read by their voices, and commit them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speakers = {number: list(VOICES)[number // store.heldout_every % len(VOICES)] for number in numbers}
        lines = [
            f"(voice_{VOICES[speaker][0]}) (set! said (utt.synth (Utterance Text {_quoted(store, number)})))"
            f'(utt.save.wave said "{folder}/{number}.wav" \'riff) (utt.save.segs said "{folder}/{number}.segs")'
            for number, speaker in speakers.items()
        ]
        _festival("\n".join(lines))
        for number, speaker in speakers.items():
            sound = read_sound(folder / f"{number}.wav", store.rate).samples
            phones = parse_segments((folder / f"{number}.segs").read_text(), store.rate, len(sound))
            sound, phones = _trimmed(sound, phones, round(EDGE * store.rate))
            samples = samples_from_model(torch.from_numpy(sound * (PEAK / max(np.abs(sound).max(), 1e-3)))).numpy()
            about = {"label": speaker, "text": sentence(store.meta.seed, number), "segments": phones}
            store.commit(number, samples, about)


def _quoted(store: SoundStore, number: int) -> str:
    text = sentence(store.meta.seed, number)
    assert re.fullmatch(r"[A-Za-z ,]+[.?]", text), text  # nothing that festival's Scheme would take for its own
    return f'"{text}"'


def _festival(program: str) -> str:
    """Run a program of festival's Scheme; returns what it printed."""
    with tempfile.NamedTemporaryFile("w", suffix=".scm") as file:
        file.write(program)
        file.flush()
        try:
            done = subprocess.run(
                ["festival", "-b", file.name], capture_output=True, text=True, timeout=600, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"festival failed: {error}") from None
    if done.returncode:
        raise RunError(f"festival failed: {' '.join((done.stderr or done.stdout).split()) or done.returncode}")
    return done.stdout


def parse_segments(text: str, rate: int, num_samples: int) -> list[tuple[str, int]]:
    """Return phones and the samples that they end before, of a file of labels as festival writes it (ESPS xlabel)."""
    lines = text.partition("#\n")[2].splitlines()
    ends = [(phone, min(round(float(end) * rate), num_samples)) for end, _, phone in map(str.split, lines)]
    if not ends:
        raise RunError("festival failed: it named no phones")
    return [*ends[:-1], (ends[-1][0], num_samples)]


def _trimmed(sound: np.ndarray, phones: list[tuple[str, int]], edge: int) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Cut silence at both ends down to ``edge`` samples."""
    first = max(0, phones[0][1] - edge) if phones[0][0] == PAUSE else 0
    last = min(len(sound), phones[-2][1] + edge) if phones[-1][0] == PAUSE and len(phones) > 1 else len(sound)
    return sound[first:last], [(phone, min(end, last) - first) for phone, end in phones]
