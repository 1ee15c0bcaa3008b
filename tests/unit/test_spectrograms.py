"""Spectrograms against SciPy's, and what measures of coded speech say against what was put in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sounds import RATE, tone

from worldvq.evaluation.spectrograms import draw_spectrogram, spectrogram_sheet
from worldvq.evaluation.speech import (
    Clusters,
    SpeakerClassifier,
    log_mel_distance,
    majority_accuracy,
    phones_of_tokens,
)
from worldvq.media.sound_writing import wav_bytes
from worldvq.nn.spectrograms import FLOOR, log_mel, mel_filters, mfcc
from worldvq.types import samples_to_model

scipy = pytest.importorskip("scipy")


def noise(num_samples, seed=0):
    return (np.random.default_rng(seed).standard_normal(num_samples) * 3000).astype(np.int16)


def waveform(samples):
    """(1, N) in [-1, 1] of (N,) int16."""
    return samples_to_model(torch.from_numpy(samples))[None]


def test_log_mel_is_scipys_spectrum_under_the_filters():
    from scipy.signal import get_window

    samples, step, length = noise(2000), 80, 200
    window = get_window("hann", length)
    frames = []
    for centre in range(0, 2001, step):
        piece = np.pad(samples / 2.0**15, 300)[centre + 300 - length // 2 : centre + 300 + length // 2]
        frames.append(np.abs(np.fft.rfft(piece * window, 256)) ** 2 / (window.sum() / 2) ** 2)
    expected = 10 * np.log10(np.maximum(np.array(frames) @ mel_filters(129, RATE, 40).double().numpy(), 1e-8))
    np.testing.assert_allclose(log_mel(waveform(samples), RATE)[0].numpy(), expected, atol=2e-2)


def test_filters_are_triangles_and_a_tone_is_heard_where_it_is():
    filters = mel_filters(1001, RATE, 30).numpy()
    assert filters.min() == 0 and filters.max() <= 1
    peaks = filters.argmax(0)
    assert (np.diff(peaks) > 0).all() and (np.diff(np.diff(peaks)[5:]) >= -1).all()  # ever further apart
    for pitch in (300, 1000, 3000):
        mel = log_mel(waveform(tone(pitch, 4000, level=1 - 2**-15)), RATE)[0, 5:-5].mean(0)
        assert mel_filters(129, RATE, 40)[round(pitch / RATE * 256), int(mel.argmax())] > 0
        assert -6 < mel.max() < 3
    assert (log_mel(torch.zeros(1, 400), RATE) == FLOOR).all()


def test_mfcc_is_scipys_cosine_transform():
    from scipy.fft import dct

    samples = waveform(noise(1600))
    expected = dct(log_mel(samples, RATE)[0].numpy() - FLOOR, norm="ortho", axis=1)[:, :13]
    np.testing.assert_allclose(mfcc(samples, RATE)[0].numpy(), expected, atol=1e-3)


def test_pictures_and_files_of_sound():
    import io
    import wave

    drawn = draw_spectrogram(tone(1000, 4000), RATE)
    assert drawn.shape[0] == 128 and drawn.dtype == np.uint8
    bright = drawn.sum((1, 2)).argmax()  # from the top: low notes lie below
    assert bright < draw_spectrogram(tone(300, 4000), RATE).sum((1, 2)).argmax()
    assert spectrogram_sheet(["a", "b"], [("x", [noise(900), noise(900)])], RATE).shape[2] == 3
    with wave.open(io.BytesIO(wav_bytes(noise(77), RATE))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (RATE, 1, 77)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(77), "<i2"), noise(77))


def test_distance_is_nothing_to_itself_and_counts_decibels():
    sound = np.stack([noise(4000), noise(4000, 1)])
    assert (log_mel_distance(sound, sound, RATE) == 0).all()
    half = log_mel_distance(sound, sound // 2, RATE)
    np.testing.assert_allclose(half, 20 * np.log10(2), atol=0.1)
    assert (log_mel_distance(sound, sound[::-1], RATE) > 2 * 0.1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_majority_naming_is_counting(seed, num_codes, num_phones):
    rng = np.random.default_rng(seed)
    codes, others = rng.integers(0, num_codes, 40), rng.integers(0, num_codes + 1, 30)
    phones, spoken = rng.integers(0, num_phones, 40), rng.integers(0, num_phones, 30)
    right = 0
    for code, phone in zip(others, spoken, strict=True):
        seen = list(phones[codes == code]) or list(phones)
        named = max(sorted(set(seen)), key=seen.count)  # of equally frequent ones, the first
        right += named == phone
    assert majority_accuracy(codes, phones, others, spoken, num_codes + 1) == pytest.approx(right / 30)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 20))
def test_a_token_has_the_phone_in_its_middle(lengths, hop):
    ends = np.cumsum(lengths)
    segments = [(str(number), int(end)) for number, end in enumerate(ends)]
    spoken = np.repeat(np.arange(len(ends)), lengths)
    count = -(-len(spoken) // hop)
    expected = [str(spoken[min(token * hop + hop // 2, len(spoken) - 1)]) for token in range(count)]
    assert phones_of_tokens(segments, count, hop) == expected


def voices(speaker, count, seed):
    """Noise that is louder high or low, at any loudness."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((count, 4001))
    coloured = white[:, 1:] + (0.9 if speaker else -0.9) * white[:, :-1]
    return (coloured * rng.uniform(100, 4000, (count, 1))).astype(np.int16)


def test_the_classifier_knows_voices_it_was_shown_whatever_their_loudness():
    sounds, speakers = np.concatenate([voices(0, 20, 0), voices(1, 20, 1)]), np.repeat([0, 1], 20)
    classify = SpeakerClassifier(sounds, speakers, RATE, 2)
    for speaker in (0, 1):
        assert (classify(voices(speaker, 10, 7 + speaker)) == speaker).all()


def test_clusters_tell_sounds_apart_where_they_change():
    two = np.concatenate([voices(0, 1, 3)[0, :1600], voices(1, 1, 4)[0, :1600]])
    clusters = Clusters([two], RATE, 64, 2)
    found = clusters(two)
    assert len(found) == 50
    assert len(set(found[:23])) == len(set(found[27:])) == 1 and found[0] != found[-1]
