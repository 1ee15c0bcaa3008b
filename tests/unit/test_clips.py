"""Clips: aligned, masked, uniform, and a pure function of (seed, step)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.episodes import write

from worldvq.data.clips import ClipSampler, heldout_clips, read_clips, spread_by_change
from worldvq.data.episodes import EpisodeStore
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import CorruptFileError, UsageError
from worldvq.types import ActionSpace, Clip, Episode, TokenClip

ENDS = ("terminated", "truncated", "interrupted")


def telling_episode(number: int, length: int, end: str) -> Episode:
    """Every frame tells in its pixels which episode and frame it is and which action led into it."""
    actions = np.random.default_rng(number).integers(0, 7, length - 1)
    frames = np.zeros((length, 4, 4, 3), np.uint8)
    frames[..., 0] = number
    frames[..., 1] = np.arange(length)[:, None, None]
    frames[1:, ..., 2] = actions[:, None, None]
    rewards = (100 * number + np.arange(length - 1)).astype(np.float32)
    return Episode(frames, actions, rewards, **({"terminated": False, "truncated": False} | {end: True}))


def make_store(path: Path, lengths: list[int], compression: str = "none", heldout_every: int = 5) -> EpisodeStore:
    episodes = (telling_episode(number, length, ENDS[number % 3]) for number, length in enumerate(lengths))
    return write(path, ActionSpace("discrete", (7,)), episodes, heldout_every=heldout_every, compression=compression)


def make_tokens(path: Path, store: EpisodeStore) -> TokenStore:
    meta = TokenMeta(tokenizer_hash="abc", dataset=store.meta, num_codes=256, grid=(2, 2))
    with TokenStore.create(path, meta) as tokens:
        for number in store.numbers():
            episode = store.read(number)
            tokens.write(number, episode.frames[:, :2, :2, 1], episode)
    return TokenStore.open(path)


LENGTHS = [40, 3, 17, 16, 2, 25, 60, 16, 33, 21]


@pytest.fixture(scope="module", params=["none", "zstd"])
def store(request, tmp_path_factory) -> EpisodeStore:
    return make_store(tmp_path_factory.mktemp("clips") / "d", LENGTHS, request.param)


def check_alignment(clip: Clip, ids: np.ndarray, lengths: list[int]) -> None:
    for row, (number, start) in enumerate(ids.tolist()):
        end = ENDS[number % 3]
        for t in range(clip.frames.shape[1]):
            frame, index, length = clip.frames[row, t], start + t, lengths[number]
            assert bool(clip.mask[row, t]) == (index < length)
            assert bool(clip.action_mask[row, t]) == (index < length - 1)
            last = index == length - 2
            assert bool(clip.terminated[row, t]) == (last and end == "terminated")
            if index >= length:
                assert not frame.any()
            else:
                assert frame[..., 0].unique().tolist() == [number] and frame[..., 1].unique().tolist() == [index]
            if index >= length - 1:
                assert clip.actions[row, t] == 0 and clip.rewards[row, t] == 0
            else:
                assert clip.rewards[row, t] == 100 * number + index
                if t + 1 < clip.frames.shape[1]:  # the action of frame t is seen in frame t + 1
                    assert clip.frames[row, t + 1, 0, 0, 2] == clip.actions[row, t]


@pytest.mark.parametrize("clip_frames", [1, 2, 16, 50])
@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_clips_are_aligned(store, split, clip_frames):
    sampler = ClipSampler(store, split, clip_frames, 32, seed=3)
    for step in range(3):
        clip, ids = sampler.batch(step), sampler.ids(step)
        assert isinstance(clip, Clip) and clip.frames.shape == (32, clip_frames, 4, 4, 3)
        assert clip.frames.dtype == torch.uint8 and clip.actions.dtype == torch.int64
        assert set(ids[:, 0].tolist()) <= set(store.numbers(split))
        check_alignment(clip, ids, LENGTHS)


def test_action_kinds_keep_shape_and_dtype(tmp_path):
    space = ActionSpace("box", low=(-1.0, -1.0), high=(1.0, 1.0))
    actions = np.arange(18, dtype=np.float32).reshape(9, 2)
    episode = Episode(np.zeros((10, 4, 4, 3), np.uint8), actions, np.zeros(9, np.float32), True, False)
    clip = read_clips(write(tmp_path / "d", space, [episode]), np.array([[0, 6]]), 5)
    assert clip.actions.shape == (1, 5, 2) and clip.actions.dtype == torch.float32
    np.testing.assert_array_equal(clip.actions[0], [[12, 13], [14, 15], [16, 17], [0, 0], [0, 0]])
    assert clip.terminated[0].tolist() == [False, False, True, False, False]


def test_every_window_is_equally_likely(store):
    lengths = {number: LENGTHS[number] for number in store.numbers("train")}
    sampler = ClipSampler(store, "train", 16, 500, seed=0)
    expected = {(n, s) for n, length in lengths.items() for s in range(max(length - 15, 1))}
    drawn = np.concatenate([sampler.ids(step) for step in range(100)])
    windows, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(window) for window in windows.tolist()} == expected
    assert sampler.num_windows == len(expected)
    mean = len(drawn) / len(expected)
    assert ((counts - mean) ** 2 / mean).sum() < 1.5 * len(expected)  # chi-squared


def test_single_frames_are_uniform_over_all_frames(store):
    assert ClipSampler(store, "all", 1, 8, seed=0).num_windows == sum(LENGTHS)


def test_a_step_is_a_pure_function_of_the_seed(store):
    one, other = (ClipSampler(store, "train", 4, 16, seed=5) for _ in range(2))
    in_order = [one.ids(step) for step in range(20)]
    for step in np.random.default_rng(0).permutation(20):
        np.testing.assert_array_equal(other.ids(int(step)), in_order[step])
    assert len({ids.tobytes() for ids in in_order}) == 20
    assert (ClipSampler(store, "train", 4, 16, seed=6).ids(0) != in_order[0]).any()
    # Written down, so that no change of library or code changes a run that is resumed.
    assert in_order[7][:3].tolist() == [[6, 25], [5, 17], [6, 50]]


def test_ranks_take_slices_of_one_batch(store):
    sampler = ClipSampler(store, "train", 4, 12, seed=1)
    whole = sampler.batch(9)
    for world in (1, 2, 3, 4, 12):
        parts = [sampler.batch(9, rank, world) for rank in range(world)]
        for name in ("frames", "actions", "rewards", "terminated", "mask", "action_mask"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    with pytest.raises(UsageError, match="batch_size 12 is not divisible by 5 processes"):
        sampler.batch(0, 0, 5)


def test_compressed_and_plain_clips_are_equal(tmp_path):
    plain, packed = (make_store(tmp_path / kind, LENGTHS, kind) for kind in ("none", "zstd"))
    for clip_frames in (1, 7, 16, 40):
        a, b = (ClipSampler(store, "all", clip_frames, 64, seed=2).batch(0) for store in (plain, packed))
        assert isinstance(a, Clip) and isinstance(b, Clip)
        assert torch.equal(a.frames, b.frames) and torch.equal(a.actions, b.actions)


def test_token_clips_follow_the_frames(tmp_path):
    store = make_store(tmp_path / "d", LENGTHS)
    tokens = make_tokens(tmp_path / "t", store)
    frame_sampler, sampler = (ClipSampler(s, "train", 18, 16, seed=4) for s in (store, tokens))
    clip, frames = sampler.batch(3), frame_sampler.batch(3)
    assert isinstance(clip, TokenClip) and isinstance(frames, Clip)
    assert clip.tokens.dtype == torch.int64 and clip.tokens.shape == (16, 18, 2, 2)
    assert torch.equal(clip.tokens, frames.frames[:, :, :2, :2, 1].long())
    for name in ("actions", "rewards", "terminated", "mask", "action_mask"):
        assert torch.equal(getattr(clip, name), getattr(frames, name))
    np.testing.assert_array_equal(heldout_clips(tokens, 5, 4, 0), heldout_clips(store, 5, 4, 0))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    num_clips=st.integers(1, 60),
    clip_frames=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_heldout_windows(tmp_path_factory, lengths, num_clips, clip_frames, seed):
    store = make_store(tmp_path_factory.mktemp("h") / "d", lengths, heldout_every=2)
    heldout = store.numbers("heldout")
    if max(lengths[number] for number in heldout) < clip_frames:
        with pytest.raises(UsageError, match="longest"):
            heldout_clips(store, num_clips, clip_frames, seed)
        return
    ids = heldout_clips(store, num_clips, clip_frames, seed)
    np.testing.assert_array_equal(ids, heldout_clips(store, num_clips, clip_frames, seed))
    num_windows = sum(max(lengths[number] - clip_frames + 1, 0) for number in heldout)
    num_apart = sum(lengths[number] // clip_frames for number in heldout)
    assert len(ids) == min(num_clips, num_windows) == len({tuple(row) for row in ids.tolist()})
    assert read_clips(store, ids, clip_frames).mask.all() and set(ids[:, 0].tolist()) <= set(heldout)
    if num_apart >= num_clips:
        for number in heldout:
            starts = np.sort(ids[ids[:, 0] == number, 1])
            assert (np.diff(starts) >= clip_frames).all()


def test_heldout_windows_spread_over_episodes(tmp_path):
    store = make_store(tmp_path / "d", [30] * 20, heldout_every=2)
    ids = heldout_clips(store, 10, 10, seed=0)
    assert sorted(ids[:, 0].tolist()) == store.numbers("heldout")


def test_what_cannot_be_drawn_is_said(tmp_path):
    store = make_store(tmp_path / "d", [30, 12], heldout_every=2)
    with pytest.raises(UsageError, match=r"has 16 frames, the longest \(episode 1\) has 12: set context"):
        heldout_clips(store, 4, 16)
    with pytest.raises(UsageError, match="no held-out episodes"):
        heldout_clips(make_store(tmp_path / "e", [30]), 4, 4)
    with pytest.raises(UsageError, match="no train episodes"):
        ClipSampler(make_store(tmp_path / "f", [30], heldout_every=1), "train", 4, 4, 0)
    with pytest.raises(UsageError, match="got 0, 4, 0"):
        ClipSampler(store, "train", 0, 4, 0)
    with pytest.raises(UsageError, match="there is no frame 30"):
        read_clips(store, np.array([[0, 30]]), 4)
    (store.path / store.entries[0].file).unlink()
    with pytest.raises(CorruptFileError, match="000000"):
        ClipSampler(EpisodeStore.open(store.path), "train", 4, 4, 0).batch(0)


def test_clips_that_are_shown_are_spread_over_how_much_changes(tmp_path):
    """Of eight clips, the upper ones of the four pairs of neighbours in how much they change, whatever their order."""
    steps = [3, 0, 7, 1, 6, 2, 5, 4]  # how much the frames of an episode change at every step
    episodes = []
    for step in steps:
        frames = (100 + step * (np.arange(6) % 2))[:, None, None, None] * np.ones((1, 4, 4, 3))
        episodes.append(Episode(frames.astype(np.uint8), np.zeros(5, np.int64), np.zeros(5, np.float32), False, True))
    store = write(tmp_path / "d", ActionSpace("discrete", (2,)), episodes)
    ids = np.array([(number, 1) for number in range(8)])
    assert [steps[row] for row in spread_by_change(store, ids, 5, 4)] == [7, 5, 3, 1]
    assert [steps[row] for row in spread_by_change(store, ids, 5, 1)] == [4]
    assert [steps[row] for row in spread_by_change(store, ids, 5, 99)] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert spread_by_change(store, ids, 1, 2).tolist() == [1, 5]  # nothing can change: spread over the clips
