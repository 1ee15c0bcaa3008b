"""Shards: who they are, what they may write, and that merging touches nothing but the index."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.data.shard import Shard
from worldvq.data.shards import merge_shards, shard_indexes
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.types import ActionSpace, Episode

META = DatasetMeta(
    env=EnvConfig(size=(8, 8)), action_space=ActionSpace("discrete", (3,)).to_json(), frame_size=(8, 8), policy="held"
)


def episode(number: int) -> Episode:
    frames = np.full((4, 8, 8, 3), number, np.uint8)
    return Episode(frames, np.zeros(3, np.int64), np.ones(3, np.float32), terminated=True, truncated=False, seed=number)


def fill(path, shard: Shard, total: int) -> None:
    with EpisodeStore.create(path, META, shard) as store:
        for number in range(total):
            if shard.owns(number) and number not in store:
                store.commit(number, episode(number))


def stamps(path) -> dict:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (path / "episodes").iterdir()}


# ------------------------------------------------------------------------------------------------ which one


@given(st.integers(1, 50), st.integers(0, 500))
def test_every_episode_belongs_to_one_shard_and_shares_add_up(count, total):
    shards = [Shard(index, count) for index in range(count)]
    for number in range(total, total + 60):
        assert sum(shard.owns(number) for shard in shards) == 1
    assert sum(shard.share(total) for shard in shards) == total
    assert all(shard.share(total) == sum(map(shard.owns, range(total))) for shard in shards)
    assert all(Shard.parse(str(shard)) == shard for shard in shards)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "0/0", "1/2/3", "a/b", "0/", "/2", "1.0/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="there is no shard"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("environment", "shard", "source"),
    [
        ({}, Shard(), ""),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Shard(2, 4), "RANK"),
        ({"RANK": "2"}, Shard(), ""),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Shard(), "RANK"),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "10"},
            Shard(6, 10),
            "SLURM_ARRAY_TASK_ID",
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "10",
                "SLURM_ARRAY_TASK_STEP": "3",
            },
            Shard(2, 4),
            "SLURM_ARRAY_TASK_ID",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "7"}, Shard(0, 2), "RANK"),
    ],
)
def test_launchers_say_which_shard_a_process_is(environment, shard, source):
    assert Shard.from_environment(environment) == (shard, source)


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"SLURM_ARRAY_TASK_ID": "7"}],
)
def test_launchers_that_contradict_themselves_are_refused(environment):
    with pytest.raises(UsageError, match="--shard"):
        Shard.from_environment(environment)


# ------------------------------------------------------------------------------------------------ the store


def test_merged_shards_are_the_store_of_one_writer_and_no_file_is_touched(tmp_path):
    fill(tmp_path / "one", Shard(), 11)
    for index in (2, 0, 1):
        fill(tmp_path / "many", Shard(index, 3), 11)
    before = stamps(tmp_path / "many")
    assert merge_shards(tmp_path / "many") == 3 and merge_shards(tmp_path / "many") == 0
    assert stamps(tmp_path / "many") == before and shard_indexes(tmp_path / "many") == {}
    assert (tmp_path / "many" / "index.jsonl").read_bytes() == (tmp_path / "one" / "index.jsonl").read_bytes()
    assert {path.name for path in (tmp_path / "many").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    assert EpisodeStore.open(tmp_path / "many").verify() == []


def test_shards_may_go_on_after_a_merge_and_be_merged_again(tmp_path):
    for total, count in ((4, 2), (9, 2), (14, 5)):  # divided otherwise the last time
        for index in range(count):
            fill(tmp_path, Shard(index, count), total)
        store = EpisodeStore.merge(tmp_path)
        assert store.numbers() == list(range(total)) and store.verify() == []
    fill(tmp_path, Shard(), 16)
    assert EpisodeStore.open(tmp_path).numbers() == list(range(16))


def test_a_merge_that_was_cut_short_is_merged_again(tmp_path):
    for index in range(2):
        fill(tmp_path, Shard(index, 2), 6)
    kept = {path: path.read_bytes() for path in shard_indexes(tmp_path)}
    merge_shards(tmp_path)
    whole = (tmp_path / "index.jsonl").read_bytes()
    for path, data in kept.items():  # as if it had been killed before it removed them
        path.write_bytes(data)
    merge_shards(tmp_path)
    assert (tmp_path / "index.jsonl").read_bytes() == whole and shard_indexes(tmp_path) == {}


def test_shards_that_are_not_merged_are_neither_read_nor_written_over(tmp_path):
    fill(tmp_path, Shard(0, 2), 6)
    for wrong in (
        lambda: EpisodeStore.open(tmp_path),
        lambda: EpisodeStore.create(tmp_path, META),
        lambda: EpisodeStore.create(tmp_path, META, Shard(0, 3)),
    ):
        with pytest.raises(UsageError, match=r"merged: worldvq data merge"):
            wrong()
    fill(tmp_path, Shard(1, 2), 6)
    merge_shards(tmp_path)


def test_a_shard_writes_its_own_episodes_only(tmp_path):
    with (
        EpisodeStore.create(tmp_path, META, Shard(1, 2)) as store,
        pytest.raises(UsageError, match="not one of shard 1/2"),
    ):
        store.commit(2, episode(2))
    assert not list((tmp_path / "episodes").iterdir())


def test_who_writes_beside_whom(tmp_path):
    """Shards beside each other; nobody beside a writer of the whole, and no merge beside any."""
    with EpisodeStore.create(tmp_path, META, Shard(0, 2)), EpisodeStore.create(tmp_path, META, Shard(1, 2)):
        for refused in (
            lambda: EpisodeStore.create(tmp_path, META, Shard(1, 2)),
            lambda: EpisodeStore.create(tmp_path, META),
            lambda: merge_shards(tmp_path),
        ):
            with pytest.raises(RunError, match="is writing to it"):
                refused()
    with EpisodeStore.create(tmp_path, META), pytest.raises(RunError, match="is writing to it"):
        EpisodeStore.create(tmp_path, META, Shard(0, 2))


def test_a_shard_removes_its_own_remains_and_leaves_those_of_others(tmp_path):
    fill(tmp_path, Shard(0, 2), 2)
    for number in (2, 3):
        (tmp_path / "episodes" / f".{number:06d}.safetensors.9.tmp").touch()
    with EpisodeStore.create(tmp_path, META, Shard(0, 2)):
        left = [path.name for path in (tmp_path / "episodes").glob(".*.tmp")]
    assert left == [".000003.safetensors.9.tmp"]


def test_shards_that_contradict_each_other_or_miss_files_are_not_merged(tmp_path):
    fill(tmp_path / "a", Shard(0, 2), 6)
    fill(tmp_path / "b", Shard(), 6)
    (tmp_path / "a" / "index.jsonl").write_bytes((tmp_path / "b" / "index.jsonl").read_bytes())
    before = (tmp_path / "a" / "index.jsonl").read_bytes()
    with pytest.raises(CorruptFileError, match=r"episodes/000001.safetensors: missing"):
        merge_shards(tmp_path / "a")
    for number in (1, 3, 5):
        shutil.copy(tmp_path / "b" / "episodes" / f"{number:06d}.safetensors", tmp_path / "a" / "episodes")
    line = (tmp_path / "a" / "index.0-of-2.jsonl").read_bytes().splitlines(keepends=True)
    with EpisodeStore.create(tmp_path / "c", META, Shard(0, 2)) as store:
        store.commit(0, Episode(**{**episode(0).__dict__, "seed": 5}))
    other = (tmp_path / "c" / "index.0-of-2.jsonl").read_bytes()
    (tmp_path / "a" / "index.0-of-2.jsonl").write_bytes(other + b"".join(line[1:]))
    with pytest.raises(CorruptFileError, match="episode 0 is another one"):
        merge_shards(tmp_path / "a")
    assert (tmp_path / "a" / "index.jsonl").read_bytes() == before and len(shard_indexes(tmp_path / "a")) == 1
