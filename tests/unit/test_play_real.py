"""The real environment under a person's hands: what is kept of it is what any recording holds."""

import numpy as np
import pytest
from support.toy_env import ID, SIZE, check_alignment
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.play.real import Real, Takes
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import describe_dataset, episode_seed
from worldvq.types import ActionSpace

SEED = 5


def config(**kwargs):
    return EnvConfig(id=ID, kwargs={"length": 6, **kwargs}, size=SIZE)


@pytest.fixture
def begin(tmp_path):
    """A function that makes a player and the store that it plays into."""
    open_stores, players = [], []

    def made(env=None, recording=True, stream=None, **enough):
        env = env or config()
        opener = stream or (lambda: make_stream(env))
        space = opener().action_space
        store = EpisodeStore.create(tmp_path / "out", describe_dataset(env, RecordConfig(policy="human"), space))
        open_stores.append(store)
        takes = Takes(store, lambda number: episode_seed(SEED, number), **enough)
        players.append(Real(opener, takes, recording))
        return players[-1], takes

    yield made
    for player in players:
        player.close()
    for store in open_stores:
        store.close()


def act(player, *actions):
    return [player.act(np.array(action)) for action in actions][-1]


def test_an_episode_is_kept_as_a_recorder_would_have_it(begin):
    player, takes = begin(config(action="multi_discrete"))
    first = player.begin_next()
    plan = [[2, 1, 6], [0, 0, 1], [1, 1, 1], [2, 0, 3], [0, 1, 0], [1, 0, 5]]
    last = act(player, *plan)
    assert last.over == "terminated" and last.reward == 6 and last.total == 21
    assert act(player, [0, 0, 0]).frame is last.frame  # nothing moves any more
    (entry,) = takes.store.entries
    episode = takes.store.read(entry.number)
    check_alignment(episode, "multi_discrete", 1, 6)
    np.testing.assert_array_equal(episode.actions, plan)
    np.testing.assert_array_equal(episode.frames[0], first.frame)
    assert episode.seed == episode_seed(SEED, 0)


def test_what_is_left_is_kept_as_interrupted_and_what_was_not_played_not_at_all(begin):
    player, takes = begin()
    player.begin_next()
    player.begin_next()  # nothing was done in the first
    act(player, 1, 2)
    player.begin_next()
    act(player, 3)
    player.close()
    player.begin_next()
    player.close()
    assert [(e.number, e.num_frames, e.interrupted) for e in takes.store.entries] == [(0, 3, True), (1, 2, True)]
    assert takes.store.verify() == []


def test_nobody_plays_the_episode_of_another(begin):
    player, takes = begin()
    other = Real(lambda: make_stream(config()), takes, recording=True)
    player.begin_next()
    other.begin_next()
    act(other, 1)
    act(player, 2)
    for one in (player, other):
        one.close()
    seeds = [takes.store.entry(number).seed for number in (0, 1)]
    assert seeds == [episode_seed(SEED, 0), episode_seed(SEED, 1)]
    assert [int(takes.store.read(number).actions[0]) for number in (0, 1)] == [2, 1]


def test_beside_a_dream_an_episode_is_kept_with_the_way_to_where_play_began_if_recording_is_on(begin):
    player, takes = begin(recording=False)
    path = np.array([4, 3, 2])
    player.begin(77, path)
    act(player, 1)
    player.begin(78, path)  # nothing is recorded yet
    player.recording = True
    assert act(player, 1).total == 4  # of the step since play began
    player.begin(79, path)
    player.leave()  # nobody did anything
    (entry,) = takes.store.entries
    episode = takes.store.read(entry.number)
    assert (episode.seed, episode.interrupted, episode.actions.tolist()) == (78, True, [4, 3, 2, 1])


def test_going_back_comes_to_the_same_place_and_keeps_nothing(begin):
    player, takes = begin(config(length=8))
    player.begin(3, np.array([0, 1]))
    seen = [act(player, action) for action in (2, 3, 4)]
    back = player.rewind(1)
    np.testing.assert_array_equal(back.frame, seen[0].frame)
    assert back.total == seen[0].total and len(takes.store) == 0
    np.testing.assert_array_equal(act(player, 3).frame, seen[1].frame)
    np.testing.assert_array_equal(player.rewind(9).frame, seen[1].frame)  # it has not been there
    act(player, 4, 4, 4)
    assert act(player, 4).over == "terminated"
    assert player.rewind(1).over == ""


class Drifting:
    """An environment that never comes to the same place again, and ends without showing where."""

    action_space = ActionSpace("discrete", (2,))
    has_frame = True
    sound = None

    def __init__(self):
        self.resets = self.steps = 0

    def reset(self, seed):
        self.resets, self.steps, self.has_frame = self.resets + 1, 0, True
        return self.frame()

    def step(self, action):
        self.steps += 1
        self.has_frame = self.steps < 4
        return self.frame(), 1.0, self.steps == 4, False

    def frame(self):
        return np.full((*SIZE, 3), 10 * self.resets + self.steps, np.uint8)

    def as_played(self, action):
        return action

    def close(self):
        self.resets = -1


def test_an_environment_that_comes_to_another_place_begins_anew_and_says_so(begin):
    player, takes = begin(stream=Drifting)
    player.begin(1)
    act(player, 0, 1)
    with pytest.raises(UsageError, match="not come to the same place"):
        player.rewind(1)
    assert act(player, 0).over == "" and len(takes.store) == 0


def test_a_last_step_that_shows_nothing_is_dropped_and_its_reward_moves_to_the_one_before(begin):
    player, takes = begin(stream=Drifting)
    player.begin_next()
    assert act(player, 0, 1, 0, 1).over == "terminated"
    episode = takes.store.read(0)
    assert len(episode) == 3 and episode.rewards.tolist() == [1, 1, 2] and episode.terminated


@pytest.mark.parametrize(("enough", "lengths"), [({"episodes": 2}, [7, 7]), ({"frames": 9}, [7, 2])])
def test_there_is_enough(begin, enough, lengths):
    player, takes = begin(**enough)
    while not takes.enough:
        player.begin_next()
        while not act(player, 1).over:
            pass
    assert [entry.num_frames for entry in takes.store.entries] == lengths


def test_an_environment_that_fails_leaves_what_was_played(begin):
    player, takes = begin(config(fail="raise", fail_step=3))
    player.begin_next()
    act(player, 1, 2)
    with pytest.raises(OSError, match="exploded"):
        act(player, 3)
    player.close()
    assert [(entry.num_frames, entry.interrupted) for entry in takes.store.entries] == [(3, True)]


def test_a_person_is_no_policy_of_the_recorder():
    from worldvq.recording.policies import check_policy

    with pytest.raises(UsageError, match="--policy human"):
        check_policy("human")
