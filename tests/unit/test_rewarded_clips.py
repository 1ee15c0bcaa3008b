"""Clips that hold a reward are drawn more often, by a known factor, and weigh less by the same."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.episodes import write

from worldvq.data.clips import ClipSampler, RewardedClipSampler
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import CorruptFileError
from worldvq.types import ActionSpace, Episode, TokenClip


def store_of(folder, rewards: list[list[float]]) -> TokenStore:
    """Tokens of training episodes with these rewards."""
    episodes = [
        Episode(
            np.zeros((len(row) + 1, 4, 4, 3), np.uint8),
            np.zeros(len(row), np.int64),
            np.array(row, np.float32),
            terminated=False,
            truncated=True,
        )
        for row in rewards
    ]
    dataset = write(folder / "frames", ActionSpace("discrete", (7,)), episodes, heldout_every=100).meta
    meta = TokenMeta(tokenizer_hash="abc", dataset=dataset, num_codes=8, grid=(1, 2))
    with TokenStore.create(folder / "tokens", meta) as store:
        for number, episode in enumerate(episodes):
            store.write(number, np.zeros((len(episode.frames), 1, 2), np.int64), episode)
    return TokenStore.open(folder / "tokens")


def windows(rewards: list[list[float]], clip_frames: int) -> dict[tuple[int, int], bool]:
    """Every window, and whether one of its transitions, that out of its last frame included, paid something."""
    return {
        (number, start): any(row[start : start + clip_frames])
        for number, row in enumerate(rewards)
        for start in range(max(len(row) + 2 - clip_frames, 1))
    }


def mixture(held: dict[tuple[int, int], bool], fraction: float) -> dict[tuple[int, int], float]:
    """Probability of every window."""
    rewarded = sum(held.values())
    fraction = fraction if rewarded else 0
    return {w: (1 - fraction) / len(held) + (fraction / rewarded if paid else 0) for w, paid in held.items()}


REWARDS = [
    [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    [0] * 30,
    [0.5, 0, 0],  # shorter than a window
    [1, -1, *[0] * 18],  # they add up to nothing
    [*[0] * 20, 3],
    [0, 0],
]
CLIP = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("rewarded"), REWARDS)


def draw(sampler, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n, 2) and weights (n,) of many batches."""
    batches = [sampler.batch(step) for step in range(steps)]
    return np.concatenate([sampler.ids(step) for step in range(steps)]), torch.cat([b.weight for b in batches]).numpy()


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9])
def test_windows_follow_the_mixture_and_carry_what_undoes_it(store, fraction):
    held = windows(REWARDS, CLIP)
    probability = mixture(held, fraction)
    sampler = RewardedClipSampler(store, "train", CLIP, 500, 3, fraction)
    assert sampler.num_windows == len(held) and sum(held.values()) > 10
    ids, weights = draw(sampler, 60)
    for (number, start), weight in zip(ids.tolist(), weights, strict=True):
        assert weight == pytest.approx(1 / len(held) / probability[number, start], rel=1e-6)
    drawn = dict.fromkeys(held, 0)
    for number, start in ids.tolist():
        drawn[number, start] += 1
    expected = {window: len(ids) * share for window, share in probability.items()}
    statistic = sum((drawn[w] - expected[w]) ** 2 / expected[w] for w in held)
    assert statistic < len(held) + 4 * (2 * len(held)) ** 0.5  # chi-squared: 4 standard deviations
    # The weighted mean of anything is its uniform mean.
    for measure in (lambda w: held[w], lambda w: w[1], lambda w: (w[0] * 7 + w[1]) % 5, lambda w: 1):
        values = weights * [measure(tuple(row)) for row in ids.tolist()]
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - np.mean([measure(w) for w in held])) <= 4 * error + 1e-6


@settings(max_examples=30, deadline=None)
@given(
    rewards=st.lists(st.lists(st.sampled_from([0, 0, 0, 1.0, -1.0]), min_size=1, max_size=15), min_size=1, max_size=4),
    clip_frames=st.integers(1, 8),
    fraction=st.sampled_from([0.0, 0.3, 0.99]),
)
def test_any_store_by_brute_force(tmp_path_factory, rewards, clip_frames, fraction):
    held = windows(rewards, clip_frames)
    probability = mixture(held, fraction)
    store = store_of(tmp_path_factory.mktemp("any"), rewards)
    sampler = RewardedClipSampler(store, "train", clip_frames, 60, 1, fraction)
    ids, weights = draw(sampler, 3)
    for (number, start), weight in zip(ids.tolist(), weights, strict=True):
        assert weight == pytest.approx(1 / len(held) / probability[number, start], rel=1e-6)


@pytest.mark.parametrize("rewards", [REWARDS, [[0.0] * 20, [0.0] * 9]])
def test_without_a_fraction_or_a_reward_nothing_changes(tmp_path, rewards):
    store = store_of(tmp_path, rewards)
    plain = ClipSampler(store, "train", CLIP, 16, 5)
    for fraction in (0.0, 0.5):
        sampler = RewardedClipSampler(store, "train", CLIP, 16, 5, fraction)
        for step in range(5):
            if fraction == 0 or rewards is not REWARDS:
                np.testing.assert_array_equal(sampler.ids(step), plain.ids(step))
                assert sampler.batch(step).weight.tolist() == [1] * 16
            else:
                assert (sampler.ids(step) != plain.ids(step)).any()


def test_where_every_window_pays_all_weigh_one(tmp_path):
    store = store_of(tmp_path, [[-1.0] * 40, [-1.0] * 20])
    assert set(draw(RewardedClipSampler(store, "train", CLIP, 50, 0, 0.4), 4)[1].tolist()) == {1.0}


def test_a_step_is_a_pure_function_of_the_seed_and_ranks_take_slices(store):
    one, other = (RewardedClipSampler(store, "train", CLIP, 12, 5, 0.4) for _ in range(2))
    in_order = [one.ids(step) for step in range(20)]
    for step in np.random.default_rng(0).permutation(20):
        np.testing.assert_array_equal(other.ids(int(step)), in_order[step])
    assert all((a != b).any() for a, b in pairwise(in_order))
    # Written down, so that no change of library or code changes a run that is resumed.
    assert in_order[7][:4].tolist() == [[4, 3], [1, 10], [3, 0], [3, 1]]
    whole = one.batch(9)
    for world in (2, 3, 12):
        parts = [one.batch(9, rank, world) for rank in range(world)]
        for name in vars(whole):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_clip_weighs_one_unless_told_and_moves_with_its_weights():
    tokens, yes = torch.zeros(3, 2, 1, 1, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool)
    clip = TokenClip(tokens, yes.long(), yes.float(), ~yes, yes, yes)
    assert clip.weight.tolist() == [1, 1, 1] and clip.weight.dtype == torch.float32
    assert clip.to("meta").weight.is_meta


def test_building_it_reads_no_tokens(store):
    fresh = TokenStore.open(store.path)
    RewardedClipSampler(fresh, "train", CLIP, 4, 0, 0.25)
    assert not fresh._held
    np.testing.assert_array_equal(fresh.rewards(3), REWARDS[3])


def test_rewards_that_are_not_those_of_the_index_are_found(tmp_path):
    path = store_of(tmp_path, [[0, 1, 0]]).path
    line = json.loads((path / "index.jsonl").read_text())
    line.pop("crc32")
    (path / "index.jsonl").write_text(json.dumps(line | {"episode_return": 2.0}, separators=(",", ":")) + "\n")
    with pytest.raises(CorruptFileError, match="add up to 1"):
        RewardedClipSampler(TokenStore.open(path), "train", 2, 4, 0, 0.25)
