"""Stores of sounds: what is imported is what was in the files, and a piece is what its ids name."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sounds import PITCHES, RATE, tone, write_sounds

from worldvq.data.formats.folders import Source
from worldvq.data.formats.sounds import import_sounds, ordered
from worldvq.data.inspect import info, open_store
from worldvq.data.sounds import CropSampler, SoundStore
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.types import samples_from_model, samples_to_model

soundfile = pytest.importorskip("soundfile")
SPEAKERS = list(PITCHES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("sounds") / "store")


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        path = tmp_path / "wavs" / SPEAKERS[number % 2] / "deeper" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(300 + number, 500 + number), RATE, "PCM_16")
    return tmp_path / "wavs"


def test_samples_survive_the_way_into_a_model_and_back():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    inside = samples_to_model(every)
    assert inside.abs().max() <= 1 and torch.equal(samples_from_model(inside), every)
    assert samples_from_model(torch.tensor([2.0, -2.0])).tolist() == [2**15 - 1, -(2**15)]


def test_an_import_holds_the_samples_of_the_files_and_their_speakers(folder, tmp_path, capsys):
    (folder / "low" / "broken.wav").write_bytes(b"RIFF")
    (folder / "readme.txt").write_text("no sound")
    with import_sounds(folder, tmp_path / "store", rate=RATE, heldout_every=3) as store:
        assert len(store) == 6 and store.rate == RATE
        for number in store.numbers():
            meta = store.mapped(number).meta
            there, _ = soundfile.read(folder / meta["file"], dtype="int16")
            np.testing.assert_array_equal(store.samples(number), there)
            assert store.label(number) == meta["file"].split("/")[0]
        said = capsys.readouterr().out
        assert "7 sounds of 2 speakers" in said and "left out: low/broken.wav" in said and "1 sound cannot be" in said
        assert not store.verify()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "episodes").iterdir()}
    import_sounds(folder, tmp_path / "store", rate=RATE, heldout_every=3).close()  # goes on, has nothing to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "episodes").iterdir()} == before
    with pytest.raises(UsageError, match="rate"):
        import_sounds(folder, tmp_path / "store", rate=2 * RATE, heldout_every=3)
    with import_sounds(folder, tmp_path / "double", rate=2 * RATE) as double:
        assert sorted(map(double.num_samples, double.numbers())) == [2 * (500 + n) for n in range(6)]


def test_folders_that_hold_nothing_leave_nothing(tmp_path):
    with pytest.raises(UsageError, match="no such folder of sounds"):
        import_sounds(tmp_path / "none", tmp_path / "store")
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds no sounds.*other files 1"):
        import_sounds(tmp_path / "wavs", tmp_path / "store")
    with pytest.raises(UsageError, match="--rate 8: 1,000 to"):
        import_sounds(tmp_path / "wavs", tmp_path / "store", rate=8)
    assert not (tmp_path / "store").exists()
    (tmp_path / "wavs" / "a.wav").write_bytes(b"x")
    with pytest.raises(RunError, match="no sound can be read"):
        import_sounds(tmp_path / "wavs", tmp_path / "store")


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("abc", max_size=2), st.integers(1, 40), min_size=1), st.integers(2, 12))
def test_of_every_speaker_one_in_so_many_is_held_out(counts, every):
    files = {label: [Source(f"{label}/{n}", n) for n in range(count)] for label, count in counts.items()}
    order = ordered(files)
    assert Counter(order) == Counter((label, file) for label, many in files.items() for file in many)
    held = Counter(label for number, (label, _) in enumerate(order) if number % every == every - 1)
    assert all(abs(held[label] - count / every) < 1 for label, count in counts.items())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 1500), st.sampled_from(["train", "heldout"]))
def test_a_piece_is_what_its_ids_name(store, seed, step, length, split):
    sampler = CropSampler(store, split, length, 8, seed, SPEAKERS)
    crops = sampler.batch(step)
    for wave, speaker, (number, start) in zip(crops.waveforms, crops.speakers, sampler.ids(step), strict=True):
        assert number in store.numbers(split)
        piece = store.samples(number)[start : start + length]
        np.testing.assert_array_equal(wave[: len(piece)].numpy(), piece / 2.0**15)
        assert not wave[len(piece) :].any() and len(piece) == min(length, store.num_samples(number))
        assert SPEAKERS[speaker] == store.label(number)
    parts = [sampler.batch(step, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([part.waveforms for part in parts]), crops.waveforms)
    assert torch.equal(torch.cat([part.speakers for part in parts]), crops.speakers)


def test_the_noise_of_a_piece_follows_from_step_and_place_in_the_batch(store):
    def keys(step, rank=0, world=1, seed=3):
        return CropSampler(store, "train", 40, 4, seed, SPEAKERS).batch(step, rank, world).keys

    whole = keys(5)
    assert whole.shape == (4, 2) and whole.dtype == torch.int32 and len({tuple(row) for row in whole.tolist()}) == 4
    assert torch.equal(torch.cat([keys(5, rank, 2) for rank in range(2)]), whole)
    for other in (keys(6), keys(5, seed=4)):
        assert not (other == whole).all(1).any()


def test_every_place_is_equally_likely(store):
    sampler = CropSampler(store, "train", 690, 2000, 0, SPEAKERS)
    drawn = Counter(sampler.ids(0)[:, 0].tolist())
    places = {number: store.num_samples(number) - 689 for number in store.numbers("train")}
    for number, count in places.items():
        share = count / sum(places.values())
        assert abs(drawn[number] / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_no_more_files_are_mapped_than_may_be(store, monkeypatch):
    monkeypatch.setattr("worldvq.data.mapped.MAX_MAPPED", 3)
    fresh = SoundStore.open(store.path)
    for number in [*store.numbers(), *store.numbers()]:
        np.testing.assert_array_equal(fresh.samples(number), store.samples(number))
        assert len(fresh._mapped) <= 3


def test_what_was_changed_is_named(tmp_path):
    store = write_sounds(tmp_path / "store")
    assert isinstance(open_store(store.path), SoundStore) and info(store.path).row_count == 3
    file = store.path / store.entry(3).file
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert len(SoundStore.open(store.path).verify()) == 1
    with pytest.raises(CorruptFileError, match=r"000003.safetensors: its hash"):
        SoundStore.open(store.path).samples(3)
    file.write_bytes(data[:-2])
    with pytest.raises(CorruptFileError, match=r"000003.safetensors"):
        SoundStore.open(store.path).samples(3)
