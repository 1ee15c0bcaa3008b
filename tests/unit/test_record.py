"""Recording: what was done stands beside what was seen, the seed decides everything, and failures lose nothing."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from support.toy_env import ACTIONS, ID, SIZE, UNSTORABLE, check_alignment
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import RunError, UsageError
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import episode_seed, play, settings_of
from worldvq.stages.record import record
from worldvq.types import ActionSpace


def toy(frame_skip: int = 1, crop=None, **kwargs) -> EnvConfig:
    return EnvConfig(id=ID, size=SIZE, frame_skip=frame_skip, crop=crop, kwargs=kwargs)


def run(out: Path, env: EnvConfig, **changes) -> EpisodeStore:
    """Record, and open what lies there for reading."""
    record(
        env, RecordConfig(**{"frames": None, "workers": 1, "policy": "held", **changes}), out, progress=False
    ).close()
    assert not multiprocessing.active_children()
    return EpisodeStore.open(out)


def files(out: Path) -> dict[str, str]:
    """Hash of everything in the folder of episodes."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (out / "episodes").iterdir()}


# ------------------------------------------------------------------------------------------------ alignment


@pytest.mark.parametrize(
    ("kind", "skip", "policy"),
    [
        ("discrete_offset", 1, "random"),
        ("multi_discrete", 1, "random"),
        ("multi_binary", 3, "held"),
        ("box", 4, "held"),
    ],
)
def test_every_frame_shows_the_action_before_it(tmp_path, kind, skip, policy):
    env = toy(skip, action=kind, length=31)
    store = run(tmp_path / "d", env, episodes=5, workers=2, policy=policy, hold=3)
    assert store.numbers() == [0, 1, 2, 3, 4] and store.verify() == []
    for number in store.numbers():
        episode = store.read(number)
        assert episode.seed == episode_seed(0, number)
        check_alignment(episode, kind, skip, 31)
    assert len({store.read(number).frames.tobytes() for number in store.numbers()}) == 5


@pytest.mark.parametrize("kind", [kind for kind in ACTIONS if kind not in UNSTORABLE])
@pytest.mark.parametrize("skip", [1, 3])
def test_one_episode_of_every_action_kind(kind, skip):
    stream = make_stream(toy(skip, action=kind, length=20))
    check_alignment(play(stream, RecordConfig(policy="random"), 4), kind, skip, 20)


class LastUnseen:
    """A stream which, like ViZDoom, ends without showing a last frame."""

    action_space = ActionSpace("discrete", (9,))
    last_observation = None
    sound_format = sound = None

    def __init__(self, length: int):
        self.length = length

    def as_played(self, action):
        return action

    def reset(self, seed):
        self.count, self.has_frame = 0, True
        return np.zeros((2, 2, 3), np.uint8)

    def step(self, action):
        self.count += 1
        self.has_frame = self.count < self.length
        frame = np.full((2, 2, 3), min(self.count, self.length - 1), np.uint8)
        return frame, float(10**self.count), not self.has_frame, False


def test_an_unseen_last_step_is_merged_into_the_one_before():
    episode = play(LastUnseen(4), RecordConfig(policy="random"), 0)
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert len(episode.actions) == 3
    assert episode.rewards.tolist() == [10, 100, 1000 + 10_000]
    assert episode.terminated and not episode.truncated


def test_an_episode_of_one_unseen_step_is_kept():
    episode = play(LastUnseen(1), RecordConfig(policy="random"), 0)
    assert episode.frames.shape == (2, 2, 2, 3) and episode.rewards.tolist() == [10] and episode.terminated


# ------------------------------------------------------------------------------------------------ determinism


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> EpisodeStore:
    """Seven episodes of 11 to 31 frames by one worker, every third held out."""
    out = tmp_path_factory.mktemp("reference") / "d"
    return run(out, toy(length=10, jitter=20), episodes=7, seed=5, heldout_every=3)


def test_same_seed_same_dataset_with_two_workers(reference, tmp_path):
    run(tmp_path / "d", reference.meta.env, episodes=7, workers=2, seed=5, heldout_every=3)
    assert files(tmp_path / "d") == files(reference.path) and len(files(reference.path)) == 7
    assert len({entry.num_frames for entry in reference.entries}) > 3  # workers were not in step


def test_continued_is_as_if_never_stopped(reference, tmp_path):
    part = run(tmp_path / "d", reference.meta.env, episodes=3, seed=5, heldout_every=3)
    assert part.numbers() == [0, 1, 2]
    run(tmp_path / "d", reference.meta.env, episodes=7, workers=3, seed=5, heldout_every=3)
    assert files(tmp_path / "d") == files(reference.path)
    assert EpisodeStore.open(tmp_path / "d").entries == reference.entries


def test_another_seed_gives_other_episodes(reference):
    stream = make_stream(reference.meta.env)
    same, other = (play(stream, RecordConfig(seed=seed, policy="held"), 0) for seed in (5, 6))
    np.testing.assert_array_equal(same.frames, reference.frames(0))
    assert other.seed != same.seed and other.frames[0].tobytes() != same.frames[0].tobytes()
    assert other.actions[:8].tolist() != same.actions[:8].tolist()


def test_held_out_episodes_are_fixed_by_their_number(reference):
    assert reference.numbers("heldout") == [2, 5]
    assert reference.numbers("train") == [0, 1, 3, 4, 6]


