"""The store: what is committed survives, what is broken is named, and one writer at a time."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support import programs
from support.episodes import SPACES, assert_same, fill, make_episode, make_meta

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.data import compression
from worldvq.data.episodes import EpisodeStore, write_episode
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.types import Episode


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(SPACES)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    steps=st.integers(1, 40),
    compress=st.sampled_from(["none", "zstd"]),
    end=st.sampled_from(["terminated", "truncated", "interrupted"]),
    samples=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**40),
)
def test_what_is_written_is_read_back(tmp_path_factory, kind, size, steps, compress, end, samples, seed):
    folder = tmp_path_factory.mktemp("store")
    endings = {"terminated": False, "truncated": False} | {end: True}
    episode = make_episode(seed, steps, kind, size, samples, **endings)
    sound = samples and SoundFormat(rate=1000, samples=samples)
    with EpisodeStore.create(folder, make_meta(kind, size, compression=compress, sound=sound)) as store:
        entry = store.commit(7, episode)
        assert_same(store.read(7), episode)
    store = EpisodeStore.open(folder)
    assert store.entries == [entry]
    assert_same(store.read(7), episode)
    np.testing.assert_array_equal(store.frames(7), episode.frames)
    assert store.action_space == SPACES[kind]
    assert entry.episode_return == pytest.approx(float(episode.rewards.sum()), abs=1e-4)
    assert store.verify() == []
    shutil.rmtree(folder)


def test_a_dataset_without_sound_does_not_mention_it(tmp_path):
    fill(tmp_path / "d", 1)
    text = (tmp_path / "d" / "dataset.json").read_text()
    assert "sound" not in text and "audio" not in text
    sound = SoundFormat(rate=1000, samples=8)
    env = EnvConfig(audio_key="ear")
    EpisodeStore.create(tmp_path / "heard", make_meta(sound=sound).model_copy(update={"env": env})).close()
    meta = EpisodeStore.open(tmp_path / "heard").meta
    assert (meta.sound, meta.env.audio_key, meta.env.audio_rate) == (sound, "ear", None)


def test_sound_that_does_not_fit_is_refused_and_changed_sound_is_found(tmp_path):
    with EpisodeStore.create(tmp_path / "d", make_meta(sound=SoundFormat(rate=1000, samples=8))) as store:
        for samples, words in ((None, "no sound"), (9, "9 samples of sound a step")):
            with pytest.raises(UsageError, match=f"holds 8 samples of sound a step, episode 0 {words}"):
                store.commit(0, make_episode(samples=samples))
        entry = store.commit(0, make_episode(samples=8))
    path = tmp_path / "d" / entry.file
    data = path.read_bytes()
    samples = make_episode(samples=8).sounds.tobytes()
    place = data.index(samples)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert EpisodeStore.open(tmp_path / "d").verify() == [
        f"{path}: its hash is not the one in the index; the file has changed"
    ]


def test_an_episode_has_a_label_or_that_of_its_environment(tmp_path):
    episode = make_episode(0, 3)
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        store.commit(0, episode)
        store.commit(1, dataclasses.replace(episode, meta={"label": "katze \u00fc"}))
    read = EpisodeStore.open(tmp_path / "d")
    assert [read.label(number) for number in (0, 1)] == [make_meta().env.id, "katze \u00fc"]
    plain, labelled = (tmp_path / "d" / "index.jsonl").read_text().splitlines()
    assert "label" not in plain and "label" in labelled
    assert read.verify() == []


def test_files_are_plain_safetensors(tmp_path):
    store = fill(tmp_path / "d", 1)
    with safe_open(tmp_path / "d" / store.entries[0].file, "np") as file:  # the library, as an independent reader
        assert set(file.keys()) == {"frames", "actions", "rewards"}
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(file.get_tensor(name), getattr(make_episode(0), name))
        about = json.loads(file.metadata()["episode"])
    assert about["number"] == 0 and about["truncated"] is True and about["meta"] == {"level": 0, "name": "ä"}


def test_frames_are_mapped_without_a_descriptor_and_cannot_be_written(tmp_path):
    store = fill(tmp_path / "d", 5)
    descriptors = Path("/proc/self/fd")  # on Linux
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    frames = [store.frames(number) for number in store.numbers()]
    if before:
        assert len(list(descriptors.iterdir())) == before
    with pytest.raises(ValueError, match="read-only"):
        frames[0][0] = 0
    assert store.frames(0) is frames[0]


def test_split_is_fixed_by_the_number(tmp_path):
    with EpisodeStore.create(tmp_path / "d", make_meta(heldout_every=3)) as store:
        for number in (11, 2, 5, 0, 7):  # workers finish in any order
            store.commit(number, make_episode(number))
        assert store.numbers("heldout") == [2, 5, 11]
        assert store.numbers("train") == [0, 7]
        assert store.numbers("all") == [0, 2, 5, 7, 11]
        assert [entry.number for entry in store.entries] == [0, 2, 5, 7, 11]
        with pytest.raises(UsageError, match="split 'test'"):
            store.numbers("test")  # type: ignore[arg-type]


def test_numbers_with_more_than_six_digits(tmp_path):
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        assert store.commit(12_345_678, make_episode()).file == "episodes/12345678.safetensors"
    assert EpisodeStore.open(tmp_path / "d").verify() == []


def test_a_worker_writes_and_the_parent_lists(tmp_path):
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        entry = write_episode(tmp_path / "d", 3, make_episode(3))
        assert 3 not in store
        store.append(entry)
        assert_same(store.read(3), make_episode(3))
        with pytest.raises(UsageError, match="episode 3 is already recorded"):
            store.append(entry)
        with pytest.raises(UsageError, match="episode 3 is already recorded"):
            store.commit(3, make_episode(4))
        with pytest.raises(CorruptFileError, match="000004"):
            store.append(entry.model_copy(update={"number": 4, "file": "episodes/000004.safetensors"}))
    assert_same(EpisodeStore.open(tmp_path / "d").read(3), make_episode(3))


def test_what_does_not_fit_is_refused(tmp_path):
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        for episode, match in (
            (make_episode(size=(8, 8)), "holds frames of"),
            (make_episode(kind="box"), "discrete actions"),
            (Episode(make_episode().frames, np.full(20, 5), np.zeros(20, np.float32), True, False), "action is 5"),
        ):
            with pytest.raises(UsageError, match=match):
                store.commit(0, episode)
        bad = Episode(make_episode().frames, np.zeros(20, np.int64), np.full(20, np.nan, np.float32), True, False)
        with pytest.raises(RunError, match="not finite"):
            store.commit(0, bad)
        assert len(store) == 0 and not list((tmp_path / "d" / "episodes").iterdir())
    with pytest.raises(UsageError, match="reading only"):
        EpisodeStore.open(tmp_path / "d").commit(0, make_episode())
    with pytest.raises(UsageError, match="no episode 9"):
        EpisodeStore.open(tmp_path / "d").read(9)


# ------------------------------------------------------------------------------------------------ crashes


def test_an_interrupted_recording_continues(tmp_path):
    folder = tmp_path / "d"
    fill(folder, 3)
    index = folder / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole + whole[:50])  # the machine died while a line was appended
    (folder / "episodes" / ".000003.safetensors.77.tmp").write_bytes(b"half")
    (folder / ".dataset.json.77.tmp").write_bytes(b"half")
    (folder / "episodes" / "000003.safetensors").write_bytes(b"an orphan: written, never listed")
    store = EpisodeStore.open(folder)
    assert store.numbers() == [0, 1, 2] and store.verify() == []
    with EpisodeStore.create(folder, make_meta()) as store:
        assert index.read_bytes() == whole
        assert not list(folder.glob("**/*.tmp"))
        store.commit(3, make_episode(3))
    store = EpisodeStore.open(folder)
    assert store.numbers() == [0, 1, 2, 3] and store.verify() == []
    assert_same(store.read(3), make_episode(3))


def test_killed_before_the_description_was_written(tmp_path):
    (tmp_path / "d" / "episodes").mkdir(parents=True)
    (tmp_path / "d" / ".lock").write_text("process 1 on nowhere\n")
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        store.commit(0, make_episode())


KILLED = """
import itertools, sys
from support.episodes import EpisodeStore, make_episode, make_meta
store = EpisodeStore.create(sys.argv[1], make_meta())
for number in itertools.count():
    store.commit(number, make_episode(number))
    print(number, flush=True)
