"""Actions as classes, and their macro-F1 against plain loops."""

import numpy as np
import pytest

from worldvq.evaluation.action_classes import MOST_CHOICES, Factor, factors_of
from worldvq.evaluation.inverse import score
from worldvq.types import ActionSpace


def plain_macro_f1(truth, told):
    """Mean over the classes that occur in the truth, as scikit-learn's f1_score(labels=np.unique(truth))."""
    scores = []
    for c in sorted(set(truth)):
        right = sum(a == b == c for a, b in zip(truth, told, strict=True))
        wrong = sum(b == c != a for a, b in zip(truth, told, strict=True))
        missed = sum(a == c != b for a, b in zip(truth, told, strict=True))
        precision = right / (right + wrong) if right + wrong else 0.0
        recall = right / (right + missed)
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return np.mean(scores), scores


@pytest.fixture(scope="module")
def guessed():
    """Two factors of three and two choices, guessed rightly half of the time; some pairs do not count."""
    rng = np.random.default_rng(0)
    space = ActionSpace("multi_discrete", (3, 2), names=("go", "jump"))
    actions = np.stack([rng.choice(3, (40, 5), p=(0.7, 0.2, 0.1)), rng.integers(0, 2, (40, 5))], -1)
    factors = factors_of(space, actions.reshape(-1, 2))
    truth = np.stack([factor.classes(actions) for factor in factors], -1)
    told = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 2, truth.shape))
    return factors, truth, rng.random((40, 5)) < 0.8, told


def test_macro_f1_equals_plain_loops(guessed):
    factors, truth, changed, told = guessed
    report = score(factors, truth, changed, {"real": truth, "imagined": told})
    everything = [plain_macro_f1(truth[changed][:, f], told[changed][:, f]) for f in range(2)]
    assert report["imagined"]["macro_f1"]["mean"] == pytest.approx(np.mean([mean for mean, _ in everything]))
    assert report["imagined"]["by_action"] == pytest.approx(everything[0][1] + everything[1][1])
    for h in range(5):
        own = changed[:, h]
        step = np.mean([plain_macro_f1(truth[own, h, f], told[own, h, f])[0] for f in range(2)])
        assert report["imagined"]["by_step"]["mean"][h] == pytest.approx(step)
    assert report["real"]["macro_f1"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert [(a["factor"], a["action"]) for a in report["actions"]] == [
        *(("go", "0"), ("go", "1"), ("go", "2")),
        *(("jump", "0"), ("jump", "1")),
    ]


def test_interval_is_that_of_resampled_clips(guessed):
    factors, truth, changed, told = guessed
    low, high = score(factors, truth, changed, {"x": told})["x"]["macro_f1"]["ci95"]
    rng, drawn = np.random.default_rng(1), []
    for _ in range(400):
        rows = rng.integers(0, 40, 40)
        keep = changed[rows]
        drawn.append(np.mean([plain_macro_f1(truth[rows][keep][:, f], told[rows][keep][:, f])[0] for f in range(2)]))
    np.testing.assert_allclose((low, high), np.percentile(drawn, [2.5, 97.5]), atol=0.015)


def test_chance_is_what_blind_guesses_reach(guessed):
    factors, truth, changed, told = guessed
    chance = score(factors, truth, changed, {"x": told})["chance"]
    seen = truth[changed]
    best = [max(plain_macro_f1(seen[:, f], [c] * len(seen))[0] for c in range(3 - f)) for f in range(2)]
    assert chance["constant"] == pytest.approx(np.mean(best))
    rng, many = np.random.default_rng(0), np.concatenate([seen] * 200)
    random = [plain_macro_f1(many[:, f].tolist(), rng.permutation(many[:, f]).tolist())[0] for f in range(2)]
    assert chance["random"] == pytest.approx(np.mean(random), abs=0.01)


def test_numbers_are_cut_into_three_equal_parts_or_by_their_sign():
    rng = np.random.default_rng(0)
    pedal = np.where(rng.random(900) < 0.8, 0, rng.uniform(0, 1, 900))
    actions = np.stack([rng.normal(size=900), pedal, -pedal, np.full(900, 0.5)], -1).astype(np.float32)
    space = ActionSpace("box", low=(-9.0,) * 4, high=(9.0,) * 4, names=("steer", "gas", "brake", "horn"))
    steer, gas, brake = factors_of(space, actions)  # the horn never changes
    assert np.bincount(steer.classes(actions)).tolist() == [300, 300, 300] and steer.labels == ("low", "middle", "high")
    assert (
        np.argsort(actions[:, 0])[:300]
        == np.flatnonzero(steer.classes(actions) == 0)[np.argsort(actions[steer.classes(actions) == 0, 0])]
    ).all()  # the lowest ones
    for factor, column in ((gas, pedal), (brake, -pedal)):
        np.testing.assert_array_equal(factor.classes(actions), np.sign(column) + 1)
        assert factor.labels == ("-", "0", "+") and "sign" in factor.cut


def test_choices_that_are_rare_or_were_never_seen_are_one_class():
    actions = np.concatenate([np.arange(0, 200, 2), np.arange(0, 100, 2), np.arange(0, 100, 2)])
    (factor,) = factors_of(ActionSpace("discrete", (1000,)), actions)
    assert factor.num_classes == MOST_CHOICES + 1 and factor.labels[-1] == "other"
    np.testing.assert_array_equal(factor.values, np.arange(0, 100, 2))  # the most frequent ones
    assert factor.classes(np.array([[4, 3], [998, 98]])).tolist() == [[2, 50], [50, 49]]


def test_one_and_the_same_action_is_nothing_to_tell():
    assert factors_of(ActionSpace("discrete", (1,), names=("none",)), np.zeros(9, np.int64)) == []
    assert factors_of(ActionSpace("box", low=(-1.0,), high=(1.0,)), np.full((9, 1), 0.25, np.float32)) == []
    (only,) = factors_of(ActionSpace("multi_discrete", (4, 3)), np.array([[1, 0], [1, 2], [1, 0]]))
    assert isinstance(only, Factor) and (only.name, only.labels) == ("1", ("0", "2", "other"))