@pytest.mark.parametrize(
    ("env", "changes", "words"),
    [
        ({"length": 11, "jitter": 20}, {}, "env.kwargs.length: the dataset has 10, you ask for 11"),
        ({"length": 10, "jitter": 20}, {"policy": "random"}, "'held 8 while frames change', you ask for 'random'"),
        (
            {"length": 10, "jitter": 20, "action": "box"},
            {},
            "action_space.kind: the dataset has 'discrete', you ask for 'box'",
        ),
    ],
)
def test_another_dataset_is_not_continued(reference, env, changes, words):
    before = files(reference.path)
    with pytest.raises(UsageError, match="was made otherwise") as info:
        run(reference.path, toy(**env), episodes=9, seed=5, heldout_every=3, **changes)
    assert words in str(info.value) and "\n" not in str(info.value)
    assert files(reference.path) == before


def test_the_last_episode_is_cut_where_the_frames_are_reached(tmp_path):
    store = run(tmp_path / "d", toy(length=9), frames=33, policy="support.toy_env:always_two")
    assert [(entry.num_frames, entry.truncated) for entry in store.entries] == [(10, False)] * 3 + [(3, True)]
    assert set(files(tmp_path / "d")) == {Path(entry.file).name for entry in store.entries}
    assert all((store.read(number).actions == 2).all() for number in store.numbers())
    again = run(tmp_path / "d", toy(length=9), frames=33, policy="support.toy_env:always_two")
    assert len(again) == 4


def test_workers_close_what_they_opened(tmp_path, monkeypatch):
    """But for one whose episode is cut while it plays: that one is killed, so that nothing is written twice."""
    monkeypatch.setattr("worldvq.recording.workers.CLOSE_SECONDS", 120.0)
    (tmp_path / "diary").mkdir()
    run(tmp_path / "d", toy(length=9, diary=str(tmp_path / "diary")), frames=30, policy="support.toy_env:always_two")
    begun, closed = ({f.name.split("-")[1] for f in (tmp_path / "diary").glob(f"{w}-*")} for w in ("begun", "closed"))
    assert begun == closed and len(begun) == 1  # the worker that looked first went on to play


def test_a_dataset_of_the_older_held_is_not_continued_by_another(reference, tmp_path):
    meta = reference.meta.model_copy(update={"policy": "held 8"})
    EpisodeStore.create(tmp_path / "d", meta).close()
    env, config = settings_of(tmp_path / "d")
    newer = settings_of(reference.path)[1]
    assert (config.policy, config.hold) == (newer.policy, newer.hold) == ("held", 8)
    with pytest.raises(UsageError, match="the dataset has 'held 8', you ask for 'held 8 while frames change'"):
        run(tmp_path / "d", env, **config.model_dump(include={"policy", "hold", "seed", "heldout_every"}), episodes=1)


# ------------------------------------------------------------------------------------------------ failures


def check_what_is_left(out: Path, numbers: list[int]) -> EpisodeStore:
    assert not multiprocessing.active_children()
    store = EpisodeStore.open(out)
    assert store.numbers() == numbers and store.verify() == []
    assert set(files(out)) == {Path(entry.file).name for entry in store.entries}
    assert {file.name for file in out.iterdir()} <= {"episodes", "dataset.json", "index.jsonl", ".lock"}
    return store


def test_a_disk_that_fails_stops_everything(tmp_path, monkeypatch):
    """Of the disk, not of an environment: there is nothing to replace."""
    monkeypatch.setattr(
        "worldvq.recording.record.write_episode", lambda *_: (_ for _ in ()).throw(RunError("the disk is full"))
    )
    with pytest.raises(RunError, match="the disk is full"):
        run(tmp_path / "d", toy(fail="raise", fail_seed=episode_seed(1, 1)), episodes=4, seed=1)
    check_what_is_left(tmp_path / "d", [0])


def test_a_policy_that_returns_no_action_later_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"episode 0, seed \d+: the policy returned 7, .* discrete \(5,\)$"):
        run(tmp_path / "d", toy(), episodes=2, policy="support.toy_env:seven_later")
    check_what_is_left(tmp_path / "d", [])


@pytest.mark.parametrize(
    ("env", "changes", "words"),
    [
        (EnvConfig(id="CarRacng-v3"), {}, "'CarRacng-v3' (did you mean 'CarRacing-v3'?)"),
        (toy(action="text"), {}, "Text(1, 3"),
        (toy(observation="blind"), {}, "rgb_array"),
        (toy(crop=(16, 0, 0, 0)), {}, "env.crop (16, 0, 0, 0)"),
        (toy(fail="raise", fail_at="reset"), {}, "cannot begin an episode: OSError: the physics exploded"),
        (toy(), {"policy": "clever"}, "unknown policy 'clever'"),
        (toy(), {"policy": "agent.zip"}, "no such file: agent.zip"),
        (toy(), {"policy": "support.toy_env:absent"}, "'support.toy_env:absent' cannot be imported"),
        (toy(), {"policy": "support.toy_env:seven"}, "the policy returned 7, which is no action of discrete (5,)"),
        (toy(), {"policy": "support.toy_env:decode"}, "with the policy support.toy_env:decode cannot begin an episode"),
        (toy(), {"episodes": None}, "set record.frames or record.episodes"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path, env, changes, words):
    with pytest.raises(UsageError) as info:
        run(tmp_path / "d", env, **{"episodes": 2, **changes})
    assert words in str(info.value) and "\n" not in str(info.value)
    assert not list(tmp_path.iterdir())
