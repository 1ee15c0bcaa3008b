"""Forked branches, and ways that come back: against brute force, and against worlds that know everything or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.mazes import BACK, FORWARD, LEFT, LOOK_LEFT, LOOK_RIGHT, RIGHT, SMALL
from support.oracle_world import OracleWorld, Plane, StillWorld
from worldvq_envs.adapters import make_stream
from worldvq_envs.maze.layout import NUM_HEADINGS

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.evaluation.branches import find_situations, plans_of, play_on
from worldvq.evaluation.counterfactual import counterfactual, score_branches
from worldvq.evaluation.interventions_page import branches_picture, cards, section
from worldvq.evaluation.memory import find_returns, there_and_back
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import record
from worldvq.stages.record import STREAM
from worldvq.types import ActionSpace

CONTEXT = 3
MAZE = EnvConfig(id="worldvq/Maze-v0", size=(16, 16), max_steps=40, kwargs=SMALL)
PAIRS = {(FORWARD, BACK), (LEFT, RIGHT), (LOOK_LEFT, LOOK_RIGHT)}


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """A dataset, its environment, and situations in it."""
    out = tmp_path_factory.mktemp("maze") / "data"
    config = RecordConfig(episodes=6, workers=1, heldout_every=2, policy="held")
    with record(MAZE, config, out, stream=STREAM, progress=False) as store:
        stream = make_stream(MAZE)
        yield store, stream, find_situations(store, stream, CONTEXT, 10, seed=0)
        stream.close()


def test_situations_are_frames_of_held_out_episodes(maze):
    store, _, situations = maze
    assert len(situations) == 10 and len({(s.number, len(s.actions)) for s in situations}) == 10
    for situation in situations:
        assert situation.number % 2 == 1  # every second one is held out
        episode, step = store.read(situation.number), len(situation.actions)
        np.testing.assert_array_equal(situation.frames, episode.frames[step - CONTEXT + 1 : step + 1])
        np.testing.assert_array_equal(situation.between, episode.actions[step - CONTEXT + 1 : step])


def test_branches_are_what_the_environment_itself_does(maze):
    _, stream, situations = maze
    for situation in situations[:4]:
        played = play_on(stream, situation, np.array([FORWARD, LOOK_LEFT, LOOK_LEFT]))
        env = make_stream(MAZE)
        env.reset(situation.seed)
        for action in situation.actions:
            env.step(action)
        expected = [env.step(action)[0] for action in (FORWARD, LOOK_LEFT, LOOK_LEFT)]
        np.testing.assert_array_equal(played, np.stack(expected))


def test_a_branch_that_ends_early_is_none(maze):
    _, stream, situations = maze
    assert play_on(stream, situations[0], np.zeros(MAZE.max_steps or 0, np.int64)) is None


def test_an_environment_that_comes_to_other_frames_is_refused(maze):
    store, stream, _ = maze

    class Other:
        has_frame = True

        def reset(self, seed):
            return stream.reset(seed + 1)

        def step(self, action):
            return stream.step(action)

    with pytest.raises(UsageError, match=r"cannot be forked: episode \d+, .* shows another frame 0"):
        find_situations(store, Other(), CONTEXT, 1, seed=0)


def test_what_undoes_what_and_what_closes_a_circle_is_found(maze, monkeypatch):
    monkeypatch.setattr("worldvq.evaluation.memory.LONGEST_TURN", NUM_HEADINGS)
    _, stream, situations = maze
    pairs, turns = find_returns(stream, situations[:8], np.arange(7))
    assert set(pairs) == PAIRS | {(b, a) for a, b in PAIRS}
    assert turns == [(LOOK_LEFT, NUM_HEADINGS), (LOOK_RIGHT, NUM_HEADINGS)]


@pytest.fixture(scope="module")
def plane():
    rng = np.random.default_rng(0)
    walks = [rng.integers(0, 6, 5) for _ in range(6)]
    return Plane(), [Plane().situation(seed, walk, CONTEXT) for seed, walk in enumerate(walks)]


def test_who_knows_what_happens_obeys(plane):
    player, situations = plane
    world: Any = OracleWorld(player, situations, player.action_space)
    found, frames = counterfactual(world, player, situations, 4, 0, {}, progress=False)
    assert (found["plans"], found["situations"], found["left_out"]) == (list(player.action_space.names), 6, 0)
    assert found["retrieval"]["mean"] == [1.0] * 4 == found["retrieval"]["ceiling"]
    assert found["retrieval"]["chance"] == pytest.approx([1 / 6] * 4)
    assert found["retrieval"]["by_plan"] == [[1.0] * 4] * 6
    assert min(found["correlation"]["mean"]) > 0.99 and min(found["delta_psnr"]["mean"]) > 20
    assert frames.shape == (2, 6, 4, 8, 8, 3)


def test_who_knows_what_happens_comes_back_by_every_way(plane):
    player, situations = plane
    world: Any = OracleWorld(player, situations, player.action_space)
    memory = there_and_back(world, player, situations, 0, {}, progress=False)
    pairs = [("east", "west"), ("west", "east"), ("north", "south"), ("south", "north")]
    assert memory["undoes"] == [list(pair) for pair in pairs]
    expected = {f"{a} × {k}, {b} × {k}" for a, b in pairs for k in range(1, 9)}
    expected |= {"east × 2, north × 2, south × 2, west × 2", "north × 2, east × 2, west × 2, south × 2"}
    expected |= {"east × 2, north × 2, west × 2, south × 2", "dial × 5"}
    assert {way["name"] for way in memory["ways"]} == expected
    assert {way["kind"] for way in memory["ways"]} == {"pair", "nested", "around", "turn"}
    for way in memory["ways"]:
        assert way["psnr"]["mean"] == way["shown"]["mean"] == way["ceiling"] == pytest.approx(way["turning_point"])
        assert way["not_returned"] < 10 and way["situations"] == 6
        assert way["returned"]["mean"] == way["returned_shown"]["mean"] == 1


@pytest.mark.parametrize(("error", "share"), [(14, 4 / 6), (15, 0)])  # 10 is the tokenizer's: twice its square is 200
def test_who_misses_in_one_dream_of_three_comes_back_in_two(plane, error, share):
    player, situations = plane

    class Careless(OracleWorld):
        def imagine(self, *arguments, **more):
            frames = super().imagine(*arguments, **more).clone()
            frames[::3, -1] = 255 - frames[::3, -1]
            return frames

        def render(self, tokens):
            return OracleWorld(player, situations, player.action_space, haze=10).render(tokens)

    world: Any = Careless(player, situations, player.action_space, haze=error)
    for way in there_and_back(world, player, situations, 0, {}, progress=False)["ways"]:
        for came in (way["returned"], way["returned_shown"]):
            assert came["mean"] == pytest.approx(share) and came["ci95"][0] <= share <= came["ci95"][1]
        assert way["psnr"]["mean"] < way["ceiling"] - 10


def test_what_is_kept_of_each_situation_gives_the_numbers_of_the_report(maze, monkeypatch):
    monkeypatch.setattr("worldvq.evaluation.memory.LONGEST_TURN", NUM_HEADINGS)
    store, stream, situations = maze
    world: Any = StillWorld(stream, situations, store.action_space)
    found, _ = counterfactual(world, stream, situations, 4, 0, {}, progress=False)
    kept = found["by_situation"]
    np.testing.assert_allclose(kept["retrieval"].mean(0), found["retrieval"]["mean"])
    gain = 10 * np.log10(kept["other"].mean(0) / kept["own"].mean(0))
    np.testing.assert_allclose(gain, found["delta_psnr"]["mean"], atol=1e-9)
    places = [[s.number, len(s.actions)] for s in situations]
    assert [place in places for place in kept["situations"].tolist()] == [True] * found["situations"]
    memory = there_and_back(world, stream, situations, 0, {}, progress=False)
    kept = memory["by_situation"]
    assert kept["situations"].tolist() == places and len(kept["error"]) == len(memory["ways"]) > 4
    for way, error, ceiling in zip(memory["ways"], kept["error"], kept["ceiling"], strict=True):
        there = np.isfinite(error)
        assert there.sum() == way["situations"] and (there == np.isfinite(ceiling)).all()
        assert -10 * np.log10(max(error[there].mean(), 1e-10)) == pytest.approx(way["psnr"]["mean"])
        assert -10 * np.log10(max(ceiling[there].mean(), 1e-10)) == pytest.approx(way["ceiling"])


def test_who_dreams_that_nothing_moves_obeys_by_chance_and_does_not_pass_for_one_who_remembers(plane):
    player, situations = plane
    world: Any = StillWorld(player, situations, player.action_space)
    found, _ = counterfactual(world, player, situations, 2, 0, {}, progress=False)
    assert found["retrieval"]["mean"] == pytest.approx([1 / 6] * 2)
    assert found["delta_psnr"]["mean"] == pytest.approx([0, 0], abs=1e-6)
    for way in there_and_back(world, player, situations, 0, {}, progress=False)["ways"]:
        assert way["psnr"]["mean"] == way["ceiling"]  # it never left
        assert way["turning_point"] == pytest.approx(way["not_returned"], abs=0.5)  # which shows here
        stays = way["shown"]["mean"]  # where it was shown the way there, at the turning point
        assert stays == pytest.approx(way["not_returned"], abs=0.5)
        assert way["returned"]["mean"] == 1 and way["returned_shown"]["mean"] == 0


def test_scores_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (5, 3, 2, 4, 4, 3), dtype=np.uint8)
    real[:2, 1] = real[:2, 0]  # two plans that do the same there
    noise = rng.integers(-120, 121, real.shape)
    dream = np.clip(real + noise, 0, 255).astype(np.uint8)
    dream[:, 2] = rng.integers(0, 256, dream[:, 2].shape)
    found = score_branches(real, dream, real)
    for h in range(2):
        hits, own, other, pairs, same = [], [], [], [], []
        for s in range(5):
            for i in range(3):
                errors = [np.mean((dream[s, i, h] / 255.0 - real[s, j, h] / 255.0) ** 2) for j in range(3)]
                nearest = int(np.argmin(errors))
                hits.append(np.array_equal(real[s, nearest, h], real[s, i, h]))
                own.append(errors[i])
                other += [errors[j] for j in range(3) if j != i]
                same += [np.array_equal(real[s, i, h], real[s, j, h]) for j in range(3)]
                apart = [x[s, :, h].astype(float) / 255 for x in (dream, real)]
                pairs.append([(x[i] - x.mean(0)).ravel() for x in apart])
        assert found["retrieval"]["mean"][h] == pytest.approx(np.mean(hits))
        assert 0.3 < np.mean(hits) < 1
        assert found["retrieval"]["chance"][h] == pytest.approx(np.mean(same))
        gain = 10 * np.log10(np.mean(other) / np.mean(own))
        assert found["delta_psnr"]["mean"][h] == pytest.approx(gain, abs=1e-4)
        x, y = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        correlation = np.mean(x * y) / np.sqrt(np.mean(x * x) * np.mean(y * y))
        assert found["correlation"]["mean"][h] == pytest.approx(correlation, abs=1e-4)
    matrix = np.array(found["psnr_matrix"]["values"])
    error = np.mean((dream[:, 2, 1] / 255.0 - real[:, 0, 1] / 255.0) ** 2)
    assert found["psnr_matrix"]["step"] == 2 and matrix[0, 2] == pytest.approx(-10 * np.log10(error), abs=1e-4)
    assert found["retrieval"]["ceiling"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (ActionSpace("discrete", nvec=(3,)), [0, 1, 2]),
        (ActionSpace("discrete", nvec=(17,)), [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        (ActionSpace("multi_discrete", nvec=(2, 3)), [[0, 0], [1, 0], [0, 1], [0, 2]]),
        (
            ActionSpace("box", low=(-2.0, 1.0), high=(2.0, float("inf"))),
            [[0, 1], [-2, 1], [2, 1], [0, 1], [0, 1]],
        ),
    ],
)
def test_plans_are_actions_of_the_space(space, expected):
    names, actions = plans_of(space)
    assert len(names) == len(actions) == len(expected)
    np.testing.assert_array_equal(actions, expected)


def test_the_page_shows_chance_and_ceiling_beside_each_number(plane):
    player, situations = plane
    world: Any = OracleWorld(player, situations, player.action_space)
    found, frames = counterfactual(world, player, situations, 2, 0, {}, progress=False)
    report = {"counterfactual": found, "memory": there_and_back(world, player, situations, 0, {}, progress=False)}
    text = section(report, "data:,")
    for words in ("Does it obey?", "chance", "ceiling", "Does it remember?", "not returned"):
        assert words in text
    head, *rows = section({"memory": report["memory"]}, None).split("<tr")[1:]
    assert [row.count("<td>") for row in rows] == [head.count("<th>")] * len(report["memory"]["ways"])
    assert "east\u00a0×\u00a08, west\u00a0×\u00a08</t" in text  # a line of many legs ends between two of them
    assert len(cards(report)) == 2 and section({}, None) == "" and cards({}) == []
    picture = branches_picture(found["plans"], *frames)
    assert picture.dtype == np.uint8 and picture.shape[0] > 6 * 2 * 8
