"""A store that is damaged: what is broken is named, and nothing else is lost."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.episodes import fill, make_episode

from worldvq.data import compression
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import CorruptFileError
from worldvq.files.reading import seal


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
