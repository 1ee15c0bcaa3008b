"""Recall of small changing regions: against a flood fill, and what it says of a tokenizer that sees no small things."""

import numpy as np
import pytest
import torch

from worldvq.errors import UsageError
from worldvq.evaluation import metrics, regions
from worldvq.evaluation.measures import count_regions
from worldvq.evaluation.regions import small_region_recall
from worldvq.models.tokenizer_losses import CHANGE


def flood(mask):
    """Connected sets of a mask (H, W), 8 neighbours, as lists of pixels."""
    todo, found = set(zip(*np.nonzero(mask), strict=True)), []
    while todo:
        edge = [todo.pop()]
        found.append(list(edge))
        while edge:
            y, x = edge.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            edge += near
            found[-1] += near
    return found


def slow_recall(previous, current, rebuilt, following=None):
    recalled = total = 0
    for n in range(len(current)):
        before, now, made = (x[n].astype(int) for x in (previous, current, rebuilt))
        mask = abs(now - before).max(-1) > CHANGE
        if following is not None:
            mask &= abs(now - following[n]).max(-1) > CHANGE
        for region in flood(mask):
            if regions.MIN_AREA <= len(region) <= regions.MAX_SHARE * mask.size:
                total += 1
                errors = [sum(((made - x)[pixel] ** 2).sum() for pixel in region) for x in (now, before)]
                recalled += errors[0] < errors[1]
    return recalled, total


def test_it_agrees_with_a_flood_fill():
    rng = np.random.default_rng(0)
    wall, sprites = rng.integers(0, 256, (1, 30, 40, 3)), rng.random((6, 30, 40, 1)) < 0.1
    frames = np.where(sprites, rng.integers(0, 256, (6, 30, 40, 3)), wall).astype(np.uint8)
    rebuilt = np.clip(frames[1:-1] * 0.5 + frames[:-2] * 0.5 + rng.normal(0, 30, frames[1:-1].shape), 0, 255)
    rebuilt = rebuilt.astype(np.uint8)
    for following in (None, frames[2:]):
        expected = slow_recall(frames[:-2], frames[1:-1], rebuilt, following)
        assert small_region_recall(frames[:-2], frames[1:-1], rebuilt, following) == expected
        assert 0 < expected[0] < expected[1]
    tensors = [torch.from_numpy(x.copy()) for x in (frames[:-2], frames[1:-1], rebuilt, frames[2:])]
    assert small_region_recall(*tensors) == slow_recall(frames[:-2], frames[1:-1], rebuilt, frames[2:])


def moving_square(side, step, steps=6):
    """A bright square that moves over a dark wall, and the wall."""
    frames = np.full((steps, 32, 32, 3), 60, np.uint8)
    wall = frames.copy()
    for t in range(steps):
        frames[t, 5 : 5 + side, step * t : step * t + side] = 200
    return frames, wall


@pytest.mark.parametrize("step", [3, 5])  # it overlaps itself, or does not
def test_a_tokenizer_that_drops_the_thing_recalls_nothing(step):
    frames, wall = moving_square(4, step)
    before, now, after = frames[:-2], frames[1:-1], frames[2:]
    assert small_region_recall(before, now, now, after) == (4, 4)
    assert small_region_recall(before, now, before, after) == (0, 4)
    assert small_region_recall(before, now, wall[1:-1], after) == (0, 4)
    # Without the frame after, it gets the places right that the thing has left.
    if step == 5:
        assert small_region_recall(before, now, wall[1:-1]) == (4, 8)


def test_what_is_too_small_or_too_large_does_not_count():
    for side, counted in ((1, 0), (2, 4), (7, 4), (8, 0)):  # 5 % of 32 x 32 are 51 pixels
        frames, _ = moving_square(side, 0)
        frames[::2] = 60  # it blinks: frames 1, 3, 5 show it
        assert small_region_recall(frames[:-2], frames[1:-1], frames[1:-1], frames[2:])[1] == counted, side
    still = np.zeros((3, 8, 8, 3), np.uint8)
    assert small_region_recall(still, still, still) == (0, 0)
    noise = still + np.uint8(CHANGE)
    assert small_region_recall(still, noise, noise) == (0, 0)


def test_neighbouring_frames_do_not_join():
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    now = frames.copy()
    now[:, 4:6, 4:6] = 255
    assert small_region_recall(frames, now, now) == (2, 2)


def test_an_evaluation_counts_frame_by_frame():
    rng = np.random.default_rng(1)
    wall = rng.integers(0, 256, (1, 1, 24, 24, 3))
    clip = np.where(rng.random((3, 6, 24, 24, 1)) < 0.08, rng.integers(0, 256, (3, 6, 24, 24, 3)), wall).astype(
        np.uint8
    )
    blurred = np.clip(clip[:, 1:] * 0.5 + clip[:, :-1] * 0.5 + rng.normal(0, 40, clip[:, 1:].shape), 0, 255)
    frames = {"real": clip[:, 1:], "still": np.repeat(clip[:, :1], 5, 1), "blurred": blurred.astype(np.uint8)}
    found = count_regions(torch.from_numpy(clip), {name: torch.from_numpy(part) for name, part in frames.items()})
    for row in range(3):
        for step in range(4):  # the fifth has no frame after it
            around = [clip[row, [step + k]] for k in range(3)]
            for name, part in frames.items():
                expected = slow_recall(around[0], around[1], part[row, [step]], around[2])
                assert (found[f"regions/{name}"][row, step], found["regions/all"][row, step]) == expected
    total = found["regions/all"].sum()
    assert 0 < found["regions/blurred"].sum() < total == found["regions/real"].sum()
    assert not found["regions/still"][:, 0].any()
    alone = count_regions(torch.from_numpy(clip[:, :2]), {"real": torch.from_numpy(clip[:, 1:2])})
    assert alone["regions/all"].shape == (3, 0)


def test_a_rate_is_of_all_things_and_its_interval_over_clips():
    hits, counts = np.array([1, 0, 5, 0, 2]), np.array([2, 0, 5, 3, 2])
    found = metrics.rate(hits, counts)
    assert (found["mean"], found["count"]) == (pytest.approx(8 / 12), 12)
    rng = np.random.default_rng(5)
    drawn = [rng.choice([0, 2, 3, 4], 4) for _ in range(4000)]  # clips that hold something
    low, high = np.percentile([hits[d].sum() / counts[d].sum() for d in drawn], [2.5, 97.5])
    assert found["ci95"] == pytest.approx([low, high], abs=0.04) and low < 0.4
    nothing = metrics.rate([0, 0], [0, 0])
    assert nothing["count"] == 0 and np.isnan(nothing["mean"])


def test_mistakes_are_named(monkeypatch):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    for wrong in (frames[:, :-1], frames.astype(np.float32), frames[0]):
        with pytest.raises(ValueError, match="uint8 frames of equal shapes"):
            small_region_recall(frames, frames, wrong)
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(UsageError, match=r"worldvq\[metrics\]"):
        small_region_recall(frames, frames, frames)
