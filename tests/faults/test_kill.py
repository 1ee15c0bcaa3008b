"""``kill -9`` at random moments while recording: what was committed stays, what was not is played again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fault_tools import hashes, is_running, processes_with, shared_memory, wait_until
from support.toy_env import check_alignment
from support.zygote import LENGTH, Zygote, toy_recording

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.data.shards import merge_shards
from worldvq.errors import RunError
from worldvq.files.lock import Lock
from worldvq.recording import janitor
from worldvq.recording.record import episode_seed

EPISODES = 60
MARK = "WORLDVQ_KILLED_RECORDER"


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    """Forks recorders that share their mark and their folder for temporary files, of which nothing must be left."""
    root = tmp_path_factory.mktemp("zygote")
    (root / "tmp").mkdir()
    process = Zygote(root / "log", TMPDIR=str(root / "tmp"), **{MARK: str(root)})
    yield process
    process.close()
    assert wait_until(lambda: not processes_with(MARK, str(root))), processes_with(MARK, str(root))
    left = [path for path in (root / "tmp").rglob("*") if path.parent.name != "tmp" or "pymp-" not in path.name]
    assert not left  # but for an empty folder of multiprocessing's, from a process killed while it made that


def record(zygote: Zygote, out: Path, **arguments) -> None:
    assert zygote.wait(zygote.start("play", out=str(out), **arguments)) == 0, zygote.log.read_text()[-2000:]


def listed(out: Path) -> int:
    return (out / "index.jsonl").read_bytes().count(b"\n") if (out / "index.jsonl").exists() else 0


def kill_after(zygote: Zygote, episodes: int, seconds: float, out: Path, **arguments) -> bool:
    """Start a recorder, kill it so long after it has listed so many more episodes; False where it was faster."""
    enough = listed(out) + episodes
    pid = zygote.start("play", out=str(out), **arguments)
    assert wait_until(lambda: listed(out) >= enough or not is_running(pid), every=0.002)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return zygote.wait(pid) == -signal.SIGKILL


@contextlib.contextmanager
def recording(zygote: Zygote, out: Path, **arguments) -> Iterator[int]:
    """A recorder that does not come to its end, by its process id; killed when it is left."""
    pid = zygote.start("play", out=str(out), **{**toy_recording(10**6), **arguments})
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        assert zygote.wait(pid) == -signal.SIGKILL, zygote.log.read_text()[-2000:]


def committed(out: Path) -> list:
    """What is listed, after every file of it was hashed and read."""
    if not (out / "dataset.json").exists():
        return []
    store = EpisodeStore.open(out)
    assert store.verify() == []
    return store.entries


def test_a_recorder_that_is_killed_again_and_again_loses_nothing(zygote, tmp_path, slow):
    arguments = toy_recording(EPISODES)
    record(zygote, tmp_path / "whole", **arguments)
    moments, rng, kills = 500 if slow else 40, random.Random(0), 0
    out, before = tmp_path / "killed", []
    while kills < moments:
        if len(before) == EPISODES:  # it got through: begin anew
            assert hashes(out) == hashes(tmp_path / "whole")
            out, before = tmp_path / f"killed-{kills}", []
        kills += kill_after(zygote, rng.randint(0, 6), rng.uniform(0.0, 0.1), out, **arguments)
        entries = committed(out)
        assert entries[: len(before)] == before
        assert [entry.number for entry in entries] == list(range(len(entries)))
        before = entries
    record(zygote, out, **arguments)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_shards_that_are_killed_and_merged_are_the_dataset_of_one_recorder(zygote, tmp_path, slow):
    arguments, rng = toy_recording(30), random.Random(1)
    record(zygote, tmp_path / "whole", **arguments)
    out, shards = tmp_path / "shards", ("0/3", "1/3", "2/3")
    for _ in range(20 if slow else 3):
        pids = [zygote.start("play", out=str(out), shard=shard, **arguments) for shard in shards]
        for pid in rng.sample(pids, len(pids)):
            time.sleep(rng.uniform(0.0, 0.3))
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            zygote.wait(pid)
    lock = Shard.parse(shards[0]).lock_name
    with recording(zygote, out, shard=shards[0]) as pid:
        assert wait_until(lambda: (out / lock).exists() and f"process {pid} " in (out / lock).read_text())
        with pytest.raises(RunError, match="another process is writing to it"):  # what it lists next would be lost
            merge_shards(out)
        with pytest.raises(RunError, match=rf"process {pid} on .* is writing to it"):
            Lock(out, lock)
    for pid in [zygote.start("play", out=str(out), shard=shard, **arguments) for shard in shards]:
        assert zygote.wait(pid) == 0, zygote.log.read_text()[-2000:]
    merge_shards(out)
    assert hashes(out) == hashes(tmp_path / "whole")


class Recording(RuleBasedStateMachine):
    """Record, kill, go on and verify in any order: episodes are whole or marked, and never change."""

    zygote: Zygote
    root: Path
    count = 0

    @initialize(
        modulo=st.integers(2, 4), how=st.sampled_from(["raise", "exit", "segfault"]), step=st.integers(2, LENGTH)
    )
    def begin(self, modulo, how, step):
        Recording.count += 1
        self.out = self.root / str(self.count)
        self.fails = {"fail": how, "fail_modulo": modulo, "fail_step": step}
        self.before: list = []

    def arguments(self, episodes: int) -> dict:
        return toy_recording(episodes, **self.fails)

    @rule(more=st.integers(1, 4))
    def record(self, more):
        record(self.zygote, self.out, **self.arguments(len(self.before) + more))
        assert len(committed(self.out)) == len(self.before) + more

    @rule(more=st.integers(0, 6), seconds=st.floats(0.0, 0.1))
    def kill(self, more, seconds):
        kill_after(self.zygote, more, seconds, self.out, **self.arguments(len(self.before) + 8))

    @precondition(lambda self: self.before)
    @rule()
    def repeat(self):
        record(self.zygote, self.out, **self.arguments(len(self.before)))
        assert committed(self.out) == self.before

    @invariant()
    def whole_or_marked(self):
        if not hasattr(self, "out"):
            return
        entries = committed(self.out)
        assert entries[: len(self.before)] == self.before
        store = EpisodeStore.open(self.out) if entries else None
        for entry in entries[len(self.before) :]:
            assert store
            episode = store.read(entry.number)
            fails = episode_seed(3, entry.number) % self.fails["fail_modulo"] == 0
            assert entry.interrupted == fails and entry.terminated != fails and not entry.truncated
            assert len(episode) == (self.fails["fail_step"] - 1 if fails else LENGTH) == entry.num_frames - 1
            check_alignment(episode, "discrete", 1, LENGTH)
        self.before = entries


def test_any_order_of_recording_killing_and_going_on(zygote, tmp_path, slow):
    Recording.zygote, Recording.root = zygote, tmp_path
    Recording.TestCase.settings = settings(
        max_examples=60 if slow else 6,
        stateful_step_count=8 if slow else 5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    test = Recording.TestCase()
    test.runTest()


def test_a_killed_engine_leaves_no_shared_memory(zygote, tmp_path):
    """ViZDoom's engine is a process of its own, which outlives whoever started it, with what they shared."""
    pytest.importorskip("vizdoom")
    env, config = {"id": "VizdoomBasic-v1", "size": (64, 64)}, {"episodes": 10**6, "workers": 1}
    with recording(zygote, tmp_path / "d", env=env, config=config):
        assert wait_until(lambda: bool(committed(tmp_path / "d"))), zygote.log.read_text()[-2000:]
        players = [process.pid for process in processes_with(MARK, str(zygote.log.parent))]
        shared = {Path(name).name for name in janitor.shared_memory(players)}
        assert shared and shared <= shared_memory()
    assert wait_until(lambda: not shared & shared_memory())
    assert committed(tmp_path / "d")


def test_a_lock_is_told_before_any_worker_starts_and_a_stale_one_is_taken_over(zygote, tmp_path, monkeypatch):
    from worldvq.recording import record as module
    from worldvq.recording.config import RecordConfig
    from worldvq.stages.record import record as begin

    out, env = tmp_path / "d", EnvConfig(**toy_recording(1)["env"])
    with recording(zygote, out) as pid, monkeypatch.context() as patch:
        patch.setattr(module, "Pool", None)
        assert wait_until(lambda: bool(committed(out)))
        with pytest.raises(RunError, match=rf"process {pid} on .* is writing to it"):
            begin(env, RecordConfig(frames=10), out, progress=False)
    assert f"process {pid} " in (out / ".lock").read_text()
    record(zygote, out, **toy_recording(len(committed(out)) + 1))
