"""Dreams of hundreds of frames: every number against brute force, on worlds that last, fade and stand still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.episodes import write

from worldvq.data.clips import heldout_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation import lasting_page, long_dreams, metrics
from worldvq.evaluation.long_dreams import STEPS, WINDOW, Pool, draw_pool, nearest
from worldvq.types import ActionSpace, Episode

SPACE = ActionSpace("discrete", nvec=(3,))
SIZE, CONTEXT, COUNT = 16, 2, 3


def draw(position: int) -> np.ndarray:
    """A column of light at the position (mod 16), over a ramp."""
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    frame[...] = 6 * np.arange(SIZE)[:, None, None]
    frame[:, int(position) % SIZE] = 250
    return frame


class Walk:
    """One token a frame: the position of the light, or from 16 on noise of that number; dreams go where actions say."""

    frame_size, action_space = (SIZE, SIZE), SPACE

    def __init__(self, after: int = 10**9):
        self.after = after
        self.taken: list[np.ndarray] = []
        """Actions that were dreamt of."""

    def tokenize(self, frames, sounds=None):
        return frames[..., 0, :, 0].argmax(-1)[..., None, None]

    def render(self, tokens):
        frames = [draw(token) if token < SIZE else self.noise(token) for token in tokens.flatten().tolist()]
        return torch.from_numpy(np.stack(frames)).unflatten(0, tokens.shape[:2])

    def noise(self, token: int) -> np.ndarray:
        return np.random.default_rng(token).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def imagine_tokens(self, tokens, actions, seed, row_seeds, **sampling):
        self.taken += list(actions.numpy())
        steps = (actions[:, tokens.shape[1] - 1 :] - 1).cumsum(1)
        imagined = (tokens[:, -1:, 0, 0] + steps) % SIZE
        imagined[:, self.after :] = SIZE + torch.arange(imagined[:, self.after :].shape[1])
        return SimpleNamespace(tokens=imagined[..., None, None])

    def score(self, clip, context):
        """Sure where the light goes, at a loss else; what happened has to be what the actions say."""
        nats = torch.zeros(clip.tokens[:, context:].shape)
        expected = (clip.tokens[:, :-1, 0, 0] + clip.actions[:, :-1] - 1) % SIZE
        wrong = (clip.tokens[:, 1:, 0, 0] != expected)[:, context - 1 :]
        return SimpleNamespace(nats=nats + wrong[..., None, None])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng, episodes = np.random.default_rng(0), []
    for number in range(6):
        actions = rng.integers(0, 3, 40)
        frames = np.stack([draw(p) for p in np.concatenate([[number], number + np.cumsum(actions - 1)])])
        episodes.append(Episode(frames, actions, np.zeros(40, np.float32), terminated=False, truncated=True))
    written = write(tmp_path_factory.mktemp("long") / "data", SPACE, episodes, heldout_every=2)
    yield written
    written.close()


@pytest.fixture(autouse=True)
def features(monkeypatch):
    """A few pixels instead of EfficientNet-Lite0's features, which take seconds."""
    monkeypatch.setattr(
        metrics, "efflite0_features", lambda frames: np.asarray(frames)[:, :3, ::4, 0].reshape(-1, 12) / 9
    )


def dream(store, world, seed=0):
    return long_dreams.long_dreams(world, store, COUNT, CONTEXT, seed, {}, batch_size=2)


def test_the_nearest_frame_of_another_episode_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    frames, episodes = rng.integers(0, 256, (9, 5, 4, 3), dtype=np.uint8), rng.integers(0, 3, 9)
    others = np.concatenate([frames, rng.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)])
    pool = Pool(others, np.concatenate([episodes, rng.integers(0, 3, 20)]))
    found = nearest(frames, episodes, pool, chunk=7)
    for row, frame in enumerate(frames):
        errors = [
            np.inf if pool.episodes[k] == episodes[row] else ((frame / 255.0 - other / 255.0) ** 2).sum()
            for k, other in enumerate(others)
        ]
        assert found[row] == np.argmin(errors)  # itself does not count: it is of its own episode


def test_the_pool_holds_different_frames_of_all_episodes(store, monkeypatch):
    pool = draw_pool(store, 0)
    assert len(pool.frames) == 6 * 41 and np.bincount(pool.episodes).tolist() == [41] * 6
    for number in range(6):
        drawn = pool.frames[pool.episodes == number]
        assert sorted(map(bytes, drawn)) == sorted(map(bytes, store.read(number).frames))
    monkeypatch.setattr(long_dreams, "POOL_EPISODES", 2)
    assert np.count_nonzero(np.bincount(draw_pool(store, 0).episodes)) == 2
    monkeypatch.undo()
    monkeypatch.setattr(long_dreams, "POOL", 50)
    assert np.array_equal(draw_pool(store, 0).frames, pool.frames[:50])
    assert not np.array_equal(draw_pool(store, 1).frames, pool.frames[:50])


def test_a_dream_takes_the_recorded_actions_and_then_those_of_other_held_out_episodes(store):
    world: Any = Walk()
    report, _ = dream(store, world)
    ids = heldout_clips(store, COUNT, CONTEXT + WINDOW, 0)
    others = [store.read(number).actions for number in (1, 3, 5)]
    for taken, (number, start) in zip(world.taken, ids.tolist(), strict=True):
        assert len(taken) == CONTEXT + 300 - 1
        own = store.read(number).actions[start:]
        np.testing.assert_array_equal(taken[: len(own)], own)
        for first in range(len(own), len(taken) - 40, 40):
            assert any(np.array_equal(taken[first : first + 40], other) for other in others)
        assert not np.array_equal(taken[len(own) : len(own) + 40], store.read(number).actions)
    assert report["borrowed_actions"] == pytest.approx(1 - np.mean(40 - ids[:, 1]) / 301)


