"""Environments that fail, hang and die, each in every place: the recorder goes on, and mistakes nothing for another."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.fault_tools import is_running, shared_memory, wait_until
from support.toy_env import ACTIONS, ID, SIZE, UNSTORABLE, check_alignment
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import RunError, UsageError
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import episode_seed, play
from worldvq.recording.workers import Pool
from worldvq.stages.record import record

TIMEOUT = 2.0
"""Where an environment hangs: one that does not is never so long between two steps, however busy the machine."""
SEED = 1
FAILED = episode_seed(SEED, 2)
ERRORS = {
    "raise": "OSError: the physics exploded",
    "unpicklable": "Unpicklable: its text cannot be shown",
    "hang": f"it did not STEP within {TIMEOUT:g} s (record.timeout)",
    "segfault": "its process was killed by SIGSEGV",
    "killed": "its process was killed by SIGKILL (out of memory?)",
    "exit": "its process ended with exit code 7",
}


def toy(env_id: str = ID, **kwargs) -> EnvConfig:
    return EnvConfig(id=env_id, size=SIZE, kwargs={"length": 9, **kwargs})


@pytest.fixture
def diary(tmp_path, monkeypatch):
    """Where environments note what they do; nothing that was started or made is left when the test ends."""
    folder, temporary = tmp_path / "diary", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    multiprocessing.util.get_temp_dir()  # of the fork server, which stays
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield folder
    started = [int(path.name.rpartition("-")[2]) for what in ("built", "engine") for path in folder.glob(f"{what}-*")]
    assert started
    assert wait_until(lambda: not any(map(is_running, started))), "a process is left"
    assert not list(temporary.iterdir())
    assert not [pid for pid in started if f"toy-engine-{pid}" in shared_memory()]
    assert not multiprocessing.active_children()


def run(out: Path, env: EnvConfig, **changes) -> EpisodeStore:
    timeout = TIMEOUT if env.kwargs.get("fail") == "hang" else 120.0
    settings = {"frames": None, "episodes": 5, "workers": 2, "seed": SEED, "timeout": timeout, "policy": "random"}
    record(env, RecordConfig(**{**settings, **changes}), out, progress=False).close()
    return EpisodeStore.open(out)


def built(diary: Path) -> list[Path]:
    """What each environment left that was built."""
    return list(diary.glob("built-*"))


def check_whole(store: EpisodeStore, episodes: int, interrupted: dict[int, int], length: int = 9) -> None:
    """All episodes are there and aligned; those interrupted have so many steps and are marked, the others are whole."""
    assert store.numbers() == list(range(episodes)) and store.verify() == []
    for number in store.numbers():
        episode = store.read(number)
        if number in interrupted:
            assert episode.interrupted and not episode.terminated and not episode.truncated
            assert len(episode) == interrupted[number] and len(episode.frames) == interrupted[number] + 1
            assert episode.meta["error"]
        else:
            assert episode.terminated and len(episode) == length
        check_alignment(episode, "discrete", 1, length)
    left = {path.name for path in (store.path / "episodes").iterdir()}
    assert left == {Path(entry.file).name for entry in store.entries}


@pytest.mark.parametrize("how", ERRORS)
def test_a_step_that_fails_costs_the_rest_of_one_episode(tmp_path, diary, capfd, monkeypatch, how):
    started, start = [], Pool.start
    monkeypatch.setattr(Pool, "start", lambda pool: (started.append(pool), start(pool)))
    env = toy(fail=how, fail_seed=FAILED, fail_step=4, diary=str(diary), engine=True)
    store = run(tmp_path / "d", env)
    check_whole(store, 5, {2: 3})
    error = ERRORS[how].replace("STEP", "step")
    assert store.read(2).meta["error"] == error
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("worldvq: ")]
    assert lines == [
        f"worldvq: '{ID}', episode 2, seed {FAILED}: {error}; interrupted after 3 steps, its worker is replaced"
    ]
    assert len(started) == 3  # two workers, and another one for that which failed, whether or not it gets to play


@pytest.mark.parametrize("how", ERRORS)
def test_a_reset_that_fails_is_tried_again_and_then_with_another_seed(tmp_path, diary, capfd, how):
    env = toy(fail=how, fail_at="reset", fail_seed=FAILED, diary=str(diary), engine=True)
    store = run(tmp_path / "d", env)
    check_whole(store, 5, {})
    assert store.read(2).seed == episode_seed(SEED, 2, 2) and store.read(3).seed == episode_seed(SEED, 3)
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("worldvq: ")]
    assert len(errors) == 2 and all(ERRORS[how].replace("STEP", "reset") in line for line in errors)
    assert all(f"episode 2, seed {FAILED}: " in line and "begun again" in line for line in errors)


@pytest.mark.parametrize("how", ERRORS)
def test_a_worker_whose_environment_cannot_be_built_is_replaced(tmp_path, diary, how):
    store = run(tmp_path / "d", toy(fail=how, fail_at="constructor", pause=0.05, diary=str(diary), engine=True))
    check_whole(store, 5, {})
    assert len(built(diary)) == 3


@pytest.mark.parametrize("how", ["hang", "segfault", "unpicklable"])
def test_an_environment_that_cannot_begin_is_refused_before_anything_is_written(tmp_path, diary, how):
    error = re.escape(ERRORS[how].replace("STEP", "reset"))
    with pytest.raises(UsageError, match=f"'{ID}' .*cannot begin an episode: .*{error}"):
        run(tmp_path / "d", toy(fail=how, fail_at="reset", diary=str(diary), engine=True))
    assert len(built(diary)) == 1 and not (tmp_path / "d").exists()


def test_an_environment_that_always_fails_ends_the_recording(tmp_path, diary):
    with pytest.raises(
        RunError, match=r"5 episodes in a row failed.*episode 4, seed \d+: OSError: the physics exploded"
    ):
        run(tmp_path / "d", toy(fail="raise", diary=str(diary)), episodes=20)
    check_whole(EpisodeStore.open(tmp_path / "d"), 5, dict.fromkeys(range(5), 2))


def test_an_environment_that_always_fails_at_once_ends_the_recording(tmp_path, diary):
    with pytest.raises(UsageError, match=r"cannot begin an episode: its process was killed by SIGSEGV"):
        run(tmp_path / "d", toy(fail="segfault", fail_step=1, diary=str(diary)), episodes=20)
    assert not (tmp_path / "d").exists()


def test_a_policy_that_fails_is_no_fault_of_the_environment(tmp_path, diary):
    with pytest.raises(
        UsageError, match=r"episode 0, seed \d+: the policy support.toy_env:failing failed: StopIteration"
    ):
        run(tmp_path / "d", toy(diary=str(diary)), policy="support.toy_env:failing")
    assert EpisodeStore.open(tmp_path / "d").numbers() == []


def test_failures_are_the_same_with_any_number_of_workers(tmp_path, diary):
    env = toy(fail="raise", fail_modulo=3, diary=str(diary))
    stores = [run(tmp_path / str(workers), env, episodes=12, workers=workers) for workers in (1, 3)]
    assert stores[0].entries == stores[1].entries
    failed = [number for number in range(12) if episode_seed(SEED, number) % 3 == 0]
    assert 1 < len(failed) < 12
    check_whole(stores[0], 12, dict.fromkeys(failed, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_slow_is_not_hung(tmp_path, diary, workers):
    """A deadline is for one step; an episode may take as long as it likes."""
    store = run(tmp_path / "d", toy(pause=0.25, diary=str(diary)), episodes=2, workers=workers, timeout=2.0)
    check_whole(store, 2, {})


# ------------------------------------------------------------------------------------------------ autoreset


@pytest.mark.parametrize("observation", ["image", "dict", "vector"])
@pytest.mark.parametrize("skip", [1, 4])
def test_an_environment_that_resets_itself_keeps_its_last_frame(observation, skip):
    """What it returns at the end belongs to the next episode; a rendered picture of the last step is not to be had."""
    env = EnvConfig(
        id=ID, size=SIZE, frame_skip=skip, kwargs={"length": 9, "autoreset": True, "observation": observation}
    )
    if observation == "vector":
        env.kwargs["render_mode"] = "rgb_array"
    stream = make_stream(env)
    for number in range(3):
        episode = play(stream, RecordConfig(policy="random"), number)
        length = 9 if observation != "vector" else 9 - (9 % skip or skip)
        if observation == "vector":
            assert episode.terminated and len(episode) == length // skip
            assert episode.rewards.sum() == sum(range(1, 10))
        else:
            check_alignment(episode, "discrete", skip, 9)
    stream.close()


def test_an_environment_in_the_autoreset_wrapper(tmp_path, diary):
    env = toy("support.toy_env:ToySelfResetting-v0", fail="exit", fail_seed=FAILED, diary=str(diary))
    check_whole(run(tmp_path / "d", env), 5, {2: 2})


@pytest.mark.parametrize("kind", [kind for kind in ACTIONS if kind not in UNSTORABLE])
def test_actions_of_every_kind_survive_a_death(tmp_path, diary, kind):
    env = toy(action=kind, fail="killed", fail_seed=FAILED, fail_step=7, diary=str(diary), length=20)
    store = run(tmp_path / "d", env, episodes=3)
    assert [entry.interrupted for entry in store.entries] == [False, False, True]
    for number in store.numbers():
        check_alignment(store.read(number), kind, 1, 20)
    assert len(store.read(2)) == 6 and store.read(2).actions.dtype == (
        np.float32 if kind in ("box", "box_grid", "mixed") else np.int64
    )


def test_a_compressed_recording_keeps_interrupted_episodes_too(tmp_path, diary):
    env = toy(fail="segfault", fail_seed=FAILED, fail_step=4, diary=str(diary))
    store = run(tmp_path / "d", env, compression="zstd")
    check_whole(store, 5, {2: 3})
