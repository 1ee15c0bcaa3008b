"""Several stores as one: what a single one gives is untouched, and of several every frame comes from where it says."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.episodes import SPACES, make_episode, write

from worldvq.config.env import EnvConfig
from worldvq.data.clips import ClipSampler
from worldvq.data.episodes import EpisodeStore
from worldvq.data.joined import MAX_CLASSES, JoinedSampler, LabelledSampler, classes_of
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import UsageError
from worldvq.training.loop import _not_finite

KINDS = ("discrete", "box", "multi_discrete")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Of actions that nothing has in common, and of different sizes."""
    root, made = tmp_path_factory.mktemp("joined"), []
    for number, kind in enumerate(KINDS):
        episodes = [make_episode(10 * number + i, 5 * number + 3 + i, kind) for i in range(4)]
        made.append(write(root / kind, SPACES[kind], episodes, env=EnvConfig(id=f"{kind}-v0", size=(6, 8))))
    return made


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 6))
def test_of_one_store_nothing_changes(stores, seed, step, clip_frames):
    for store in stores:
        one = ClipSampler(store, "train", clip_frames, 8, seed)
        joined = JoinedSampler([store], "train", clip_frames, 8, seed)
        np.testing.assert_array_equal(joined.ids(step), one.ids(step))
        for a, b in zip(*(vars(sampler.batch(step, 1, 2)).values() for sampler in (one, joined)), strict=True):
            assert a is b is None or torch.equal(a, b)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 6))
def test_every_row_is_the_window_that_its_ids_name(stores, seed, step, clip_frames):
    sampler = JoinedSampler(stores, "train", clip_frames, 8, seed)
    ids, clip = sampler.ids(step), sampler.batch(step)
    for row, (number, episode, start) in enumerate(ids.tolist()):
        assert episode in stores[number].numbers("train")
        frames = stores[number].frames(episode)[start : start + clip_frames]
        np.testing.assert_array_equal(clip.frames[row, : len(frames)], frames)
        assert clip.mask[row].sum() == len(frames) and not clip.frames[row, len(frames) :].any()
        rewards = stores[number].read(episode).rewards[start : start + clip_frames]
        np.testing.assert_array_equal(clip.rewards[row, : len(rewards)], rewards)
    assert clip.actions.shape == clip.mask.shape and not clip.actions.any()
    parts = [sampler.batch(step, rank, 4) for rank in range(4)]
    assert clip.sounds is None
    for field in dataclasses.fields(clip)[:-1]:
        assert torch.equal(torch.cat([getattr(part, field.name) for part in parts]), getattr(clip, field.name))


def test_every_window_of_all_is_equally_likely(stores):
    sampler = JoinedSampler(stores, "train", 2, 64, 3)
    windows = [
        (number, n, start)
        for number, store in enumerate(stores)
        for n in store.numbers("train")
        for start in range(store.entry(n).num_frames - 1)
    ]
    assert sampler.num_windows == len(windows)
    drawn = np.concatenate([sampler.ids(step) for step in range(300)])
    counts = np.array([(drawn == window).all(1).sum() for window in windows])
    assert counts.sum() == len(drawn)
    expected = len(drawn) / len(windows)
    assert np.square(counts - expected).sum() / expected < 2 * len(windows)  # chi squared


def tokens_of(store, folder, **labels):
    meta = TokenMeta(tokenizer_hash="f" * 64, dataset=store.meta, num_codes=512, grid=(2, 3))
    with TokenStore.create(folder, meta) as made:
        for number in store.numbers():
            episode = store.read(number)
            label = labels.get(f"n{number}")
            episode = dataclasses.replace(episode, meta={"label": label} if label else {})
            tokens = np.random.default_rng(number).integers(0, 512, (len(episode.frames), 2, 3))
            made.write(number, tokens, episode)
    return TokenStore.open(folder)


def test_a_grid_has_the_class_of_its_episode_else_of_its_environment(stores, tmp_path):
    given = {"n0": "cat", "n2": "dog"}
    tokens = [tokens_of(store, tmp_path / str(i), **(given if i == 1 else {})) for i, store in enumerate(stores)]
    classes = classes_of(tokens)
    assert classes == ("box-v0", "cat", "discrete-v0", "dog", "multi_discrete-v0")
    assert classes_of(tokens[1:2]) == ("box-v0", "cat", "dog")
    sampler, seen = LabelledSampler(tokens, "train", 16, 0, classes), set()
    for step in range(5):
        ids, images = sampler.ids(step), sampler.batch(step)
        for row, (number, episode, start) in enumerate(ids.tolist()):
            label = given.get(f"n{episode}") if number == 1 else None
            assert classes[images.labels[row]] == (label or f"{KINDS[number]}-v0")
            np.testing.assert_array_equal(images.tokens[row], tokens[number].read(episode)["tokens"][start])
            seen.add(int(images.labels[row]))
        halves = [sampler.batch(step, rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat([half.labels for half in halves]), images.labels)
    assert seen == {1, 2, 3, 4}  # both episodes that are trained on have a label of their own
    alone = LabelledSampler(tokens[1:2], "train", 16, 0, ("all",)).batch(0)
    assert alone.tokens.shape == (16, 2, 3) and not alone.labels.any()


def test_an_empty_split_and_too_many_classes_are_refused(stores, tmp_path):
    with EpisodeStore.create(tmp_path / "empty", stores[0].meta) as empty, pytest.raises(UsageError, match="no train"):
        JoinedSampler([stores[0], empty], "train", 1, 8, 0)

    class Many:
        path = tmp_path

        def numbers(self):
            return range(MAX_CLASSES + 1)

        def label(self, number):
            return str(number)

    with pytest.raises(UsageError, match=r"2,049 different labels, at most 2,048 .*prior.classes=false"):
        classes_of([Many()])  # type: ignore[list-item]


def test_a_loss_that_is_not_finite_names_the_store_too():
    assert "(episode:first frame): 3:7;" in _not_finite(1, 0.0, 0.0, np.array([[3, 7]]))
    assert "(dataset:episode:first frame): 1:3:7;" in _not_finite(1, 0.0, 0.0, np.array([[1, 3, 7]]))
