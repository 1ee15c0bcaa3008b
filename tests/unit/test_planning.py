"""Planners against exhaustive search; what a plan is worth against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.worlds import SPACES, make_actions, make_frames, make_world

from worldvq.errors import UsageError
from worldvq.planning.control import Controller
from worldvq.planning.planners import bounds, cross_entropy, propose, random_shooting
from worldvq.planning.rollout import (
    code_distance,
    dream_plans,
    forecast_plans,
    goal_score,
    reward_score,
    survived_return,
)
from worldvq.types import ActionSpace
from worldvq.world.actions import check_actions

PLANNERS = (random_shooting, cross_entropy)
FOUR = ActionSpace("discrete", nvec=(4,))
PAIR = ActionSpace("multi_discrete", nvec=(2, 3))


def all_plans(space, horizon):
    steps = [np.array(one).reshape(space.shape) for one in itertools.product(*(range(n) for n in space.nvec))]
    return np.stack([np.stack(plan) for plan in itertools.product(steps, repeat=horizon)])


def walk(plans):
    """A toy that pays for the last key in a corridor with a lock: forward (1) moves, back (2) undoes, 3 opens at 4."""
    worth = []
    for plan in plans:
        place, total = 0, 0.0
        for step, action in enumerate(plan):
            place += {1: 1, 2: -1}.get(int(action), 0)
            total += (10.0 - step) * (action == 3 and place == 3) - 0.1 * (action == 3)
        worth.append(total)
    return np.array(worth)


@pytest.mark.parametrize("seed", range(5))
def test_the_cross_entropy_method_finds_what_exhaustive_search_finds(seed):
    horizon = 6
    every = all_plans(FOUR, horizon)  # 4,096
    best = walk(every).max()
    found = cross_entropy(walk, FOUR, horizon, np.random.default_rng(seed), candidates=1200, iterations=8)
    assert found.value == best == walk(found.actions[None])[0]
    assert (walk(every) == best).sum() == 1


def test_with_as_many_plans_the_cross_entropy_method_beats_random_shooting():
    target = np.array([3, 0, 2, 2, 1, 0, 3, 1])

    def score(plans):
        return (plans == target).sum(1)

    def value(planner, seed):
        return planner(score, FOUR, 8, np.random.default_rng(seed), candidates=256).value

    shooting, method = (np.mean([value(planner, seed) for seed in range(30)]) for planner in PLANNERS)
    assert shooting < 6 and method > 7.5


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_plan_of_several_factors_is_found(planner):
    target = np.array([[1, 2], [0, 1], [1, 0]])

    def score(plans):
        return -np.abs(plans - target).sum((1, 2))

    found = planner(score, PAIR, 3, np.random.default_rng(0), candidates=2000)
    assert found.value == score(all_plans(PAIR, 3)).max() == 0
    np.testing.assert_array_equal(found.actions, target)


def test_a_plan_of_numbers_is_found():
    space = ActionSpace("box", low=(-2.0, 0.0), high=(2.0, float("inf")))
    target = np.array([[1.5, 0.5], [-1.9, 1.2], [0.3, 1.9]])

    def score(plans):
        assert plans.dtype == np.float32 and (plans[..., 1] >= 0).all() and (np.abs(plans[..., 0]) <= 2).all()
        return -np.square(plans - target).sum((1, 2))

    found = cross_entropy(score, space, 3, np.random.default_rng(0), candidates=2000, iterations=20)
    assert np.abs(found.actions - target).max() < 0.1
    shot = random_shooting(score, space, 3, np.random.default_rng(0), candidates=2000)
    assert found.value > shot.value


@pytest.mark.parametrize("planner", PLANNERS)
def test_what_was_known_before_is_never_lost(planner):
    known = np.array([[1, 1, 1, 3, 3, 3, 3, 3]])
    found = planner(walk, FOUR, 8, np.random.default_rng(0), candidates=8, known=known)
    assert found.value >= walk(known)[0] > 0


@settings(max_examples=60, deadline=None)
@given(
    space=st.sampled_from(
        [*SPACES.values(), FOUR, ActionSpace("box", low=(float("-inf"), -3.0, 1.0), high=(-5.0, 3e38, 1.5))]
    ),
    count=st.integers(1, 5),
    horizon=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_proposed_plans_are_plans_of_the_space(space, count, horizon, seed):
    plans = propose(space, count, horizon, np.random.default_rng(seed))
    assert plans.shape == (count, horizon, *space.shape) and plans.dtype == space.dtype
    check_actions(plans, space, "a plan")
    if space.kind == "box":
        low, high = bounds(space)
        assert np.isfinite([low, high]).all() and (low < high).all()


def test_proposed_plans_keep_an_action_for_two_steps_and_take_each_as_often():
    plans = propose(ActionSpace("discrete", nvec=(100,)), 400, 50, np.random.default_rng(0))
    kept = (plans[:, 1:] == plans[:, :-1]).mean()
    assert kept == pytest.approx(0.5 + 0.5 / 100, abs=0.02)
    assert plans.mean() == pytest.approx(49.5, abs=1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), plans=st.integers(1, 4), horizon=st.integers(1, 6))
def test_a_return_is_the_expectation_over_when_it_ends(seed, plans, horizon):
    rng = np.random.default_rng(seed)
    rewards, ends = rng.normal(size=(plans, horizon)), rng.random((plans, horizon))
    expected = np.zeros(plans)
    for p in range(plans):
        for last in range(horizon + 1):  # it ends with step `last`, or with none
            chance = np.prod(1 - ends[p, :last]) * (ends[p, last] if last < horizon else 1)
            expected[p] += chance * rewards[p, : last + 1].sum()
    found = survived_return(torch.from_numpy(rewards), torch.from_numpy(ends))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def start(kind, context=3):
    world = make_world(kind)
    return world, world.start(make_frames(1, context), make_actions(kind, 1, context - 1), seed=5)


@pytest.mark.parametrize("kind", SPACES)
def test_plans_dreamt_with_the_prior_are_what_imagining_them_one_by_one_gives(kind):
    world, frames, before = make_world(kind), make_frames(1, 3), make_actions(kind, 1, 2)
    plans = make_actions(kind, 4, 5)
    outcome = dream_plans(world.start(frames, before, seed=5), plans)
    for plan in range(4):
        alone = world.imagine_tokens(world.tokenize(frames), torch.cat([before, plans[plan : plan + 1]], 1), seed=5)
        assert torch.equal(outcome.tokens[plan], alone.tokens[0])
        torch.testing.assert_close(outcome.rewards[plan], alone.rewards[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outcome.termination[plan], alone.termination[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SPACES)
@torch.no_grad()
def test_plans_that_are_forecast_are_what_the_whole_network_says_of_them(kind):
    """Against the parallel pass over whole clips, which knows no state; a window as long as all of it."""
    world, frames, before = make_world(kind, num_blocks=1, recall=False), make_frames(1, 1), make_actions(kind, 1, 0)
    plans, dynamics = make_actions(kind, 4, 3), world.dynamics  # 1 + 2 frames: no longer than the window of 3
    outcome = forecast_plans(world.start(frames, before), plans)
    known = world.tokenize(frames).expand(4, 1, -1, -1)
    for step in range(3):
        output = dynamics.context(known, plans[:, : step + 1])
        drawn = dynamics.forecast(output.context[:, -1]).argmax(-1)
        assert torch.equal(outcome.tokens[:, step], drawn)
        ends = output.termination[:, -1].sigmoid()
        torch.testing.assert_close(outcome.termination[:, step], ends, rtol=1e-4, atol=1e-4)
        known = torch.cat([known, drawn[:, None]], 1)


def test_a_dream_stays_as_it_is_while_plans_are_dreamt():
    _, dream = start("discrete")
    _, other = start("discrete")
    for rollout in (dream_plans, forecast_plans):
        rollout(dream, make_actions("discrete", 3, 4))
    assert torch.equal(dream.step(1), other.step(1))


def test_scores_do_not_depend_on_batches(monkeypatch):
    world, dream = start("discrete")
    plans, goal = make_actions("discrete", 7, 3).numpy(), make_frames(1, 1)[0, 0]
    whole = reward_score(dream)(plans), goal_score(dream, goal)(plans)
    outcome = forecast_plans(dream, plans)
    np.testing.assert_allclose(whole[0], survived_return(outcome.rewards, outcome.termination), rtol=1e-6)
    codes = world.tokenizer.quantizer.codebook[outcome.tokens[:, -1]]
    wanted = world.tokenizer.quantizer.codebook[world.tokenize(goal[None, None])[0, 0]]
    np.testing.assert_allclose(whole[1], -(codes - wanted).square().mean((1, 2, 3)).detach(), rtol=1e-5)
    monkeypatch.setattr("worldvq.planning.rollout.BATCH", 2)
    np.testing.assert_allclose(reward_score(dream)(plans), whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(goal_score(dream, goal)(plans), whole[1], rtol=1e-4)


def test_a_goal_that_a_plan_leads_to_is_found():
    world, dream = start("discrete")
    plan = np.array([2, 0, 2, 1])
    goal = forecast_plans(dream, plan[None]).tokens[0, -1]
    every = all_plans(world.action_space, 4)
    distances = -code_distance(world.engine, forecast_plans(dream, every).tokens[:, -1], goal).numpy()
    assert distances.max() == 0

    def score(plans):
        return -code_distance(world.engine, forecast_plans(dream, plans).tokens[:, -1], goal).numpy()

    found = cross_entropy(score, world.action_space, 4, np.random.default_rng(0), candidates=200)
    assert found.value == 0


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        (np.zeros((2, 3, 1), np.int64), r"plans \[2, 3, 1\]"),
        (np.zeros((0, 3), np.int64), r"plans \[0, 3\]"),
        (np.full((2, 3), 7), "the action 7"),
    ],
)
def test_plans_that_are_none_are_refused(plans, words):
    _, dream = start("discrete")
    with pytest.raises(UsageError, match=words):
        forecast_plans(dream, plans)
    with pytest.raises(UsageError, match="this one has 2 rows"):
        dream_plans(dream.fork([0, 0]), np.zeros((1, 1), np.int64))


@pytest.mark.parametrize("kind", SPACES)
def test_a_controller_begins_each_dream_from_what_was_really_seen(kind):
    world = make_world(kind)
    seen, starts = make_frames(1, 12)[0].numpy(), []
    real_start = world.start

    def spy(frames, actions, **rest):
        starts.append((np.array(frames), np.array(actions)))
        return real_start(frames, actions, **rest)

    world.start = spy
    controller = Controller(world, horizon=4, every=3, candidates=8)
    controller.begin(seen[0], seed=1)
    taken = []
    for frame in seen[1:]:
        taken.append(controller.act())
        controller.see(taken[-1], frame)
    assert len(starts) == 4  # 11 actions, three a plan
    for number, (frames, actions) in enumerate(starts):
        step = 3 * number
        first = max(0, step + 1 - world.dynamics.config.context_frames)
        np.testing.assert_array_equal(frames[0], seen[first : step + 1])
        np.testing.assert_array_equal(actions[0], np.array(taken[first:step]).reshape(-1, *world.action_space.shape))
    assert controller.dreamt().shape == (3, *seen.shape[1:])
    check_actions(np.stack(taken), world.action_space, "taken")


def test_a_controller_takes_the_plan_that_the_dream_says_is_best():
    world, frame = make_world("discrete"), make_frames(1, 1)[0, 0].numpy()
    dream = world.start(frame[None, None], np.zeros((1, 0), np.int64), precision="auto")
    every = all_plans(world.action_space, 4)
    best = every[reward_score(dream)(every).argmax()]
    controller = Controller(world, horizon=4, every=4, candidates=600)
    controller.begin(frame)
    for action in best:
        assert controller.act() == action
        controller.see(action, frame)
    controller.begin(frame)
    again = Controller(world, horizon=4, every=4, candidates=600)
    again.begin(frame)
    assert controller.act() == again.act()
