"""What a dream begins from is heard as well as seen, wherever it comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.episodes import make_episode, make_meta
from support.heard import RATE, SAMPLES, make_heard_world, make_sounds, write_store
from support.worlds import HEIGHT, SPACES, WIDTH, make_actions, make_frames
from worldvq_envs.dream import DreamEnv, DreamVectorEnv

from worldvq.config.env import SoundFormat
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation.branches import find_situations
from worldvq.evaluation.counterfactual import imagine_branches
from worldvq.evaluation.likelihood import measure_likelihood
from worldvq.play.starts import Openings, find_starts
from worldvq.world.model import WorldModel

CONTEXT = 3


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return make_heard_world()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    return write_store(tmp_path_factory.mktemp("heard") / "data", 14, SPACES["discrete"])


class Replay:
    """Plays the one held-out episode again, whatever is done."""

    has_frame = True

    def __init__(self, store: EpisodeStore):
        self.episode = store.read(1)

    def reset(self, seed):
        self.now = 0
        return self.episode.frames[0]

    def step(self, action):
        self.now += 1
        return self.episode.frames[self.now], 0.0, False, False


def heard_with(store, frames):
    """What was heard before each of the frames (C, H, W, 3) of the held-out episode, looked up frame by frame."""
    episode = store.read(1)
    rows = []
    for frame in np.asarray(frames):
        (place,) = np.flatnonzero((episode.frames == frame).all((1, 2, 3)))
        rows.append(np.zeros(SAMPLES, np.int16) if place == 0 else episode.sounds[place - 1])
    return np.stack(rows)


def test_a_dream_begins_with_what_is_given(world):
    frames, sounds, actions = make_frames(2, CONTEXT), make_sounds(2, CONTEXT), make_actions("discrete", 2, 4)
    tokens = world.tokenize(frames, sounds)
    assert not torch.equal(tokens, world.tokenize(frames))
    expected = world.render(world.imagine_tokens(tokens, actions, 5).tokens)
    assert torch.equal(world.imagine(frames, actions, 5, sounds=sounds), expected)
    dream = world.start(frames, actions[:, :2], 5, sounds=sounds)
    assert torch.equal(dream.tokens, tokens[:, -1])
    dream.reset([1], frames[:1], actions[:1, :2], sounds=sounds[:1])
    assert torch.equal(dream.tokens, torch.stack([tokens[0, -1]] * 2))
    dream.reset([1], frames[:1], actions[:1, :2])
    assert torch.equal(dream.tokens[1], world.tokenize(frames[:1])[0, -1])


@pytest.mark.parametrize("format_", [(RATE, SAMPLES // 2), (2 * RATE, SAMPLES)])
def test_a_dataset_of_another_sound_is_refused_before_anything_is_played(world, tmp_path, format_):
    rate, samples = format_
    meta = make_meta(size=(HEIGHT, WIDTH), sound=SoundFormat(rate=rate, samples=samples), heldout_every=1)
    meta = meta.model_copy(update={"action_space": SPACES["discrete"].to_json()})
    with EpisodeStore.create(tmp_path / "other", meta) as store:
        store.commit(0, make_episode(0, 9, size=(HEIGHT, WIDTH), samples=samples))
    with pytest.raises(UsageError, match=r"sound\.(rate|samples): the dataset has \d+, the world expects \d+"):
        DreamEnv(world, data=tmp_path / "other", context=CONTEXT)


def test_rows_that_begin_again_hear_their_contexts(world, store):
    envs = DreamVectorEnv(num_envs=2, world=world, data=store, context=CONTEXT, info=("tokens",))
    envs.reset(seed=0)
    frames, actions = make_frames(1, CONTEXT), make_actions("discrete", 1, CONTEXT - 1).numpy()
    sounds = make_sounds(1, CONTEXT)
    given = {"frames": frames.numpy(), "actions": actions, "sounds": sounds.numpy()}
    _, info = envs.reset(options={"reset_mask": np.array([False, True]), **given})
    np.testing.assert_array_equal(info["tokens"][1], world.tokenize(frames, sounds)[0, -1])


def test_the_likelihood_of_frames_is_given_what_is_heard(world, store, monkeypatch):
    asked, score = [], WorldModel.score

    def spied(self, clip, context):
        asked.append(clip.tokens)
        return score(self, clip, context)

    monkeypatch.setattr(WorldModel, "score", spied)
    found = measure_likelihood(world, store.path, clips=1, seed=0)
    assert found.num_frames and "the dynamics, given the past" in found.priors
    assert asked[0].shape[2:] == world.dynamics.grid


def test_an_environment_hears_its_contexts(world, store, monkeypatch):
    seen = []
    whole = WorldModel.tokenize

    def tokenize(self, frames, sounds=None):
        seen.append((np.asarray(frames)[0], np.asarray(sounds)[0]))
        return whole(self, frames, sounds)

    monkeypatch.setattr(WorldModel, "tokenize", tokenize)
    env = DreamEnv(world, data=store, context=CONTEXT)
    env.reset(seed=0)
    frames, sounds = seen[-1]
    np.testing.assert_array_equal(sounds, heard_with(store, frames))
    given = {"frames": frames, "actions": make_actions("discrete", 1, CONTEXT - 1)[0], "sounds": sounds[::-1]}
    env.reset(options=given)
    np.testing.assert_array_equal(seen[-1][1], sounds[::-1])


def test_situations_are_heard_and_the_way_there_is_silent(world, store):
    situations = find_situations(store, Replay(store), CONTEXT, 3, seed=0)
    for situation in situations:
        np.testing.assert_array_equal(situation.sounds, heard_with(store, situation.frames))
    plans = [np.zeros(4, np.int64)] * len(situations)
    given = (world, situations, plans, np.arange(len(situations)), 0, {}, 2)
    frames, sounds = (np.stack([getattr(s, name) for s in situations]) for name in ("frames", "sounds"))
    actions = np.stack([np.concatenate([s.between, plan]) for s, plan in zip(situations, plans, strict=True)])
    rows = np.arange(len(situations))
    expected = world.imagine(frames, actions, 0, rows, sounds=sounds)
    assert np.array_equal(imagine_branches(*given), expected)
    shown = list(make_frames(len(rows), 2).numpy())
    silence = np.zeros((len(rows), 2, SAMPLES), np.int16)
    longer = np.concatenate([frames, np.stack(shown)], 1), np.concatenate([sounds, silence], 1)
    expected = world.imagine(longer[0], actions, 0, rows, sounds=longer[1])
    assert np.array_equal(imagine_branches(*given, shown=shown), expected) and expected.shape[1] == 2


def test_a_player_begins_where_something_was_heard(world, store):
    starts = find_starts(store, CONTEXT, 8)
    for number, start in enumerate(starts):
        np.testing.assert_array_equal(start.sounds, heard_with(store, start.frames))
        dream, _ = Openings(world, starts).begin(number, 0)
        assert torch.equal(dream.tokens[0], world.tokenize(start.frames[None], start.sounds[None])[0, -1])
