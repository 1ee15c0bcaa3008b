"""Who plays while recording: what is drawn, how long it is kept, and what is no action."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.recording.config import RecordConfig
from worldvq.recording.policies import check_action, make_policy, random_action
from worldvq.recording.record import play
from worldvq.types import ActionSpace


def test_held_actions_last_from_one_to_hold_steps():
    stream = SimpleNamespace(action_space=ActionSpace("box", low=(0,), high=(1,)))  # no value is drawn twice
    policy = make_policy(RecordConfig(policy="held", hold=5), stream, seed=0)
    values = np.array([policy(np.array(number)).item() for number in range(5000)])  # every frame is another one
    lengths = np.diff(np.flatnonzero(np.diff(values, prepend=-1)))
    counts = np.bincount(lengths)
    assert len(counts) == 6 and counts[0] == 0
    assert counts[1:].min() > 0.8 * len(lengths) / 5  # each length as often as any other


def test_held_drops_an_action_that_leaves_the_frame_as_it_was():
    stream = SimpleNamespace(action_space=ActionSpace("box", low=(0,), high=(1,)))  # no value is drawn twice
    moves = np.random.default_rng(0).random(2000) < 0.7
    frame, kept = np.zeros((2, 2, 3), np.int64), 0  # one array, drawn into anew
    policy = make_policy(RecordConfig(policy="held", hold=5), stream, seed=0)
    before = policy(frame)
    for moved in moves:
        frame += moved
        action = policy(frame)
        assert moved or action != before
        kept, before = kept + (action == before), action
    assert kept > 600


def test_held_leaves_walls_and_nothing_else():
    """In the maze: after a step that changed nothing another action is as likely as chance has it, else it is kept."""
    stream = make_stream(EnvConfig(id="worldvq/Maze-v0", kwargs={"max_steps": 150}))
    same = {True: [], False: []}
    for number in range(8):
        episode = play(stream, RecordConfig(policy="held"), number)
        still = (episode.frames[1:] == episode.frames[:-1]).all(axis=(1, 2, 3))
        for changed, repeated in zip(~still[:-1], episode.actions[1:] == episode.actions[:-1], strict=True):
            same[bool(changed)].append(repeated)
        again = play(stream, RecordConfig(policy="held"), number)
        assert np.array_equal(again.frames, episode.frames) and np.array_equal(again.actions, episode.actions)
    assert len(same[False]) > 30 and np.mean(same[False]) < 0.35 and np.mean(same[True]) > 0.7
    assert len(same[False]) < 0.1 * len(same[True])  # held to the end, every fifth step left the frame as it was


def test_random_choices_are_even():
    policy = make_policy(RecordConfig(policy="random"), SimpleNamespace(action_space=ActionSpace("discrete", (4,))), 0)
    counts = np.bincount([int(policy(None)) for _ in range(4000)])
    assert len(counts) == 4 and counts.min() > 900


bounds = st.floats(-1e3, 1e3, width=32).map(lambda x: x + 0.0)  # no -0.0, which NumPy takes for less than 0.0


@given(st.lists(st.tuples(bounds | st.just(-np.inf), bounds | st.just(np.inf)), min_size=1), st.integers(0, 99))
def test_random_box_actions_stay_within_the_bounds(pairs, seed):
    low, high = (tuple(side) for side in zip(*[sorted(pair) for pair in pairs], strict=True))
    space = ActionSpace("box", low=low, high=high)
    action = check_action(space, random_action(space, np.random.default_rng(seed)))
    assert action.dtype == np.float32 and (np.float32(low) <= action).all() and (action <= np.float32(high)).all()


@pytest.mark.parametrize("action", [5, -1, 2.0, None, [1], np.array([1, 2])])
def test_what_is_no_discrete_action_is_refused(action):
    with pytest.raises(UsageError, match=r"the policy returned .*no action of discrete \(5,\)"):
        check_action(ActionSpace("discrete", (5,)), action)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_multi_discrete_actions_are_taken_exactly_if_they_exist(nvec, data):
    space = ActionSpace("multi_discrete", tuple(nvec))
    action = data.draw(st.lists(st.integers(-1, 6), min_size=len(nvec), max_size=len(nvec)))
    if all(0 <= value < n for value, n in zip(action, nvec, strict=True)):
        assert check_action(space, action).tolist() == action
    else:
        with pytest.raises(UsageError):
            check_action(space, action)
