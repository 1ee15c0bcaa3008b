"""The corpus of speech: sentences that are their own, phones that cover the samples, and what is missing is named."""

import shutil

import numpy as np
import pytest

from worldvq.data.formats import speech as module
from worldvq.data.formats.sentences import sentence
from worldvq.data.formats.speech import VOICES, make_speech, parse_segments
from worldvq.data.sounds import SoundStore
from worldvq.errors import RunError, UsageError

needs_festival = pytest.mark.skipif(not shutil.which("festival"), reason="festival is not installed")
SEGMENTS = "separator ;\n#\n\t0.2000\t100\tpau\n\t0.2500\t100\tdh\n\t0.4000\t100\tax\n\t0.7001\t100\tpau\n"


def test_sentences_are_english_enough_and_never_twice():
    texts = [sentence(0, number) for number in range(2000)]
    assert len(set(texts)) == 2000 and texts == [sentence(0, number) for number in range(2000)]
    assert not set(texts) & {sentence(1, number) for number in range(100)}
    for text in texts:
        assert text[0].isupper() and text[-1] in ".?" and " a o" not in text and "{" not in text
        assert 3 <= len(text.split()) <= 24


def test_segments_are_read_as_festival_writes_them():
    assert parse_segments(SEGMENTS, 1000, 690) == [("pau", 200), ("dh", 250), ("ax", 400), ("pau", 690)]
    with pytest.raises(RunError, match="no phones"):
        parse_segments("#\n", 1000, 690)


def test_silence_at_the_ends_is_cut_and_phones_move_along():
    phones = parse_segments(SEGMENTS, 1000, 700)
    sound, moved = module._trimmed(np.arange(700), phones, 50)
    np.testing.assert_array_equal(sound, np.arange(150, 450))
    assert moved == [("pau", 50), ("dh", 100), ("ax", 250), ("pau", 300)]


def test_what_is_not_installed_is_named_with_its_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"festival.* is not installed: apt install festival festvox-kallpc16k"):
        make_speech(tmp_path / "out")
    fake = tmp_path / "festival"
    fake.write_text("#!/bin/sh\necho '(kal_diphone)'\n")
    fake.chmod(0o755)
    with pytest.raises(UsageError, match=r"not installed: apt install festvox-kdlpc16k festvox-us-slt-hts$"):
        make_speech(tmp_path / "out")
    fake.write_text("#!/bin/sh\necho 'SIOD ERROR' >&2\nexit 255\n")
    with pytest.raises(RunError, match="festival failed: SIOD ERROR"):
        make_speech(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_festival
def test_a_corpus_is_the_same_however_it_was_made(tmp_path, monkeypatch):
    pytest.importorskip("soundfile")
    make_speech(tmp_path / "a", sentences=8, rate=8000, heldout_every=2).close()
    monkeypatch.setattr(module, "AT_ONCE", 3)
    make_speech(tmp_path / "b", sentences=3, rate=8000, heldout_every=2).close()
    make_speech(tmp_path / "b", sentences=8, rate=8000, heldout_every=2).close()  # goes on
    a, b = SoundStore.open(tmp_path / "a"), SoundStore.open(tmp_path / "b")
    assert a.fingerprint() == b.fingerprint() and not a.verify()
    assert [a.label(n) for n in a.numbers()] == [list(VOICES)[n // 2 % 3] for n in range(8)]
    for number in a.numbers():
        phones = a.mapped(number).meta["segments"]
        ends = [end for _, end in phones]
        assert ends == sorted(ends) and ends[-1] == a.num_samples(number) > 8000
        assert phones[0][0] == phones[-1][0] == "pau"
        # Where festival says that it is silent, it is: phones and samples are aligned.
        level = np.abs(a.samples(number).astype(float))
        assert level[: ends[0] - 160].mean() < 0.1 * level[ends[0] : ends[-2]].mean()
        assert level.max() == pytest.approx(0.7 * 2**15, abs=1)
    with pytest.raises(UsageError, match="seed"):
        make_speech(tmp_path / "a", sentences=8, rate=8000, heldout_every=2, seed=1)
