"""The store: what is committed survives, what is broken is named, and one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import re
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

from worldvq.config.env import EnvConfig
from worldvq.data import compression
from worldvq.data.episodes import EpisodeStore, write_episode
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.files.reading import seal
from worldvq.types import Episode


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(SPACES)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    steps=st.integers(1, 40),
    compress=st.sampled_from(["none", "zstd"]),
    end=st.sampled_from(["terminated", "truncated", "interrupted"]),
    seed=st.integers(0, 2**40),
)
def test_what_is_written_is_read_back(tmp_path_factory, kind, size, steps, compress, end, seed):
    folder = tmp_path_factory.mktemp("store")
    endings = {"terminated": False, "truncated": False} | {end: True}
    episode = make_episode(seed, steps, kind, size, **endings)
    with EpisodeStore.create(folder, make_meta(kind, size, compression=compress)) as store:
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


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_changed_byte_is_named(tmp_path, compress):
    store = fill(tmp_path / "d", compression=compress)
    file = tmp_path / "d" / store.entries[2].file
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    (problem,) = EpisodeStore.open(tmp_path / "d").verify()
    assert problem.startswith(str(file)) and "hash" in problem


def test_a_missing_and_a_short_file_are_named(tmp_path):
    store = fill(tmp_path / "d")
    files = [tmp_path / "d" / entry.file for entry in store.entries]
    files[1].unlink()
    files[3].write_bytes(files[3].read_bytes()[:-1])
    store = EpisodeStore.open(tmp_path / "d")
    assert [problem.split(":")[0] for problem in store.verify()] == [str(files[1]), str(files[3])]
    for number in (1, 3):
        with pytest.raises(CorruptFileError, match=f"{number:06d}"):
            store.read(number)


def test_a_file_under_the_wrong_number_is_named(tmp_path):
    store = fill(tmp_path / "d", 2)
    first, second = (tmp_path / "d" / entry.file for entry in store.entries)
    shutil.copy(first, second)
    lines = [json.loads(line) for line in (tmp_path / "d" / "index.jsonl").read_text().splitlines()]
    lines[1]["sha256"] = lines[0]["sha256"]  # even where the hash is right
    for line in lines:
        del line["crc32"]
    (tmp_path / "d" / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (problem,) = EpisodeStore.open(tmp_path / "d").verify()
    assert problem == f"{second}: number is 0, the index says 1"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_header_gets_past_the_reader(tmp_path_factory, data):
    """Whatever bytes stand in the header: either it reads, or CorruptFileError, never anything else."""
    folder = tmp_path_factory.getbasetemp() / "header"
    if not folder.exists():
        fill(folder, 1)
        shutil.copy(folder / "episodes" / "000000.safetensors", folder / "good")
    file, good = folder / "episodes" / "000000.safetensors", (folder / "good").read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    file.unlink()
    file.write_bytes(changed[: data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good))))])
    store = EpisodeStore.open(folder)
    try:
        store.read(0)
    except CorruptFileError as error:
        assert "000000.safetensors" in str(error)
    assert (len(store.verify()) == 1) == (bytes(file.read_bytes()) != good)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"frames": 3}',
        b'{"frames": {"dtype": "U8", "shape": [2], "data_offsets": [0, 9]}}',
        b'{"frames": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 2]}}',
        b'{"frames": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}',
        b'{"frames": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}',
        b'{"frames": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "__metadata__": 1}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_hostile_headers(tmp_path, header):
    store = fill(tmp_path / "d", 1)
    (tmp_path / "d" / store.entries[0].file).write_bytes(len(header).to_bytes(8, "little") + header + b"xx")
    with pytest.raises(CorruptFileError, match=r"000000\.safetensors"):
        EpisodeStore.open(tmp_path / "d").frames(0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda line: {**line, "file": "../../etc/passwd"}, r"line 2: .*the file of episode 1"),
        (lambda line: {**line, "file": "/etc/passwd"}, r"line 2: .*the file of episode 1"),
        (lambda line: {**line, "number": 0, "file": "episodes/000000.safetensors"}, r"line 2: episode 0 .*twice"),
        (lambda line: {**line, "sha256": "0"}, r"line 2: sha256"),
        (lambda line: {**line, "more": 1}, r"line 2: unknown key 'more'"),
        (lambda line: {**line, "episode_return": float("nan")}, r"line 2: .*NaN is no number"),
        (lambda line: [line], r"line 2: expected keys"),
        (lambda line: "nonsense", r"line 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, change, match):
    fill(tmp_path / "d", 3)
    index = tmp_path / "d" / "index.jsonl"
    lines = index.read_text().splitlines()
    line = json.loads(lines[1])
    del line["crc32"]
    lines[1] = json.dumps(change(line))
    index.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptFileError, match=r"index\.jsonl, " + match):
        EpisodeStore.open(tmp_path / "d")


def test_an_index_from_before_lines_had_checksums_still_opens(tmp_path):
    entries = fill(tmp_path / "d", 3).entries
    index = tmp_path / "d" / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(re.sub(rb',"crc32":"\w+"', b"", whole))
    assert len(index.read_bytes()) < len(whole) - 3 * 15
    assert EpisodeStore.open(tmp_path / "d").entries == entries


def test_a_broken_description_is_named(tmp_path):
    fill(tmp_path / "d", 1)
    description = tmp_path / "d" / "dataset.json"
    good = json.loads(description.read_text())
    assert description.read_bytes() == seal({name: good[name] for name in good if name != "checksum"})
    for text, match in (
        (json.dumps(good | {"seed": 1}), "checksum is not that of its content"),
        (json.dumps(good).replace("checksum", "checksm"), "unknown key 'checksm'"),
    ):
        description.write_text(text)
        with pytest.raises(CorruptFileError, match=rf"dataset\.json: .*{match}"):
            EpisodeStore.open(tmp_path / "d")
    del good["checksum"]
    description.write_text(json.dumps(good))  # as before there were checksums
    assert len(EpisodeStore.open(tmp_path / "d")) == 1
    for text, match in (
        ("{", "not valid JSON"),
        (json.dumps(good | {"format_version": 2}), "format_version"),
        (json.dumps(good | {"action_space": {}}), "action_space"),
        (json.dumps(good | {"frame_size": [0, 8]}), "frame_size"),
    ):
        description.write_text(text)
        with pytest.raises(CorruptFileError, match=rf"dataset\.json: .*{match}"):
            EpisodeStore.open(tmp_path / "d")


@pytest.mark.parametrize("damage", ["ends", "content"])
def test_damaged_chunks_are_named(tmp_path, damage):
    """Even with a hash that fits, a chunk cannot make the reader allocate or return what is not there."""
    episode = make_episode(steps=40)
    encoded = compression.encode_frames(episode.frames)
    assert encoded["chunk_ends"].shape == (3,)
    if damage == "ends":
        encoded["chunk_ends"] = encoded["chunk_ends"] + 10**9
    else:
        encoded["frames_zstd"] = np.zeros_like(encoded["frames_zstd"])
    with pytest.raises(ValueError, match="chunk 0"):
        compression.decode_frames(encoded, 41, 0, np.empty((3, 6, 8, 3), np.uint8))


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