@pytest.mark.parametrize("after", [10**9, 60], ids=["lasts", "fades"])
def test_the_numbers_are_those_of_brute_force(store, after):
    world: Any = Walk(after)
    report, frames = dream(store, world)
    ids, pool = heldout_clips(store, COUNT, CONTEXT + WINDOW, 0), draw_pool(store, 0)
    assert (report["dreams"], report["steps"], report["pool_frames"]) == (COUNT, list(STEPS), 246)
    scores = []
    for step, found in zip(STEPS, report["dream"], strict=True):
        ssim, bits, motion, nats = [], [], [], []
        for (number, start), taken in zip(ids.tolist(), world.taken, strict=True):
            light = store.read(number).frames[start + CONTEXT - 1, 0, :, 0].argmax()
            moves = np.cumsum(taken[CONTEXT - 1 :] - 1)[step - WINDOW : step]
            codes = [
                SIZE + i - after if i >= after else (light + m) % SIZE
                for i, m in zip(range(step - 10, step), moves, strict=True)
            ]
            shown = [draw(code) if code < SIZE else world.noise(code) for code in codes]
            others = pool.frames[pool.episodes != number]
            for frame in shown:
                errors = np.square(others.astype(float) - frame).sum((1, 2, 3))
                ssim.append(metrics.ssim(frame[None], others[[errors.argmin()]])[0])
            shares = np.unique(codes, return_counts=True)[1] / WINDOW
            bits.append(-(shares * np.log2(shares)).sum())
            motion.append(np.abs(np.diff(np.stack(shown).astype(float), axis=0)).mean())
            nats.append(np.mean([code >= SIZE for code in codes]))
        assert found["ssim"]["mean"] == pytest.approx(np.mean(ssim), abs=1e-5)
        assert found["entropy"]["mean"] == pytest.approx(np.mean(bits))
        assert found["motion"]["mean"] == pytest.approx(np.mean(motion))
        assert found["nats"]["mean"] == pytest.approx(np.mean(nats))
        scores.append(np.mean(ssim))
    assert report["drift"]["mean"] == pytest.approx(1 - scores[-1] / scores[0], abs=1e-5)
    low, high = report["drift"]["ci95"]
    assert low - 1e-9 <= report["drift"]["mean"] <= high + 1e-9
    assert (report["drift"]["mean"] > 0.5) == (after == 60)
    assert frames.shape == (COUNT, 6, SIZE, SIZE, 3)
    for row, (number, start) in enumerate(ids.tolist()):
        np.testing.assert_array_equal(frames[row, 0], store.read(number).frames[start + CONTEXT - 1])


def test_real_frames_stand_beside_it(store):
    world: Any = Walk()
    report, _ = dream(store, world)
    assert report["real"]["ssim"] == report["reconstruction"]["ssim"]  # this tokenizer loses nothing
    assert report["real"]["motion"]["mean"] == pytest.approx(report["dream"][0]["motion"]["mean"])  # same actions
    assert report["real"]["ssim"]["mean"] == pytest.approx(report["dream"][0]["ssim"]["mean"])


def test_frechet_distances_are_those_of_the_windows(store, monkeypatch):
    monkeypatch.setattr(long_dreams, "REFERENCE", 100)
    world: Any = Walk(60)
    found, _ = dream(store, world)
    reference = metrics.efflite0_features(draw_pool(store, 0).frames[:100])
    ids = heldout_clips(store, COUNT, CONTEXT + WINDOW, 0)
    real = [store.read(n).frames[s + CONTEXT : s + CONTEXT + WINDOW] for n, s in ids.tolist()]
    features = metrics.efflite0_features(np.concatenate(real))
    value = found["real"]["fd_efflite0"]
    assert value["mean"] == pytest.approx(metrics.frechet_distance(features, reference))
    without = [np.delete(features.reshape(COUNT, WINDOW, 12), row, 0).reshape(-1, 12) for row in range(COUNT)]
    left = np.array([metrics.frechet_distance(rows, reference) for rows in without])
    error = np.sqrt((COUNT - 1) / COUNT * np.square(left - left.mean()).sum())  # Efron & Tibshirani 1993, eq. 11.5
    assert value["ci95"][1] - value["mean"] == pytest.approx(1.96 * error)
    assert found["dream"][3]["fd_efflite0"]["mean"] > 2 * found["dream"][0]["fd_efflite0"]["mean"]


def test_the_page_shows_drift_beside_real_frames(store):
    world: Any = Walk(60)
    report, frames = dream(store, world)
    text = lasting_page.section({"long": report}, ["data:,"], "data:,")
    for words in ("Does it last?", "frame 300", "real, tokenizer", "246 real frames of other episodes", "Drift"):
        assert words in text
    assert len(lasting_page.cards({"long": report})) == 1
    assert set(lasting_page.figures({"long": report})) >= {"long_ssim", "long_entropy", "long_nats"}
    picture = lasting_page.dreams_picture(frames)
    assert picture.dtype == np.uint8 and picture.shape[0] > 3 * SIZE and picture.shape[1] > 6 * SIZE
    assert lasting_page.section({}, [], None) == "" and lasting_page.cards({}) == [] and not lasting_page.figures({})


def test_one_episode_is_too_few(tmp_path):
    frames = np.stack([draw(p) for p in range(21)])
    episode = Episode(frames, np.full(20, 2), np.zeros(20, np.float32), terminated=False, truncated=True)
    write(tmp_path / "data", SPACE, [episode], heldout_every=1).close()
    with EpisodeStore.open(tmp_path / "data") as store, pytest.raises(UsageError, match="one episode"):
        dream(store, Walk())
