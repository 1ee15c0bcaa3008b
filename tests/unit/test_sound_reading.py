"""Sounds of others: whatever way samples are kept, what is damaged, and what nobody could have meant."""

import struct
import sys
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.errors import CorruptFileError, UsageError
from worldvq.media import sound_reading as module
from worldvq.media.sound_reading import read_sound

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def tone(seconds=0.5, rate=RATE, pitch=440, level=0.5):
    return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, samples, rate=RATE, subtype=None):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def error(path):
    with pytest.raises(CorruptFileError) as caught:
        read_sound(path, RATE)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 2**-7),
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "PCM_32", 2**-23),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("wav", "ULAW", 2**-5),
        ("wav", "ALAW", 2**-5),
        ("flac", "PCM_16", 2**-15),
        ("aiff", "PCM_S8", 2**-7),
        ("au", "PCM_16", 2**-15),
        ("w64", "PCM_24", 2**-23),
        ("ogg", "VORBIS", 0.05),
        ("ogg", "OPUS", 0.2),
        ("mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_and_depth_is_read(tmp_path, suffix, subtype, tolerance):
    samples = tone()
    found = read_sound(write(tmp_path / f"a.{suffix}", samples, subtype=subtype), RATE)
    assert found.samples.dtype == np.float32 and found.samples.shape == samples.shape
    assert (found.source_rate, found.channels) == (RATE, 1)
    middle = slice(1000, -1000)  # codecs that lose something begin and end a little otherwise
    assert np.abs(found.samples - samples)[middle].max() <= tolerance


def test_16_bits_are_what_the_standard_library_wrote(tmp_path):
    values = np.random.default_rng(0).integers(-(2**15), 2**15, 3000).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    found = read_sound(tmp_path / "a.wav", RATE)
    np.testing.assert_array_equal(found.samples, values / np.float32(2**15))
    assert found.peak == np.abs(values / 2**15).max()


def test_channels_become_their_mean(tmp_path):
    parts = np.stack([tone(), 0.5 * tone(pitch=1000), tone(level=0.1)], axis=1)
    found = read_sound(write(tmp_path / "a.wav", parts, subtype="FLOAT"), RATE)
    np.testing.assert_allclose(found.samples, parts.mean(1), atol=1e-7)
    assert found.channels == 3


@pytest.mark.parametrize("source", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_become_the_one_asked_for(tmp_path, source):
    """The tone is the same one; what the new rate cannot hold is gone instead of folded down."""
    path = tmp_path / "a.wav"
    found = read_sound(write(path, tone(1.0, source), source, "FLOAT"), RATE)
    assert abs(len(found.samples) - RATE) <= 1 and found.source_rate == source
    middle = slice(2000, -2000)
    np.testing.assert_allclose(found.samples[middle], tone(1.0)[: len(found.samples)][middle], atol=2e-3)
    if source >= 44_100:
        high = read_sound(write(path, tone(1.0, source, pitch=11_000), source, "FLOAT"), RATE)
        assert np.abs(high.samples[middle]).max() < 1e-3


def test_a_sound_of_many_blocks_is_one_sound(tmp_path, monkeypatch):
    samples = np.stack([tone(0.7, 44_100), tone(0.7, 44_100, 333)], axis=1)
    path = write(tmp_path / "a.flac", samples, 44_100)
    whole = read_sound(path, RATE)
    monkeypatch.setattr(module, "_BLOCK", 1234)
    np.testing.assert_allclose(read_sound(path, RATE).samples, whole.samples, atol=1e-6)


def test_silence_is_silence_at_every_rate(tmp_path):
    for rate in (RATE, 44_100):
        found = read_sound(write(tmp_path / f"{rate}.wav", np.zeros(rate), rate), RATE)
        assert not found.samples.any() and len(found.samples) == RATE
        assert (found.peak, found.clipped) == (0, 0)


def test_what_is_clipped_is_said(tmp_path):
    square = np.sign(tone()) + (tone() == 0)  # nothing but full scale
    for subtype in ("PCM_U8", "PCM_16", "FLOAT"):
        assert read_sound(write(tmp_path / "a.wav", square, subtype=subtype), RATE).clipped == 1
    assert read_sound(write(tmp_path / "a.wav", tone()), RATE).clipped == 0
    found = read_sound(write(tmp_path / "a.wav", 4 * tone(), subtype="FLOAT"), RATE)  # floats may say more than 1
    assert found.peak == pytest.approx(2, abs=0.01) and np.abs(found.samples).max() == 1
    assert found.clipped == pytest.approx(2 / 3, abs=0.02)  # |sin| >= 1/2 two thirds of the time
    loud = read_sound(write(tmp_path / "b.wav", np.sign(tone(0.5, 48_000)), 48_000), RATE)
    assert np.abs(loud.samples).max() <= 1  # resampling overshoots at the edges of a square wave


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "opus.ogg", "a.mp3", "a.aiff", "a.au", "a.w64"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01])
def test_what_was_cut_short_is_refused(tmp_path, name, keep, capfd):
    path = write(tmp_path / name, tone(2.0), subtype="OPUS" if name == "opus.ogg" else None)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    assert "not a whole sound" in error(path)
    path.write_bytes(whole)
    assert len(read_sound(path, RATE).samples) == 2 * RATE


