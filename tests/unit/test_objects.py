"""Object recall: the truth that the maze tells, and what it says of dreams that know everything or no balls at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from support.mazes import FORWARD, LOOK_LEFT, LOOK_RIGHT, frame, room
from worldvq_envs.adapters import make_stream
from worldvq_envs.maze.env import MazeEnv

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.evaluation import lasting_page
from worldvq.evaluation.branches import Situation
from worldvq.evaluation.objects import SIZES, STEPS, Sight, look, object_recall, score_sights

CONTEXT = 3
MAZE = EnvConfig(id="worldvq/Maze-v0", size=(48, 48), kwargs={"num_cells": 5, "num_objects": 6, "size": (48, 48)})


def test_the_maze_draws_its_frame_without_each_ball():
    env = room(objects=((6.5, 4.5), (6.4, 4.2), (1.5, 4.5), (5.5, 3.8)), size=(48, 48))
    shown = env.frames_without_objects()
    assert shown.shape == (5, 48, 48, 3)
    np.testing.assert_array_equal(shown[0], frame(env))
    state = env.get_state()
    for ball in range(4):
        other = env.get_state()
        other["object_present"][0, ball] = False
        np.testing.assert_array_equal(shown[1 + ball], env.set_state(other))
        env.set_state(state)
    differ = (shown[1:] != shown[0]).any(-1).sum((1, 2))
    assert differ[2] == 0 and (differ[[0, 1, 3]] > 0).all()  # the third one is behind
    np.testing.assert_array_equal(frame(env), shown[0])  # nothing was collected by looking


def test_a_collected_ball_is_a_row_that_changes_nothing():
    env = room(objects=((4.5 + 0.6, 4.5), (6.9, 4.5)))
    before = env.frames_without_objects()
    assert env.step(FORWARD)[1] == 1.0
    after = env.frames_without_objects()
    assert (before[1] != before[0]).any() and len(after) == 3
    np.testing.assert_array_equal(after[1], after[0])
    assert (after[2] != after[0]).any()


def situations(stream, count=10):
    """Walks in mazes, and what follows them."""
    rng, found, futures = np.random.default_rng(0), [], []
    for seed in range(count):
        actions = rng.choice([LOOK_LEFT, LOOK_RIGHT, FORWARD], 6 + STEPS[-1])
        frames = [stream.reset(seed)]
        frames += [stream.step(action)[0] for action in actions[:6]]
        found.append(Situation(seed, seed, np.stack(frames[-CONTEXT:]), actions[:6]))
        futures.append(actions[6:])
    return found, futures


@pytest.fixture(scope="module")
def stream():
    made = make_stream(MAZE)
    yield made
    made.close()


class Dreamer:
    """Dreams and rebuilds what really happens, with balls or without any."""

    def __init__(self, stream, found, futures, balls=True):
        self.answers = {}
        for situation, future in zip(found, futures, strict=True):
            stream.reset(situation.seed)
            shown = []
            for action in [*situation.actions, *future]:
                stream.step(action)
                shown.append(self.bare(stream) if not balls else stream.frames_without_objects()[0])
            self.answers[situation.frames.tobytes()] = np.stack(shown)
        self.balls, self.first = balls, len(found[0].actions) - 1

    @staticmethod
    def bare(stream) -> np.ndarray:
        env = stream.env.unwrapped
        state = env.get_state()
        empty = env.get_state()
        empty["object_present"][:] = False
        shown = env.set_state(empty)
        env.set_state(state)
        return shown

    def imagine(self, frames, actions, **_):
        return torch.from_numpy(np.stack([self.answers[row.tobytes()][self.first + 1 :] for row in np.asarray(frames)]))

    def tokenize(self, frames):
        return frames

    def render(self, tokens):
        if self.balls:
            return torch.from_numpy(tokens)
        rows = [row[[self.first, *(self.first + step for step in STEPS)]] for row in self.answers.values()]
        return torch.from_numpy(np.stack(rows))


def numbers(value):
    """All recalls below a dict."""
    if "mean" in value:
        return [value["mean"]] if value["count"] else []
    return [mean for part in value.values() for mean in numbers(part)]


def test_who_shows_all_balls_keeps_all_and_who_shows_none_keeps_none(stream):
    found, futures = situations(stream)
    for balls in (True, False):
        world: Any = Dreamer(stream, found, futures, balls)
        report = object_recall(world, stream, found, futures, 0, {})
        assert report["frames"] == 10 * 4 and report["reconstruction"]["25 and more"]["count"] >= 5
        kept = numbers(report["reconstruction"])
        for scores in report["dream"]:
            for group in ("seen", "unseen"):
                kept += numbers(scores[group]["dream"]) + numbers(scores[group]["reconstruction"])
        assert len(kept) >= 12 and set(kept) == {float(balls)}
        assert sum(scores["seen"]["dream"]["25 and more"]["count"] for scores in report["dream"]) > 0
        assert sum(scores["unseen"]["dream"]["25 and more"]["count"] for scores in report["dream"]) > 0


def test_balls_are_those_of_the_state_and_what_the_context_showed_is_told_apart(stream):
    found, futures = situations(stream)
    everything = set()
    for row, (situation, future) in enumerate(zip(found, futures, strict=True)):
        frames, sights = look(stream, row, situation, future)
        env = make_stream(MAZE)
        env.reset(situation.seed)
        maze: Any = env.env.unwrapped
        counts = []
        for action in [*situation.actions, *future, None]:
            state, counted, whole = maze.get_state(), [], None
            for ball in range(6):
                other = maze.get_state()
                whole = maze.set_state(state).copy()
                other["object_present"][0, ball] = False
                counted.append(int((maze.set_state(other) != whole).any(-1).sum()))
                maze.set_state(state)
            counts.append(counted)
            if action is not None:
                env.step(action)
        env.close()
        table = np.array(counts)  # (frames, balls)
        context = table[len(situation.actions) - CONTEXT + 1 : len(situation.actions) + 1]
        expected = sorted(
            (step, int(table[len(situation.actions) + step, ball]), bool((context[:, ball] >= 12).any()))
            for step in (0, *STEPS)
            for ball in range(6)
            if table[len(situation.actions) + step, ball] >= 12
        )
        assert sorted((s.step, s.size, s.seen) for s in sights) == expected
        np.testing.assert_array_equal(frames[0], situation.frames[-1])
        everything |= {s.seen for s in sights if s.step}
    assert everything == {True, False}


def test_shares_are_counted_by_size():
    rng = np.random.default_rng(0)
    shape = (16, 16, 3)
    last, rebuilt, dreamt = (rng.integers(0, 256, (3, *more, *shape), dtype=np.uint8) for more in ((), (4,), (3,)))
    sights = []
    for _ in range(200):
        pixels = np.zeros(shape[:2], bool)
        pixels.flat[rng.choice(256, rng.integers(12, 100), replace=False)] = True
        colours = rng.integers(0, 256, (2, pixels.sum(), 3), dtype=np.int32)
        step, seen = int(rng.choice([0, *STEPS])), bool(rng.random() < 0.6)
        sights.append(Sight(int(rng.integers(3)), step, seen, pixels, *colours))
    found = score_sights(sights, last, rebuilt, dreamt)

    def share(chosen, frame_of, size):
        hits = []
        for s in chosen:
            low, high = {"12-24": (12, 24), "25-59": (25, 59), "60 and more": (60, 999), "25 and more": (25, 999)}[size]
            if low <= s.pixels.sum() <= high:
                values = [tuple(map(int, frame_of(s)[y, x])) for y, x in zip(*np.nonzero(s.pixels), strict=True)]
                errors = [
                    sum(
                        (a - b) ** 2
                        for value, other in zip(values, side, strict=True)
                        for a, b in zip(value, other, strict=True)
                    )
                    for side in (s.present.tolist(), s.absent.tolist())
                ]
                hits.append(errors[0] < errors[1])
        return len(hits), np.mean(hits)

    order = [0, *STEPS]
    for size in SIZES:
        value = found["reconstruction"][size]
        expected = share(sights, lambda s: rebuilt[s.row, order.index(s.step)], size)
        assert (value["count"], value["mean"]) == (expected[0], pytest.approx(expected[1]))
        assert value["ci95"][0] <= value["mean"] <= value["ci95"][1]
        for index, step in enumerate(STEPS):
            chosen = [s for s in sights if s.step == step and not s.seen]
            for key, frame_of in {
                "dream": lambda s: dreamt[s.row, STEPS.index(s.step)],
                "copy_last": lambda s: last[s.row],
            }.items():
                value = found["dream"][index]["unseen"][key][size]
                expected = share(chosen, frame_of, size)
                assert (value["count"], value["mean"]) == (expected[0], pytest.approx(expected[1]))


class Mirror(gymnasium.ObservationWrapper):
    """Changes the picture, and does not say what it looks like without its balls."""

    def observation(self, observation):
        return observation[:, ::-1]


class GoodMirror(Mirror):
    def frames_without_objects(self):
        return self.env.unwrapped.frames_without_objects()[:, :, ::-1]  # type: ignore[attr-defined]


def test_the_frames_are_fitted_as_recorded_ones_are():
    stream = make_stream(MAZE.model_copy(update={"size": (24, 24)}))
    recorded = stream.reset(3)
    shown = stream.frames_without_objects()
    assert shown.shape == (7, 24, 24, 3)
    np.testing.assert_array_equal(shown[0], recorded)
    stream.close()


def test_an_environment_without_the_method_or_with_other_frames_is_refused():
    stream = make_stream(MAZE)
    recorded = stream.reset(0)[:, ::-1].copy()
    stream.env = Mirror(stream.env)
    stream.reset(0)
    with pytest.raises(UsageError, match="where a wrapper changes the picture"):
        stream.frames_without_objects()
    stream.env = GoodMirror(stream.env.env)  # type: ignore[attr-defined]
    stream.reset(0)
    np.testing.assert_array_equal(stream.frames_without_objects()[0], recorded)
    stream.close()

    class Plain(gymnasium.Env):
        observation_space, action_space = (
            gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            gymnasium.spaces.Discrete(2),
        )

        def reset(self, *, seed=None, options=None):
            return np.zeros((8, 8, 3), np.uint8), {}

    assert not hasattr(Plain, "frames_without_objects") and hasattr(MazeEnv, "frames_without_objects")
    stream.env = Plain()
    with pytest.raises(UsageError, match=r"has no method frames_without_objects\(\).*docs/your_environment.md"):
        stream.frames_without_objects()


def test_the_page_shows_how_many_and_the_ceiling(stream):
    found, futures = situations(stream)
    world: Any = Dreamer(stream, found, futures)
    report = {"objects": object_recall(world, stream, found, futures, 0, {})}
    text = lasting_page.section(report, [], None)
    for words in ("Does it keep what is there?", "frame 8, seen before: dreamt", "ceiling", "never seen", " of "):
        assert words in text
    assert "kept in reconstructions" in lasting_page.cards(report)[0][1]
    assert SimpleNamespace(**report["objects"]).situations == 10
