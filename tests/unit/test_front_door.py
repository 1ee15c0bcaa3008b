"""Recording what is not as it should be: it ends, it goes on, and it says what is wrong before it writes."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from support.picture_env import picture
from worldvq_envs.actions import Actions, names_of

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.recording.config import RecordConfig
from worldvq.stages.record import record

ID = "support.picture_env:Picture-v0"


def run(out, kwargs, **settings) -> EpisodeStore:
    given = {"policy": "random", "workers": 1, "frames": None, **settings}
    env = EnvConfig(id=ID, kwargs=kwargs, size=(32, 32), **given.pop("env", {}))
    with record(env, RecordConfig(**given), out, progress=False) as store:
        return store


@pytest.mark.parametrize("workers", [1, 3])
def test_frames_end_an_episode_that_never_ends(tmp_path, workers):
    store = run(tmp_path / "d", {"length": None}, frames=100, workers=workers)
    assert [(entry.num_frames, entry.truncated) for entry in store.entries] == [(100, True)]
    np.testing.assert_array_equal(store.read(0).frames, [picture(step) for step in range(100)])
    assert store.verify() == []


def test_the_same_frames_with_any_number_of_workers(tmp_path):
    stores = [run(tmp_path / str(n), {"length": 9}, frames=45, workers=n, policy="held") for n in (1, 2, 4)]
    assert [entry.num_frames for entry in stores[0].entries] == [10, 10, 10, 10, 5]
    assert len({tuple(entry.sha256 for entry in store.entries) for store in stores}) == 1
    packed = run(tmp_path / "packed", {"length": 9}, frames=45, compression="zstd", policy="held")
    np.testing.assert_array_equal(packed.read(4).frames, stores[0].read(4).frames)


def test_an_episode_of_a_recording_by_episodes_has_a_limit(tmp_path):
    store = run(tmp_path / "d", {"length": None}, episodes=2, env={"max_steps": 30})
    assert [(entry.num_frames, entry.truncated) for entry in store.entries] == [(31, True)] * 2


@pytest.mark.parametrize("wrong", ["nan", "reward_array", "reward_none", "no_info", "shape"])
def test_a_fault_ends_its_episode_and_the_recording_goes_on(tmp_path, wrong, capfd):
    store = run(tmp_path / "d", {"bad": {8: wrong}, "bad_every": 3}, episodes=9, seed=2)
    ends = {(entry.num_frames, entry.interrupted) for entry in store.entries}
    assert len(store) == 9 and ends == {(8, True), (13, False)} and store.verify() == []
    again = run(tmp_path / "d", {"bad": {8: wrong}, "bad_every": 3}, episodes=10, seed=2)
    assert len(again) == 10
    assert "interrupted after 7 steps" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("four", ["step gave 4 values, not five", "shimmy"]),
        ("reward_array", ["array of shape [1] as reward", "env.wrappers"]),
        ("reward_none", ["a NoneType as reward"]),
        ("no_info", ["a NoneType as info"]),
    ],
)
def test_what_is_no_step_is_refused_before_anything_is_written(tmp_path, step, words):
    with pytest.raises(UsageError) as caught:
        run(tmp_path / "d", {"step": step}, episodes=1)
    assert [word for word in (*words, ID) if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value) and not (tmp_path / "d").exists()
    assert len(run(tmp_path / "d", {}, episodes=1)) == 1  # mended


@pytest.mark.parametrize("step", ["numpy", "zero_dim"])
def test_steps_in_numpy_are_steps(tmp_path, step):
    assert run(tmp_path / "d", {"step": step}, episodes=1).read(0).rewards.tolist() == [1] * 12


# ------------------------------------------------------------------------------------------------ actions


def test_bounds_in_float64_are_kept():
    actions = Actions(spaces.Box(-0.1, 0.1, (2,), np.float64), (), "x")
    assert actions._space.contains(actions.to_env(np.float32([-0.1, 0.1])))
    assert actions.to_env(np.float32([0.05, 0])).dtype == np.float64


def test_whole_numbers_are_choices_and_an_int_is_an_int():
    actions = Actions(spaces.Box(-5, 5, (2,), np.int32), (), "x")
    assert (actions.space.kind, actions.space.nvec) == ("multi_discrete", (11, 11))
    assert actions.to_env([0, 10]).tolist() == [-5, 5]
    assert type(Actions(spaces.Discrete(3, start=1), (), "x").to_env(2)) is int


def test_choices_and_numbers_together_are_one_vector_that_is_stored_as_it_is_played():
    space = spaces.Dict(buttons=spaces.MultiBinary(2), turn=spaces.Box(-1, 1, (1,)))
    actions = Actions(space, ("fire", "jump", "turn"), "x")
    assert (actions.space.kind, actions.space.low, actions.space.high) == ("box", (0, 0, -1), (1, 1, 1))
    played = actions.to_env(np.float32([0.4, 0.6, 0.25]))
    assert space.contains(played) and played["buttons"].tolist() == [0, 1]
    assert actions.changes and actions.to_stored(played).tolist() == [0, 1, 0.25]
    assert actions.space.label([0, 1, 0.25]) == "fire +0.00 jump +1.00 turn +0.25"


def test_names_come_from_where_environments_keep_them():
    from enum import IntEnum
    from types import SimpleNamespace

    class Moves(IntEnum):
        right = 1
        left = 0

    def env(**members):
        return SimpleNamespace(unwrapped=SimpleNamespace(**members))

    assert names_of(env(action_names=("a", "b"))) == ("a", "b")
    assert names_of(env(get_action_meanings=lambda: ["NOOP", "FIRE"])) == ("NOOP", "FIRE")
    assert names_of(env(actions=Moves)) == ("left", "right")
    assert names_of(env(action_type=SimpleNamespace(actions={1: "FASTER", 0: "IDLE"}))) == ("IDLE", "FASTER")
    assert names_of(env(action_type=SimpleNamespace())) == names_of(env()) == ()


def test_names_of_ones_own_go_into_the_dataset(tmp_path):
    store = run(tmp_path / "d", {}, episodes=1, env={"action_names": ("stay", "go", "turn")})
    assert store.action_space.names == ("stay", "go", "turn")
    with pytest.raises(UsageError, match=r"env\.action_names has 2 names, .* discrete \(3,\)"):
        run(tmp_path / "e", {}, episodes=1, env={"action_names": ("stay", "go")})