"""


def test_everything_committed_survives_a_kill(tmp_path):
    folder, command = tmp_path / "d", [sys.executable, "-c", KILLED, str(tmp_path / "d")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=programs.environment())
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(12)]
    with pytest.raises(RunError, match=f"process {child.pid} on .* is writing"):
        EpisodeStore.create(folder, make_meta())
    time.sleep(0.003)  # at some moment of a commit
    child.send_signal(signal.SIGKILL)
    seen += [int(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    store = EpisodeStore.open(folder)
    assert set(store.numbers()) >= set(seen) and store.verify() == []
    with EpisodeStore.create(folder, make_meta()) as store:  # the dead writer's lock is gone
        store.commit(len(store), make_episode(5))
        assert store.verify() == []


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        with pytest.raises(RunError, match=f"process {os.getpid()} on"):
            EpisodeStore.create(tmp_path / "d", make_meta())
        assert len(EpisodeStore.open(tmp_path / "d")) == 0
        store.commit(0, make_episode())
    EpisodeStore.create(tmp_path / "d", make_meta()).close()


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1234))
        with pytest.raises(RunError, match=r"000000\.safetensors: the disk is full.* 1,234 bytes free"):
            store.commit(0, make_episode())
    assert not list((tmp_path / "d" / "episodes").iterdir())


def test_full_disk_while_writing(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with EpisodeStore.create(tmp_path / "d", make_meta()) as store:
        store.commit(0, make_episode())
        before = (tmp_path / "d" / "index.jsonl").read_bytes()
        entry = write_episode(tmp_path / "d", 1, make_episode(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RunError, match="the disk is full"):
                store.commit(2, make_episode())
            with pytest.raises(RunError, match=r"index\.jsonl: the disk is full"):
                store.append(entry)
        assert (tmp_path / "d" / "index.jsonl").read_bytes() == before
        assert sorted(f.name for f in (tmp_path / "d" / "episodes").iterdir()) == [
            "000000.safetensors",
            "000001.safetensors",
        ]
        store.append(entry)
    assert EpisodeStore.open(tmp_path / "d").numbers() == [0, 1]


# ------------------------------------------------------------------------------------------------ usage


def test_opening_nothing_says_how_to_record(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="worldvq record ENV --out DIR"):
            EpisodeStore.open(folder)


def test_creating_over_something_else(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("d", "file"):
        with pytest.raises(UsageError, match="holds other files"):
            EpisodeStore.create(tmp_path / name, make_meta())
    assert [file.name for file in (tmp_path / "d").iterdir()] == ["thesis.tex"]


def test_other_settings_are_named_and_other_versions_allowed(tmp_path):
    fill(tmp_path / "d", 1)
    other = make_meta(seed=4).model_copy(update={"env": EnvConfig(frame_skip=4)})
    with pytest.raises(
        UsageError, match=r"env.frame_skip: the dataset has 1, you ask for 4; seed: the dataset has 0, you"
    ):
        EpisodeStore.create(tmp_path / "d", other)
    EpisodeStore.create(tmp_path / "d", make_meta(versions={"worldvq": "1"})).close()


def test_zstd_missing_names_the_pip_command(tmp_path, monkeypatch):
    fill(tmp_path / "d", 1, compression="zstd")
    monkeypatch.setattr(compression, "zstandard", None)
    with pytest.raises(UsageError, match=r"pip install 'worldvq\[zstd\]'"):
        EpisodeStore.open(tmp_path / "d")
    with pytest.raises(UsageError, match=r"pip install 'worldvq\[zstd\]'"):
        EpisodeStore.create(tmp_path / "new", make_meta(compression="zstd"))
