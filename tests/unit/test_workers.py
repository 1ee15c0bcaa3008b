"""The recorder's pool and its spool, taken apart: cut-off records, stale replies, who is killed and who is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing import Pipe
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fault_tools import is_running, wait_until
from support.toy_env import ID, SIZE

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.data.episode_files import IndexEntry
from worldvq.recording import janitor
from worldvq.recording.config import RecordConfig
from worldvq.recording.spool import Ending, Phase, Spool
from worldvq.recording.workers import Failure, Job, Pool
from worldvq.types import ActionSpace

SPACES = [
    ActionSpace("discrete", (5,)),
    ActionSpace("multi_discrete", (3, 2)),
    ActionSpace("box", low=(-1.0, 0.0), high=(1.0, 2.0)),
]


def spooled(path, space, frames, actions, rewards, ending=Ending.NONE, sounds=None):
    spool = Spool(path)
    spool.set_layout(space, frames.shape[1:3], None if sounds is None else SoundFormat(rate=1, samples=sounds.shape[1]))
    spool.begin(7, 3, 11, Phase.RESETTING)
    spool.add(frames[0])
    spool.set_phase(Phase.STEPPING)
    for step, (frame, action, reward) in enumerate(zip(frames[1:], actions, rewards, strict=True)):
        spool.add(frame, action, reward, None if sounds is None else sounds[step])
    if ending:
        spool.set_phase(Phase.WRITING, ending)
    return spool


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SPACES), st.integers(0, 6), st.integers(0, 10_000), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_is_cut_off_anywhere_is_the_episode_up_to_there(tmp_path_factory, space, steps, cut, heard, seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (steps + 1, 3, 2, 3), dtype=np.uint8)
    actions = rng.integers(0, 2, (steps, *space.shape)).astype(space.dtype)
    rewards = rng.normal(size=steps).astype(np.float32)
    sounds = rng.integers(-(2**15), 2**15, (steps, 5), dtype=np.int16) if heard else None
    path = tmp_path_factory.mktemp("spool") / "spool"
    spool = spooled(path, space, frames, actions, rewards, sounds=sounds)
    header, size = spool.header(), path.stat().st_size
    record = (size - 32) // (steps + 1)
    assert (header.sequence, header.number, header.seed, header.phase) == (7, 3, 11, Phase.STEPPING)
    cut = min(size, 32 + cut % (size - 31))
    os.truncate(path, cut)
    whole, episode = (cut - 32) // record, spool.episode({"error": "x"})
    spool.close()
    if whole < 2:
        assert episode is None
        return
    assert episode is not None and episode.interrupted and episode.seed == 11 and episode.meta == {"error": "x"}
    np.testing.assert_array_equal(episode.frames, frames[:whole])
    np.testing.assert_array_equal(episode.actions, actions[: whole - 1])
    np.testing.assert_array_equal(episode.rewards, rewards[: whole - 1])
    assert episode.actions.dtype == space.dtype
    assert (episode.sounds is None) == (sounds is None)
    if sounds is not None:
        np.testing.assert_array_equal(episode.sounds, sounds[: whole - 1])


def test_an_episode_that_was_over_is_not_taken_for_interrupted(tmp_path):
    """Its worker died while writing the file: nothing of it is missing."""
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    for ending in (Ending.TERMINATED, Ending.TRUNCATED):
        spool = spooled(
            tmp_path / ending.name, SPACES[0], frames, np.zeros(2, np.int64), np.ones(2, np.float32), ending
        )
        spool.add_reward(10.0)
        episode = spool.episode()
        assert episode is not None and not episode.interrupted
        assert (episode.terminated, episode.truncated) == (ending == 1, ending == 2)
        assert episode.rewards.tolist() == [1, 11]
        spool.begin(8, 4, 12, Phase.RESETTING)
        assert spool.episode() is None and spool.header().ending == Ending.NONE  # nothing of the last one is left
        spool.close()


@pytest.fixture
def pool(tmp_path):
    config = RecordConfig(frames=None, episodes=4, policy="random", timeout=120.0)
    pool = Pool("worldvq_envs.adapters:make_stream", EnvConfig(id=ID, size=SIZE), config, tmp_path)
    pool.probe()
    yield pool
    pool.close()


def wait_for(pool: Pool) -> IndexEntry | Failure | Job:
    results: list = []
    assert wait_until(lambda: bool(results.extend(pool.results()) or results))
    return results[0]


def test_a_reply_to_another_request_is_not_used(pool, tmp_path):
    pool.give(Job(2))
    real = wait_for(pool)
    assert isinstance(real, IndexEntry) and real.number == 2
    (worker,) = pool._workers.values()
    here, there = Pipe()
    stale = {"sequence": 3, "entry": {**real.model_dump(), "number": 1, "file": "episodes/000001.safetensors"}}
    there.send_bytes(json.dumps(stale).encode())
    pipe, worker.pipe = worker.pipe, here
    pool._workers = {here: worker}
    assert list(pool.results()) == []
    pool._workers, worker.pipe = {pipe: worker}, pipe
    for end in (here, there):
        end.close()


def test_a_worker_that_dies_idle_gives_its_jobs_back(pool):
    (worker,) = pool._workers.values()
    assert wait_until(lambda: worker.spool.header().phase == Phase.IDLE)
    os.kill(worker.process.pid, 9)
    worker.process.join(120)
    pool.give(Job(1))
    pool.give(Job(2))
    assert [wait_for(pool), *pool.results()][0] in (Job(1), Job(2))
    assert len(pool._workers) == 1 and worker not in pool._workers.values()


def test_the_janitor_kills_groups_and_spares_others(tmp_path):
    """A process that is no leader of a session shares its group with strangers, such as this test."""
    leader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        assert wait_until(lambda: janitor.group_members(leader.pid) == [leader.pid])
        assert janitor.group_members(child.pid) == []
        janitor.kill_group(child.pid)
        janitor.kill_group(leader.pid)
        assert wait_until(lambda: not is_running(leader.pid))
        assert is_running(child.pid)
    finally:
        for process in (leader, child):
            process.kill()
            process.wait()


@pytest.mark.parametrize("last", ["", "exit\n"])
def test_the_janitor_cleans_up_after_the_killed_alone(tmp_path, last):
    folder = tmp_path / "scratch"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "group").write_text("not a number")
    command = [sys.executable, "-I", "-S", janitor.__file__]
    done = subprocess.run(command, input=f"folder {folder}\n{last}", text=True, timeout=120, check=False)
    assert done.returncode == 0 and folder.exists() == bool(last)


def test_shared_memory_of_others_is_not_removed(tmp_path, monkeypatch):
    """What a second process has open stays, whatever the killed one had to do with it."""
    removed = []
    monkeypatch.setattr(janitor, "group_members", lambda group: [])
    monkeypatch.setattr(janitor, "shared_memory", lambda processes: {"/dev/shm/theirs"} if processes else set())
    monkeypatch.setattr(janitor, "Path", lambda name: SimpleNamespace(unlink=lambda: removed.append(name)))
    janitor.kill_group(2**22, {"/dev/shm/theirs", "/dev/shm/ours"})
    assert removed == ["/dev/shm/ours"]
