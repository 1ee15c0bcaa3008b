"""Damage is found and named: cut short, flipped bits, garbage, folders or closed doors in place of files; fuzzed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.episodes import fill, make_episode, make_meta
from support.readers import NAMES, readers

from worldvq.data.episode_files import read_index
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import CorruptFileError, WorldVQError

ROOT = Path(__file__).resolve().parents[2]
CHECKED = [name for name in NAMES if name not in ("weights", "config", "metrics", "part", "report")]
CHECKED = [name for name in CHECKED if not name.startswith("actions")]
"""Those whose every byte is vouched for: by a hash, a checksum, or a comparison."""


@pytest.fixture(scope="module")
def files():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)  # for whoever may not read a file in it
        found = readers(root)
        assert set(found) == set(NAMES)
        yield root, found


@pytest.fixture
def damaged(files, request):
    """A reader, its good bytes and the value they have; the file is put back afterwards."""
    root, found = files
    reader = found[request.param]
    if not reader.file.exists():
        reader.file.write_bytes(reader.others[0])
    beside = {path: path.read_bytes() for path in reader.file.parent.iterdir() if path.is_file()}
    yield root, reader, reader.file.read_bytes(), reader.value and reader.value()
    for path, data in beside.items():
        path.write_bytes(data)


def outcome(root, reader, data):
    """What a file that holds these bytes is read as, or None where an error names it."""
    reader.file.write_bytes(data)
    try:
        return reader.value()
    except WorldVQError as error:
        assert str(root) in str(error) and "\n" not in str(error), error
        return None


@pytest.mark.parametrize("damaged", CHECKED, indirect=True)
def test_a_file_cut_short_is_named(damaged, slow):
    root, reader, good, value = damaged
    lengths = range(len(good))
    if not slow and (len(good) > 3000 or reader.file.suffix == ".yaml"):
        some = 40 if reader.file.suffix == ".yaml" else 150
        lengths = sorted({*range(some), *np.random.default_rng(0).integers(0, len(good), some), len(good) - 1})
    for length in lengths:
        found = outcome(root, reader, good[:length])
        if reader.file.name == "index.jsonl" and found is not None:
            # Where a line ends a recording can have been stopped. Lines before the cut are never lost.
            assert found == value[: len(found)] and len(found) >= good[:length].count(b"\n")
        elif found is not None:  # a last newline, or the ".0" of a last number
            assert found == value and len(good) - length <= 3, f"{len(good) - length} bytes less were not seen"


@pytest.mark.parametrize("damaged", CHECKED, indirect=True)
def test_a_flipped_bit_is_found(damaged, slow):
    """Random bits; each is an error, or the content is still the same."""
    root, reader, good, value = damaged
    few = 40 if reader.file.name in ("config.yaml", "dynamics.safetensors") else 120
    bits = np.random.default_rng(0).permutation(8 * len(good))[: 5000 if slow else few]
    same = 0
    for bit in bits.tolist():
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        found = outcome(root, reader, bytes(changed))
        assert found is None or found == value, f"bit {bit} of {reader.file} changed what is read"
        same += found is not None
    # Case of a key of config.yaml, or in the word "checksum" itself.
    assert same <= len(bits) // 10, f"{same} of {len(bits)} flips were not seen"


@pytest.mark.parametrize("damaged", NAMES, indirect=True)
def test_something_else_in_its_place_is_named(damaged):
    root, reader, good, _ = damaged
    small = [b"", b"\n", b"\0" * 100, b"null", b"[]", b"{}", b"\xff" * 300, b"[" * 5000]
    for data in (*small, np.random.default_rng(0).bytes(2000), good * 2):
        reader.check(root, data)
    reader.file.unlink()
    reader.file.mkdir()
    try:
        reader.read(good)
    except WorldVQError as error:
        assert str(root) in str(error)
    else:  # without a manifest there is no checkpoint, without a log none, without a part it is made again
        assert reader.file.name in ("manifest.json", "metrics.jsonl", "000000.safetensors")
    finally:
        reader.file.rmdir()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the permissions of POSIX")
@pytest.mark.parametrize("damaged", CHECKED, indirect=True)
def test_a_file_that_may_not_be_read_is_named(damaged):
    root, reader, *_ = damaged
    user, nobody = os.geteuid(), 65534
    reader.file.chmod(0)
    if user == 0:
        os.seteuid(nobody)  # nothing is closed to root
    try:
        with pytest.raises(WorldVQError, match=re.escape(str(root))):
            reader.value()
    finally:
        os.seteuid(user)
        reader.file.chmod(0o644)


@pytest.mark.parametrize("damaged", NAMES, indirect=True)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_bytes_an_error_names_the_file(damaged, data):
    """Pieces of the good file, changed, moved and mixed with others, under hashes that fit."""
    root, reader, good, _ = damaged
    changed = bytearray(data.draw(st.sampled_from((good, *reader.others))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed)))
        end = min(place + data.draw(st.integers(0, 8)), len(changed))
        tokens = st.sampled_from([b"1e999", b"-1", b"null", b"[", b"9" * 20])
        changed[place:end] = data.draw(st.binary(max_size=8) | tokens)
    reader.check(root, bytes(changed))


def test_a_last_line_without_its_newline_is_kept_and_appended_to(tmp_path):
    folder, index = fill(tmp_path / "d", 3).path, tmp_path / "d" / "index.jsonl"
    whole = index.read_bytes()
    last = whole.rindex(b"{")
    for tail in (b"", b"\0\0\0"):  # zeros stand where a file system had not written yet
        index.write_bytes(whole[:-1] + tail)
        assert EpisodeStore.open(folder).numbers() == [0, 1, 2]
        assert read_index(index)[1] == len(whole) - 1
        with EpisodeStore.create(folder, make_meta()):
            assert index.read_bytes() == whole
    for tail in (whole[last:-2], b'{"num', b"\0" * 300, b"{"):
        index.write_bytes(whole[:last] + tail)
        assert EpisodeStore.open(folder).numbers() == [0, 1] and read_index(index)[1] == last
        with EpisodeStore.create(folder, make_meta()):
            assert index.read_bytes() == whole[:last]
    index.write_bytes(whole[:-1])
    with EpisodeStore.create(folder, make_meta()) as store:
        store.commit(3, make_episode(3))
    assert EpisodeStore.open(folder).numbers() == [0, 1, 2, 3] and EpisodeStore.open(folder).verify() == []


@pytest.mark.parametrize("tail", [b"J", b" \x0b", b"{", b"}", b"\x8a"])
def test_a_newline_that_became_something_else_is_no_torn_line(tmp_path, tail):
    folder, index = fill(tmp_path / "d", 3).path, tmp_path / "d" / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-1] + tail)
    before = index.read_bytes()
    for use in (EpisodeStore.open, lambda folder: EpisodeStore.create(folder, make_meta())):
        with pytest.raises(CorruptFileError, match=r"index\.jsonl, line 3: other bytes follow"):
            use(folder)
    assert index.read_bytes() == before


def test_a_damaged_episode_is_never_used_and_others_are(tmp_path):
    folder = fill(tmp_path / "d", 3).path
    file = folder / "episodes" / "000001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 4  # one pixel
    file.write_bytes(data)
    store = EpisodeStore.open(folder)
    assert len(store.read(0)) == len(store.read(2)) == 20
    for use in (store.read, store.frames, store.mapped, lambda n: store.copy_window(n, 0, np.empty((2, 6, 8, 3)))):
        with pytest.raises(CorruptFileError, match=r"000001\.safetensors: its hash"):
            use(1)


def test_fuzzing_finds_nothing(slow, tmp_path):
    """A minute over all readers, or with --slow a minute each; what is found is kept and says how to see it again."""
    pytest.importorskip("atheris")
    seconds = 60 * (len(NAMES) if slow else 1)
    found = Path(os.environ.get("FUZZ_FOUND", tmp_path / "found"))
    command = [sys.executable, str(ROOT / "tools/fuzz.py"), "--seconds", str(seconds), "--found", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(\w+) +([\d,]+) executions$", done.stdout, re.MULTILINE))
    assert set(counts) == set(NAMES)
    assert all(int(count.replace(",", "")) for count in counts.values()), counts  # how many, the machine decides
