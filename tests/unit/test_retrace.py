"""The player that undoes what it does: in reverse order, about half of it, and nothing where it does not know how."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.errors import UsageError
from worldvq.recording.config import RecordConfig
from worldvq.recording.policies import check_action, make_policy
from worldvq.recording.undo import completed, describe_undo, inverse_of
from worldvq.types import ActionSpace

PLANE = ActionSpace("discrete", (6,), names=("stay", "left", "right", "up", "down", "jump"))
BUTTONS = ActionSpace("multi_discrete", (2, 2, 3), names=("left", "right", "lift"))
BOX = ActionSpace("box", low=(-1, -1), high=(1, 1))
TABLES = {
    "discrete": {"left": "right", "up": "down"},
    "multi_discrete": {"left": "right", "lift=1": "lift=2"},
    "box": "negated",
}
MOVES = {
    "discrete": lambda action: np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (30, 30)][int(action)]),
    "multi_discrete": lambda action: np.array([action[1] - action[0], (0, 1, -1)[action[2]]]),
    "box": lambda action: np.rint(1000 * action),
}


def player(space, table, seed=0, hold=8):
    return make_policy(RecordConfig(undo=table, hold=hold), SimpleNamespace(action_space=space), seed)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PLANE, BUTTONS, BOX]), st.integers(0, 2**31), st.integers(1, 9), st.integers(3, 40))
def test_what_is_undone_leads_through_the_same_places_in_reverse(space, seed, hold, edge):
    """On a plane with an edge, which stops a move as a wall does; a jump leads nowhere back."""
    policy = player(space, TABLES[space.kind], seed, hold)
    edge *= 1000 if space.kind == "box" else 1
    here, trail, returned = np.zeros(2), [], 0
    for _ in range(400):
        action = check_action(space, policy(here))
        undoing = policy.undoing  # type: ignore[attr-defined]
        there = here + MOVES[space.kind](action)
        if space.kind == "discrete" and action == 5:
            assert not undoing
            there = (there + edge) % (2 * edge + 1) - edge
            trail = trail if (there == here).all() else []
        elif undoing:
            np.testing.assert_array_equal(there, trail.pop())
            returned += 1
        elif (np.abs(there) > edge).any():
            there = here
        elif (there != here).any():
            trail.append(here)
        here = there
    assert returned > 20


def walk(space, table, steps, seed=0, hold=8):
    """Play where every step changes the frame; returns of which steps it is that they undo."""
    policy = player(space, table, seed, hold)
    undone = []
    for step in range(steps):
        policy(np.array(step))
        undone.append(policy.undoing)  # type: ignore[attr-defined]
    return np.array(undone)


@pytest.mark.parametrize("hold", [2, 8, 15])
def test_half_of_what_is_explored_is_undone_at_once(hold):
    space = ActionSpace("discrete", (4,), names=("a", "b", "c", "d"))
    undone = walk(space, {"a": "b", "c": "d"}, 40_000, hold=hold)
    assert 0.45 < undone.sum() / (~undone).sum() < 0.6
    changes = np.flatnonzero(np.diff(undone.astype(int), prepend=0))
    runs = np.diff(changes)[::2]  # of undoing, which always ends in exploring
    assert runs.min() == 1 and runs.max() > hold and len(np.unique(runs)) >= hold


def test_returns_end_within_a_stretch_at_its_begin_and_before_it():
    space = ActionSpace("discrete", (2,), names=("a", "b"))
    policy = player(space, {"a": "b"})
    ends = {"within": 0, "begin": 0, "before": 0}
    stretch = 0
    for step in range(20_000):
        before, undoing = policy.stretch, policy.undoing  # type: ignore[attr-defined]
        policy(np.array(step))
        if policy.undoing and not undoing:  # type: ignore[attr-defined]
            stretch, length = before + 1, policy.left + 1  # type: ignore[attr-defined]
            ends["within" if length < stretch else "begin" if length == stretch else "before"] += 1
    assert min(ends.values()) > 0.15 * sum(ends.values())


def test_nothing_is_undone_where_nothing_is_known():
    assert not walk(PLANE, {}, 2000).any()
    assert not walk(ActionSpace("box", low=(0,), high=(1,)), "negated", 2000).any()


def test_an_undoing_step_that_does_nothing_ends_the_return():
    """A door that opens one way: from then on nobody knows where the stack leads."""
    policy = player(ActionSpace("discrete", (2,), names=("a", "b")), {"a": "b"}, hold=4)
    stopped = 0
    for frame in range(3000):
        policy(np.array(frame))
        if policy.undoing:  # type: ignore[attr-defined]
            policy(np.array(frame))
            assert not policy.undoing and not policy.stack  # type: ignore[attr-defined]
            stopped += 1
    assert stopped > 200


def test_an_action_that_leaves_the_frame_as_it_was_is_dropped_and_not_undone():
    policy = player(ActionSpace("box", low=(-1,), high=(1,)), "negated")  # no value is drawn twice
    still = np.zeros(1)
    actions = [policy(still).item() for _ in range(500)]
    assert len(set(actions)) == 500 and not policy.stack  # type: ignore[attr-defined]


def test_what_was_begun_lately_is_begun_less_often():
    space = ActionSpace("discrete", (5,))
    policy = player(space, {}, hold=1)
    actions = np.array([int(policy(np.array(step))) for step in range(20_000)])
    assert np.mean(actions[1:] == actions[:-1]) < 0.175  # 0.2 if drawn evenly
    assert np.bincount(actions).min() > 0.19 * len(actions)


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize(
    ("action", "back"),
    [
        ((1, 0, 0), (0, 1, 0)),
        ((1, 0, 2), (0, 1, 1)),
        ((1, 1, 0), (1, 1, 0)),
        ((0, 0, 0), None),
    ],
)
def test_a_combination_is_undone_by_the_inverses_of_its_parts(action, back):
    found = inverse_of(BUTTONS, completed(TABLES["multi_discrete"]))(np.array(action))
    assert (None if found is None else tuple(found.tolist())) == back


def test_a_combination_with_a_part_that_nothing_undoes_has_no_inverse():
    inverse = inverse_of(BUTTONS, {"left": "right", "right": "right"})
    assert inverse(np.array((1, 0, 1))) is None  # nothing undoes a lift
    assert inverse(np.array((1, 1, 0))) is None  # both by the same button


def test_an_action_without_a_negative_in_its_bounds_has_no_inverse():
    inverse = inverse_of(ActionSpace("box", low=(-1, 0), high=(0.5, 1)), "negated")
    assert inverse(np.float32([-0.5, 0.25])) is None and inverse(np.float32([-0.75, 0])) is None
    found = inverse(np.float32([-0.5, 0]))
    assert found is not None and found.tolist() == [0.5, 0] and found.dtype == np.float32


@pytest.mark.parametrize(
    ("space", "table", "words"),
    [
        (PLANE, {"left": "rihgt"}, "no action 'rihgt' (did you mean 'right'?): stay, left, right, up, down, jump"),
        (PLANE, "negated", "for discrete actions write record.undo={action: the action that undoes it}"),
        (BOX, {"0": "1"}, "for box actions write record.undo=negated"),
        (BUTTONS, {"lift": "left"}, "no action 'lift' (did you mean 'lift=2'?): left, right, lift=1, lift=2"),
        (ActionSpace("discrete", (3,)), {"1": "3"}, "no action '3': 0, 1, 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(space, table, words):
    with pytest.raises(UsageError) as info:
        player(space, table)
    assert words in str(info.value) and "\n" not in str(info.value)


def test_a_pair_holds_both_ways_unless_it_says_otherwise():
    assert completed({"a": "b", "c": "b"}) == {"a": "b", "c": "b", "b": "a"}
    assert describe_undo({"a": "b", "b": "a", "c": "b"}) == "undoes: a <-> b, c by b"
