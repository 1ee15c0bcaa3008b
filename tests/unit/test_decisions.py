"""Decisions of dreams that know everything, the opposite of everything, or nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.oracle_world import Plane

from worldvq.evaluation import decisions as module
from worldvq.evaluation.branches import return_of
from worldvq.evaluation.decisions import HORIZON, PLANS, decisions, summary, verdict
from worldvq.evaluation.interventions_page import cards, section, verdicts
from worldvq.evaluation.parts import Parts
from worldvq.planning.planners import propose

CONTEXT = 3


class Orchard(Plane):
    """A plane on which every seventh place of a row pays, and whose seventh row ends the walk."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        frame = super().step(action)[0]
        return frame, float(self.place[0] % 7 == 3 and self.moves[int(action)].any()), bool(self.place[1] >= 3), False


@pytest.fixture(scope="module")
def orchard():
    rng = np.random.default_rng(0)
    player = Orchard()
    return player, [player.situation(seed, rng.integers(0, 3, 5), CONTEXT) for seed in range(12)]


def world_that_says(monkeypatch, player, situations, say):
    """A world whose score of plans is a function of what they really pay; a dream of it is its situation."""

    def start(frames, actions, seed, rows, sounds):
        return situations[rows[0]]

    def score(situation, rollout=None):
        return lambda plans: np.array([say(return_of(player, situation, plan)) for plan in plans])

    monkeypatch.setattr(module, "reward_score", score)
    return SimpleNamespace(action_space=player.action_space, start=start)


def test_a_plan_pays_until_the_walk_ends(orchard):
    player, situations = orchard
    for situation in situations[:4]:
        plan = np.array([3, 1, 1, 3, 1, 1, 1, 3, 1, 1])
        player.reset(situation.seed)
        for action in situation.actions:
            player.step(action)
        expected = []
        for action in plan:
            _, reward, ended, _ = player.step(action)
            expected.append(reward)
            if ended:
                break
        assert len(expected) == 8 and return_of(player, situation, plan) == sum(expected)


def test_who_knows_everything_regrets_nothing(orchard, monkeypatch):
    player, situations = orchard
    world: Any = world_that_says(monkeypatch, player, situations, lambda paid: paid)
    found = decisions(world, player, situations, 3, {}, progress=False)
    best, mean = [], []
    for number, situation in enumerate(situations):  # by brute force
        plans = propose(player.action_space, PLANS, HORIZON, np.random.default_rng([3, number]))
        paid = [return_of(player, situation, plan) for plan in plans]
        best.append(max(paid))
        mean.append(np.mean(paid))
    assert found["returns"]["best"]["mean"] == found["returns"]["dream"]["mean"] == pytest.approx(np.mean(best))
    assert found["returns"]["random"]["mean"] == pytest.approx(np.mean(mean))
    assert found["regret"]["dream"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert found["planner"]["gap"]["mean"] == 0 and found["planner"]["dream"]["mean"] >= np.mean(best)
    assert found["gain"]["dream"]["ci95"][0] > 0 and found["situations"] == 12


def test_who_is_interrupted_goes_on_where_it_was(orchard, monkeypatch, tmp_path):
    player, situations = orchard
    world: Any = world_that_says(monkeypatch, player, situations, lambda paid: paid)
    whole = decisions(world, player, situations, 3, {}, progress=False)
    parts, start = Parts(tmp_path, "a" * 64, "decisions"), world.start
    begun = []

    def broken_off(frames, actions, seed, rows, sounds):
        begun.append(rows[0])
        if len(begun) == 5:
            raise KeyboardInterrupt
        return start(frames, actions, seed, rows, sounds)

    world.start = broken_off
    with pytest.raises(KeyboardInterrupt):
        decisions(world, player, situations, 3, {}, progress=False, parts=parts)
    again = decisions(world, player, situations, 3, {}, progress=False, parts=parts)
    assert begun == [*range(5), *range(4, 12)]
    kept, kept_whole = again.pop("by_situation"), whole.pop("by_situation")
    assert again == whole
    for name, values in kept_whole.items():
        np.testing.assert_array_equal(kept[name], values)
    np.testing.assert_array_equal(kept["situations"], [situation.place for situation in situations])


def test_who_says_the_opposite_is_found_out(orchard, monkeypatch):
    player, situations = orchard
    world: Any = world_that_says(monkeypatch, player, situations, lambda paid: -paid)
    found = decisions(world, player, situations, 3, {}, progress=False)
    assert found["gain"]["dream"]["ci95"][1] < 0 < found["planner"]["gap"]["ci95"][0]
    assert found["regret"]["dream"]["mean"] > found["regret"]["random"]["mean"]
    lines = verdicts({"decisions": found})
    assert "pays less than a random pick" in lines[0] and "pays more than planning in the dream" in lines[2]


def test_where_the_interval_allows_no_verdict_there_is_none():
    rng = np.random.default_rng(0)
    keys = ("best", "dream", "forecast", "random", "planner_simulator", "planner_dream", "differ")
    found = summary({key: rng.normal(size=20) for key in keys})
    assert all(line.startswith("no verdict") for line in verdicts({"decisions": found}))
    assert verdict("a", "b", {"mean": 1, "ci95": [-0.5, 2]}) == "no verdict on a against b: +1.00 (-0.50 to +2.00)"
    assert verdict("a", "b", {"mean": 1, "ci95": [0.5, 2]}) == "a pays more than b: +1.00 (+0.50 to +2.00)"
    assert verdicts({}) == []


def test_the_page_says_what_was_decided(orchard, monkeypatch):
    player, situations = orchard
    world: Any = world_that_says(monkeypatch, player, situations, lambda paid: paid)
    report = {"decisions": decisions(world, player, situations[:4], 3, {}, progress=False)}
    text = section(report, None)
    for words in ("Does it decide well?", "best of the five", "the real environment as its model", "pays more than"):
        assert words in text
    assert cards(report)[0][0] == "0.00"
