"""A folder of people's sounds as a store of sounds: read once, at one rate; a folder in it is a speaker."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

import torch

from worldvq.data.formats.exported import counted
from worldvq.data.formats.folders import Source, find_classes
from worldvq.data.sounds import MIN_SAMPLES, SoundMeta, SoundStore
from worldvq.errors import CorruptFileError, RunError, UsageError, plural
from worldvq.files.differences import printable
from worldvq.files.lock import check_unlocked
from worldvq.media.sound_reading import RATES, SOUND_SUFFIXES, read_sound
from worldvq.types import samples_from_model

SOUNDS = "sounds:"
"""What the source of such a store begins with."""
NAMED = 20
"""Of what cannot be read, how many files are named."""


def import_sounds(
    folder: Path, out: Path, *, rate: int = 16_000, heldout_every: int = 10, progress: bool = True
) -> SoundStore:
    """Make a store of a folder of sounds, or continue one.

    The name of the first folder level is the speaker. Which file has which number depends on the names alone, so an
    import that was interrupted goes on where it stopped. Of each speaker one sound in ``heldout_every`` is held out.

    Args:
        folder: Holds the sounds (``SOUND_SUFFIXES``), at any depth. Hidden files and symbolic links are left out.
        out: Folder of the store.
        rate: Samples a second, to which all are brought.
        heldout_every: Sound n is held out when n % heldout_every == heldout_every - 1.
        progress: Show a progress bar on a terminal.

    Returns:
        The store, open for reading and writing.

    Raises:
        UsageError: There are no sounds, ``out`` holds something else, or the ``audio`` extra is missing.
        RunError: None of the sounds can be read, or the disk is full. What was committed stays.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise UsageError(f"--rate {rate}: {RATES[0]:,} to {RATES[1]:,} samples a second")
    SoundStore.refuse_strangers(out)
    check_unlocked(out)
    sources = ordered(find_classes(folder, "sound", SOUND_SUFFIXES, ("speaker", "speakers")))
    meta = SoundMeta(
        source=f"{SOUNDS}{printable(folder.resolve().name)}",
        made_of={"files": _digest(sources)},
        rate=rate,
        heldout_every=heldout_every,
        versions={name: metadata.version(name) for name in ("worldvq", "numpy")},
    )
    store, unreadable = SoundStore.create(out, meta), 0
    try:
        for number, (label, source) in counted(list(enumerate(sources)), "importing", progress):
            if number in store:
                continue
            try:
                samples = samples_from_model(torch.from_numpy(read_sound(folder / source.path, rate).samples)).numpy()
                if len(samples) < MIN_SAMPLES:
                    raise CorruptFileError(f"one sample at {rate:,} a second is no sound")
            except CorruptFileError as error:
                unreadable += 1
                if unreadable <= NAMED:
                    reason = printable(str(error).removeprefix(f"{folder / source.path}: "))
                    print(f"left out: {printable(source.path)}: {reason}", flush=True)
                continue
            store.commit(number, samples, {"label": label, "file": printable(source.path)})
        if not len(store):
            raise RunError(f"{folder}: no sound can be read; delete {out} to import into it again")
    except BaseException:
        store.close()
        raise
    if unreadable:
        print(f"{plural(unreadable, 'sound')} cannot be read, left out", flush=True)
    return store


def ordered(speakers: dict[str, list[Source]]) -> list[tuple[str, Source]]:
    """Speakers and files in the order of their numbers.

    A speaker's files follow each other, so that one in so many of them is held out; among them they are ordered by a
    hash of their paths: as good as drawn, and the same on every machine.
    """
    return [
        (label, source)
        for label, files in sorted(speakers.items())
        for source in sorted(files, key=lambda one: hashlib.sha256(os.fsencode(one.path)).digest())
    ]


def _digest(sources: list[tuple[str, Source]]) -> str:
    """What tells files of these names, sizes and speakers from any others."""
    listed = hashlib.sha256()
    for label, source in sources:
        listed.update(os.fsencode(f"{label}\0{source.path}\0{source.num_bytes}\n"))
    return listed.hexdigest()[:16]
