"""What a codec of sound is worth, as files to hear, spectrograms and numbers: the speech systems of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worldvq.data.sounds import Sounds, SoundStore
from worldvq.errors import UsageError, plural
from worldvq.evaluation.spectrograms import spectrogram_sheet
from worldvq.evaluation.speech import (
    Clusters,
    SpeakerClassifier,
    log_mel_distance,
    majority_accuracy,
    phones_of_tokens,
)
from worldvq.files.atomic import write_together
from worldvq.media.pictures import save_png
from worldvq.media.sound_writing import wav_bytes
from worldvq.stages.sound import open_codec
from worldvq.world.codec import SoundCodec
from worldvq.world.sound_model import SoundModel

SHOWN = 4
"""Rows of a sheet, and sounds of each kind that are written."""
SHEET = "spectrograms.png"


class Heard(NamedTuple):
    """Files that were written, and what is to be said of them."""

    folder: Path | None
    lines: list[str]


def reconstruct(codec: Path, data: Path, out: Path, *, count: int, seconds: float, device: str, **draws: Any) -> Heard:
    """Draw held-out sounds again from their codes, and from those of other sounds; measure log-mel distances.

    Args:
        codec: Run folder of a trained codec.
        data: Sounds at its rate.
        out: Folder of the files.
        count: Sounds, at most; spread over the speakers.
        seconds: Of each, from its middle.
        device: Where it runs.
        **draws: ``seed`` and ``temperature``.

    Raises:
        UsageError: There are no held-out sounds, or they do not fit the codec.
    """
    model, sounds = open_codec(codec, data, device)
    numbers, real = excerpts(sounds, count, seconds, model.hop)
    speakers = np.array([model.speaker(sounds.label(number)) for number in numbers])
    tokens = model.encode(real)
    both = torch.cat([tokens, tokens.roll(1, 0)])
    drawn = model.decode(both, np.tile(speakers, 2), **draws)
    again, shuffled = drawn[: len(real)], drawn[len(real) :]
    near, far = (log_mel_distance(real, other, model.rate) for other in (again, shuffled))
    names = [model.speakers[speaker] for speaker in speakers]
    _write(out, model.rate, names, {"real": real, "from its codes": again, "from other codes": shuffled})
    raw, coded = 16 * model.rate, model.rate / model.hop * np.log2(model.tokenizer.num_codes)
    return Heard(
        out,
        [
            f"{plural(len(real), 'held-out sound')} of {real.shape[1] / model.rate:.1f} s: {coded:,.0f} bits a second, "
            f"1/{raw / coded:.0f} of 16-bit samples; {len(tokens.unique())} codes used",
            f"log-mel distance {near.mean():.2f} dB; with the codes of another sound {far.mean():.2f} dB: "
            f"{100 * (1 - near.mean() / far.mean()):.0f} % lower",
        ],
    )


def convert(
    codec: Path, data: Path, out: Path, *, count: int, seconds: float, speaker: str | None, device: str, **draws: Any
) -> Heard:
    """Let other speakers say what held-out sounds say; a classifier of real sounds says who is heard.

    Args:
        codec: Run folder of a trained codec.
        data: Sounds at its rate, of two speakers or more.
        out: Folder of the files.
        count: Sounds, at most; spread over the speakers.
        seconds: Of each, from its middle.
        speaker: Who shall be heard; every other speaker in turn where None.
        device: Where it runs.
        **draws: ``seed`` and ``temperature``.

    Raises:
        UsageError: There are no held-out sounds, they do not fit the codec, or there is nobody else to speak.
    """
    model, sounds = open_codec(codec, data, device)
    if len(model.speakers) < 2:
        raise UsageError(f"{codec} knows one speaker, {model.speakers[0]}: there is no other to convert to")
    only = None if speaker is None else model.speaker(speaker)
    numbers, real = excerpts(sounds, count, seconds, model.hop)
    source = np.array([model.speaker(sounds.label(number)) for number in numbers])
    every = range(len(model.speakers))
    rows, targets = np.array(
        [(r, t) for r in range(len(real)) for t in every if only is None or t in (only, source[r])]
    ).T
    drawn = model.decode(model.encode(real)[rows], targets, **draws)
    classify = _classifier(model, sounds, real.shape[1])
    heard, itself = classify(drawn), targets == source[rows]
    found = {
        "real sounds": (classify(real) == source).mean(),
        "drawn as the same speaker": (heard == targets)[itself].mean(),
        "drawn as another speaker": (heard == targets)[~itself].mean() if (~itself).any() else np.nan,
    }
    lines = [
        f"{plural(len(real), 'held-out sound')} of {real.shape[1] / model.rate:.1f} s; who is heard, by a classifier "
        f"of real sounds (chance {100 / len(model.speakers):.0f} %):"
    ]
    lines += [f"  {what}: {100 * share:.0f} % the right one" for what, share in found.items()]
    source_heard = (heard == source[rows])[~itself]
    lines.append(f"  of those, the speaker of the codes: {100 * source_heard.mean():.0f} %")
    lines += [
        f"  {model.speakers[a]} to {model.speakers[b]}: {100 * (heard[pair] == b).mean():.0f} %"
        for a in every
        for b in every
        if a != b and (pair := (source[rows] == a) & (targets == b)).any()
    ]
    columns = {"real": real} | {
        f"as {model.speakers[t]}": np.stack([drawn[(rows == r) & (targets == t)][0] for r in range(len(real))])
        for t in every
        if only is None or t == only
    }
    _write(out, model.rate, [model.speakers[speaker] for speaker in source], columns)
    return Heard(out, lines)


def phonemes(codec: Path, data: Path, device: str = "auto") -> Heard:
    """Measure what codes say of phonemes: named by majority on half of the held-out sounds, right on the other half.

    Raises:
        UsageError: The sounds do not fit the codec, have no phones, or too few are held out.
    """
    model, sounds = open_codec(codec, data, device)
    numbers = _in_turn(sounds)
    if not isinstance(sounds, SoundStore) or any("segments" not in sounds.mapped(n).meta for n in numbers):
        raise UsageError(f"{data} does not say which phones are spoken: worldvq data speech makes a corpus that does")
    if len(numbers) < 2:
        raise UsageError(f"{data}: two held-out sounds are needed, there is {len(numbers)}")
    clusters = Clusters(
        [sounds.samples(number) for number in sounds.numbers("train")], model.rate, model.hop, model.tokenizer.num_codes
    )
    codes, others, phones = [], [], []
    for number in numbers:
        samples, segments = sounds.samples(number), sounds.mapped(number).meta["segments"]
        tokens = model.encode(samples[None])[0].numpy()
        codes.append(tokens)
        others.append(clusters(samples))
        phones.append(phones_of_tokens(segments, len(tokens), model.hop))
    names, spoken = np.unique(np.concatenate(phones), return_inverse=True)
    half = np.concatenate([np.full(len(tokens), place % 2) for place, tokens in enumerate(codes)]).astype(bool)
    size, found = model.tokenizer.num_codes, {}
    for what, values in (("codes", codes), ("k-means of MFCCs, as many clusters", others)):
        values = np.concatenate(values)
        found[what] = majority_accuracy(values[~half], spoken[~half], values[half], spoken[half], size)
    nothing = np.zeros_like(spoken)
    found["the most frequent phone"] = majority_accuracy(nothing[~half], spoken[~half], nothing[half], spoken[half], 1)
    found["uniform chance"] = 1 / len(names)
    lines = [f"{len(numbers)} held-out sounds, {len(spoken):,} tokens, {len(names)} phones; frames named right:"]
    return Heard(None, lines + [f"  {what}: {100 * share:.1f} %" for what, share in found.items()])


def sample(
    prior: Path, out: Path, *, speaker: str | None, count: int, seconds: float, device: str, **draws: Any
) -> Heard:
    """Draw sounds that nobody has made: codes from the prior, samples from the codec.

    Args:
        prior: A trained prior over codes of sound.
        out: Folder of the files.
        speaker: Who speaks; all in turn where None.
        count: Sounds of each speaker.
        seconds: Of each.
        device: Where it runs.
        **draws: ``seed`` and ``temperature``.
    """
    model = SoundModel.load(prior, device)
    codec = model.codec
    every = range(len(codec.speakers)) if speaker is None else [codec.speaker(speaker)]
    speakers = np.repeat(every, count)
    tokens, drawn = model.sample(speakers, seconds, **draws)
    names = [codec.speakers[number] for number in every]
    each = drawn.reshape(len(names), count, -1)
    kinds = {f"sample {number}": each[:, number] for number in range(count)}
    _write(out, codec.rate, names, kinds, shown=len(names))
    said = f"{plural(len(drawn), 'sample')} of {drawn.shape[1] / codec.rate:.1f} s, {len(tokens.unique())} codes used"
    return Heard(out, [said])


def excerpts(sounds: Sounds, count: int, seconds: float, hop: int) -> tuple[list[int], np.ndarray]:
    """Return numbers and middles (M, N) int16 of at most ``count`` held-out sounds, speakers in turn; N in whole hops.

    Raises:
        UsageError: None is as long, or nothing is held out.
    """
    length = max(1, round(seconds * sounds.rate / hop)) * hop
    numbers = _in_turn(sounds)
    long = [number for number in numbers if sounds.num_samples(number) >= length][:count]
    if not long:
        longest = max(map(sounds.num_samples, numbers), default=0) / sounds.rate
        raise UsageError(
            f"{sounds.path}: no held-out sound of {seconds:g} s, the longest has {longest:.1f} s: set --seconds to less"
            if numbers
            else f"{sounds.path} has no held-out sounds ({len(sounds)} in all, 1 in {sounds.heldout_every} is held out)"
        )
    starts = [(sounds.num_samples(number) - length) // 2 for number in long]
    return long, np.stack([sounds.samples(n)[start : start + length] for n, start in zip(long, starts, strict=True)])


def _in_turn(sounds: Sounds) -> list[int]:
    """Held-out sounds, one of each speaker, then the next of each."""
    seen: dict[str, int] = {}
    turns = []
    for number in sounds.numbers("heldout"):
        label = sounds.label(number)
        turns.append((seen.setdefault(label, 0), label, number))
        seen[label] += 1
    return [number for _, _, number in sorted(turns)]


def _classifier(model: SoundCodec, sounds: Sounds, length: int) -> SpeakerClassifier:
    """Fit a classifier to pieces of the training sounds, as long as what it is to hear."""
    pieces, speakers = [], []
    for number in sounds.numbers("train"):
        samples = sounds.samples(number)
        for start in range(0, len(samples) - length + 1, length):
            pieces.append(samples[start : start + length])
            speakers.append(model.speaker(sounds.label(number)))
    if len(set(speakers)) < 2:
        raise UsageError(
            f"{sounds.path}: sounds of two speakers are needed of {length / model.rate:g} s: set --seconds"
        )
    return SpeakerClassifier(np.stack(pieces), np.array(speakers), model.rate, len(model.speakers))


def _write(out: Path, rate: int, names: list[str], kinds: Mapping[str, np.ndarray], shown: int = SHOWN) -> None:
    """Write the first few sounds of each kind (M, N), and their spectrograms; ``names`` are those of the M."""
    rows = range(min(shown, len(names)))
    files = {
        out / f"{row}_{names[row]}_{what.replace(' ', '_')}.wav": wav_bytes(sounds[row], rate)
        for row in rows
        for what, sounds in kinds.items()
    }
    write_together(files)
    drawn = [(names[row], [sounds[row] for sounds in kinds.values()]) for row in rows]
    save_png(out / SHEET, spectrogram_sheet(list(kinds), drawn, rate))
