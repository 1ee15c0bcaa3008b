"""Which action undoes which is found by trying, before anything is written, and is part of what a dataset is."""

from __future__ import annotations

import json

import pytest
from support.fault_tools import hashes
from support.moves_env import SIZE
from support.toy_env import ID as TOY
from support.toy_env import SIZE as TOY_SIZE
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.errors import UsageError
from worldvq.recording.config import RecordConfig
from worldvq.recording.playing import episode_seed, undo_steps
from worldvq.recording.record import settings_of
from worldvq.recording.undo_probe import MOST_EPISODES, MOST_STEPS, find_undo
from worldvq.recording.workers import Pool
from worldvq.stages.record import record

FOUND = {"left": "right", "right": "left", "up": "down", "down": "up"}


def moves(**kwargs) -> EnvConfig:
    return EnvConfig(id="support.moves_env:Moves-v0", size=SIZE, kwargs=kwargs)


def toy(**kwargs) -> EnvConfig:
    return EnvConfig(id=TOY, size=TOY_SIZE, kwargs={"length": 9, **kwargs})


def find(env: EnvConfig, seed: int = 0, most_steps: int = MOST_STEPS):
    """Look for it as a worker does; returns what was found, and how many steps and resets that took."""
    stream = make_stream(env)
    calls = {True: 0, False: 0}

    def moving(steps: bool) -> None:
        calls[steps] += 1

    table = find_undo(stream, seed, lambda number: episode_seed(seed, number, 4), moving, most_steps)
    stream.close()
    assert calls[True] <= most_steps + 8 and calls[False] <= MOST_EPISODES
    return table, calls


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (moves(), FOUND),
        (moves(action="buttons"), FOUND),
        (moves(action="box"), "negated"),
        (moves(action="forward"), {}),
        (toy(length=40), {}),
        (toy(length=40, action="box"), {}),
        (toy(length=2), {}),  # no try ends before the episode does
    ],
)
def test_it_finds_what_there_is_and_nothing_else(env, expected, seed):
    found, calls = find(env, seed)
    assert found == expected
    assert find(env, seed) == (found, calls)  # a pure function


def test_in_the_maze():
    back = {"forward": "back", "strafe_left": "strafe_right", "look_left": "look_right"}
    found, _ = find(EnvConfig(id="worldvq/Maze-v0"), seed=0)
    assert found == back | {value: key for key, value in back.items()}


def test_of_many_actions_neighbours_are_tried():
    found, _ = find(moves(crowd=15))
    assert found == {f"{a}{n}": f"{b}{n}" for n in range(15) for a, b in ("+-", "-+")}


# ------------------------------------------------------------------------------------------------ in a dataset


def run(out, env, **changes) -> EpisodeStore:
    settings = {"frames": None, "episodes": 4, "workers": 1, "seed": 3, "heldout_every": 2}
    record(env, RecordConfig(**{**settings, **changes}), out, progress=False).close()
    return EpisodeStore.open(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole") / "d", moves()).path


def test_it_is_kept_and_said(tmp_path, capfd):
    record(moves(), RecordConfig(frames=None, episodes=2, heldout_every=2), tmp_path / "d").close()
    meta = EpisodeStore.open(tmp_path / "d").meta
    assert (meta.policy, meta.undo) == ("retrace 8", FOUND)
    assert "undoes: left <-> right, up <-> down\n" in capfd.readouterr().out
    env, config = settings_of(tmp_path / "d")
    assert (env, config.policy, config.hold, config.undo) == (moves(), "retrace", 8, FOUND)


def test_any_number_of_workers_shards_and_interruptions_give_the_same(whole, tmp_path, monkeypatch):
    run(tmp_path / "three", moves(), workers=3)
    for index in range(2):
        config = RecordConfig(frames=None, episodes=4, workers=1, seed=3, heldout_every=2)
        record(moves(), config, tmp_path / "shards", progress=False, shard=Shard(index, 2)).close()
    EpisodeStore.merge(tmp_path / "shards")
    run(tmp_path / "part", moves(), episodes=1)
    monkeypatch.setattr(Pool, "find_undo", lambda self: pytest.fail("it is known"))
    run(tmp_path / "part", moves(), workers=2)
    assert hashes(tmp_path / "three") == hashes(whole) == hashes(tmp_path / "part") == hashes(tmp_path / "shards")


def test_finding_changes_no_episode(whole, tmp_path):
    run(tmp_path / "given", moves(), undo={"left": "right", "up": "down"})
    assert hashes(tmp_path / "given") == hashes(whole)


def test_it_can_be_given_and_another_one_is_not_continued(tmp_path):
    store = run(tmp_path / "d", moves(), undo={"left": "right"}, episodes=1)
    assert store.meta.undo == {"left": "right", "right": "left"}
    run(tmp_path / "d", moves(), episodes=2)
    with pytest.raises(UsageError, match=r"undo.left: the dataset has 'right', you ask for 'down'"):
        run(tmp_path / "d", moves(), undo={"left": "down"})


def test_names_that_there_are_not_leave_nothing_behind(tmp_path):
    with pytest.raises(
        UsageError, match=r"record\.undo: there is no action 'lft'.*: stay, left, right, up, down, jump$"
    ):
        run(tmp_path / "d", moves(), undo={"lft": "right"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["raise", "exit", "hang"])
def test_an_environment_that_fails_at_it_is_recorded_all_the_same(tmp_path, how, capfd):
    env = toy(fail=how, fail_seed=episode_seed(3, 0, 4))
    store = run(tmp_path / "d", env, timeout=2.0 if how == "hang" else 60.0)
    assert store.meta.undo == {} and len(store) == 4 and not any(entry.interrupted for entry in store.entries)
    assert "trying which action undoes which" in capfd.readouterr().err


def test_a_dataset_from_before_goes_on_as_it_was(tmp_path):
    """Of ``held``, which was the default, and without a word on what undoes what."""
    run(tmp_path / "d", moves(), policy="held", episodes=2)
    file = tmp_path / "d" / EpisodeStore.meta_file
    meta = json.loads(file.read_text())
    before = {key: value for key, value in meta.items() if key not in ("undo", "checksum")}
    assert meta["undo"] is None and len(before) == len(meta) - 2
    file.write_text(json.dumps(before))
    store = run(tmp_path / "d", moves())
    assert len(store) == 4 and store.meta.policy == "held 8 while frames change" and store.meta.undo is None
    with pytest.raises(
        UsageError, match="policy: the dataset has 'held 8 while frames change', you ask for 'retrace 8'"
    ):
        run(tmp_path / "d", moves(), policy="retrace")


def test_a_slow_environment_is_not_tried_for_longer_than_a_fifth_of_the_recording():
    assert undo_steps(RecordConfig(frames=100)) == 600
    assert undo_steps(RecordConfig(frames=20_000)) == 4000
    assert undo_steps(RecordConfig(frames=10**6)) == MOST_STEPS
    assert find(moves(), most_steps=60)[1][True] <= 68
