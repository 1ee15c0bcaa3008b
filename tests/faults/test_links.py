"""Links in a dataset lead nowhere: nothing outside of its folder is read or changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.episodes import fill, make_episode, make_meta
from support.fault_tools import hashes

from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.data.shards import merge_shards
from worldvq.errors import WorldVQError
from worldvq.files.atomic import write_atomic
from worldvq.files.lock import Lock


@pytest.fixture
def outside(tmp_path):
    """A folder that nothing may touch."""
    folder = tmp_path / "outside"
    fill(folder, 2)
    (folder / "secret").write_text("do not show or change")
    return folder


@pytest.mark.parametrize("name", ["dataset.json", "index.jsonl", "index.0-of-2.jsonl", "episodes", ".lock"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_store_whose_parts_are_links_is_refused(tmp_path, outside, name, dangling):
    folder = fill(tmp_path / "d", 2).path
    target = outside / ("nothing" if dangling else "secret" if name == ".lock" else name)
    if name == "index.0-of-2.jsonl" and not dangling:
        shutil.copy(folder / "index.jsonl", target)
    if (folder / name).is_dir():
        shutil.rmtree(folder / name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    before = hashes(outside)
    uses = [
        lambda: EpisodeStore.create(folder, make_meta()),
        lambda: EpisodeStore.create(folder, make_meta(), Shard(0, 2)),
        lambda: EpisodeStore.open(folder),
        lambda: merge_shards(folder),
        lambda: Lock(folder).release(),
    ]
    for number, use in enumerate(uses):
        refused = None
        try:
            use()
        except WorldVQError as error:
            refused = error
        if number < 3 or (number == 4 and name == ".lock"):
            assert refused is not None
            assert name in str(refused) or (name == "dataset.json" and dangling)
        assert hashes(outside) == before and not (outside / "nothing").exists()


def test_an_episode_that_is_a_link_is_refused(tmp_path, outside):
    """Even where it points to the very same bytes: who knows what is there tomorrow."""
    folder, before = fill(tmp_path / "d", 2).path, hashes(outside)
    for target in (outside / "episodes" / "000001.safetensors", Path("/etc/passwd"), Path("/dev/zero"), folder):
        file = folder / "episodes" / "000001.safetensors"
        file.unlink()
        file.symlink_to(target)
        with EpisodeStore.open(folder) as store, pytest.raises(WorldVQError, match=r"000001.*symbolic link"):
            store.read(1)
        (problem,) = store.verify()
        assert "symbolic link" in problem and "root:" not in problem
    file.unlink()
    os.mkfifo(file)  # nobody writes to it: opening it as other files are would wait for ever
    with pytest.raises(WorldVQError, match=r"000001.*not a regular file"):
        EpisodeStore.open(folder).read(1)
    assert hashes(outside) == before


def test_links_under_temporary_names_are_removed_and_not_followed(tmp_path, outside):
    folder, before = fill(tmp_path / "d", 2).path, hashes(outside)
    for place in (folder, folder / "episodes"):
        (place / ".000002.safetensors.1.tmp").symlink_to(outside / "secret")
    mine = folder / "episodes" / f".000002.safetensors.{os.getpid()}.tmp"
    mine.symlink_to(outside / "secret")
    with EpisodeStore.create(folder, make_meta()) as store:
        mine.symlink_to(outside / "secret")
        store.commit(2, make_episode(2))
        assert store.verify() == []
    assert hashes(outside) == before and not list(folder.rglob("*.tmp"))
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(outside / "secret")
    write_atomic(tmp_path / "a", b"new")
    assert hashes(outside) == before and (tmp_path / "a").read_bytes() == b"new"
    (tmp_path / "b").symlink_to(outside / "secret")
    write_atomic(tmp_path / "b", b"new")  # takes the link's place
    assert hashes(outside) == before and not (tmp_path / "b").is_symlink()


def test_a_link_to_a_whole_store_is_fine(tmp_path):
    fill(tmp_path / "d", 2)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    with EpisodeStore.create(tmp_path / "link", make_meta()) as store:
        store.commit(2, make_episode(2))
    assert EpisodeStore.open(tmp_path / "link").verify() == [] and len(EpisodeStore.open(tmp_path / "d")) == 3