def test_damage_within_a_flac_is_found(tmp_path):
    path = write(tmp_path / "a.flac", tone(2.0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    assert "not a whole sound" in error(path)


def test_a_header_that_was_written_before_the_size_was_known_is_believed_in_all_else(tmp_path):
    """As programs do that write to a pipe."""
    path = write(tmp_path / "a.wav", tone())
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    for size in (0x7FFFF000, 0xFFFFFFFF):
        content[4:8] = content[at : at + 4] = struct.pack("<I", size)
        path.write_bytes(content)
        assert len(read_sound(path, RATE).samples) == RATE // 2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A short sound in formats of all kinds, and a path to write to."""
    folder = tmp_path_factory.mktemp("damaged")
    return {
        name: write(folder / name, tone(0.1)).read_bytes() for name in ("a.wav", "a.flac", "a.ogg", "a.aiff")
    }, folder


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["a.wav", "a.flac", "a.ogg", "a.aiff"]),
    at=st.one_of(st.integers(0, 80), st.integers(0, 4000)),
    new=st.binary(min_size=1, max_size=6),
)
def test_whatever_is_damaged_is_read_or_named(written, name, at, new):
    contents, folder = written
    content = bytearray(contents[name])
    content[at : at + len(new)] = new
    (folder / "x").write_bytes(content)
    try:
        found = read_sound(folder / "x", RATE)
    except CorruptFileError as reason:
        assert "\n" not in str(reason)
    else:
        assert np.isfinite(found.samples).all() and np.abs(found.samples).max() <= 1 and len(found.samples)


def test_what_is_no_sound(tmp_path):
    for content, word in ((b"", "empty"), (b"no sound at all" * 99, "ormat"), (b"RIFF", "")):
        (tmp_path / "a.wav").write_bytes(content)
        assert word in error(tmp_path / "a.wav")
    assert "no samples" in error(write(tmp_path / "none.wav", np.zeros(0)))
    assert "1 sample at 768,000 a second is too short" in error(write(tmp_path / "one.wav", np.zeros(1), 768_000))
    write(tmp_path / "old.voc", tone())
    assert "save it as WAV, FLAC, OGG or MP3" in error(tmp_path / "old.voc")
    assert "cannot read" in error(tmp_path / "missing.wav")
    assert "directory" in error(tmp_path)
    (tmp_path / "link.wav").symlink_to(write(tmp_path / "there.wav", tone()))
    assert "symbolic link" in error(tmp_path / "link.wav")


def test_values_that_are_no_numbers(tmp_path):
    for value in (np.nan, np.inf):
        samples = tone()
        samples[77] = value
        assert "no numbers" in error(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_giants_are_refused_by_what_they_are_not_by_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SAMPLES", RATE)
    monkeypatch.setattr(module, "_BLOCK", 4096)
    assert len(read_sound(write(tmp_path / "a.wav", tone(1.0)), RATE).samples) == RATE
    for rate in (8000, RATE, 48_000):
        assert "more than 16,000 samples at 16,000 a second; cut it" in error(
            write(tmp_path / "a.wav", tone(1.4, rate), rate)
        )


@pytest.mark.parametrize("rate", [1, 999, 768_001, 4_000_000])
def test_rates_that_nobody_meant(tmp_path, rate):
    assert f"{rate:,} samples a second" in error(write(tmp_path / "a.wav", tone(), rate))


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_the_missing_extra_is_named(tmp_path, monkeypatch, package):
    path = write(tmp_path / "a.wav", tone())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"pip install 'worldvq\[audio\]'"):
        read_sound(path, RATE)
