"""Reports side by side: against resampling by hand, against another library, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.errors import CorruptFileError, UsageError
from worldvq.evaluation import metrics
from worldvq.evaluation.comparison import compare, compare_reports, config_differences
from worldvq.evaluation.comparison_page import measure_rows
from worldvq.evaluation.measures_compared import MEASURES
from worldvq.evaluation.report_files import CLIPS, REPORT, Evaluation, finite, read_report, write_report
from worldvq.evaluation.summary import YARDSTICKS
from worldvq.media.videos import probe_video
from worldvq.types import ActionSpace

SPACE = ActionSpace("discrete", nvec=(3,), names=("left", "stay", "right"))
WAYS = [("pair", 1), ("pair", 1), ("pair", 4), ("nested", 2), ("turn", 5)]
CONTEXT = 2


def make_report(folder, n, horizon, plays):
    """A report.json, as far as a comparison reads it."""
    report = {
        "env_id": "Toy-v0",
        "num_clips": n,
        "num_episodes": 1,
        "protocol": {"clips": 99, "context": CONTEXT, "horizon": horizon, "seed": 0, "sampling": {"temperature": 1.0}},
        "dataset": {"env": {"id": "Toy-v0"}, "seed": 0, "episodes": 4},
        "summary": {key: {"copy_last": 0.5} for key in ("psnr", "ssim")} | {"fd_efflite0": {"imagined": 7.0}},
        "versions": {"torch": "2"},
        "world": {
            "hash": f"{folder.name}-hash",
            "tokenizer": {"width": 8},
            "tokenizer_hash": "same",
            "dynamics": {"width": 16, "prior": {"kind": "transformer"}},
            "action_space": SPACE.to_json(),
            "meta": {"training": {"dynamics_training": {"steps": 20}}, "dataset": {"seed": 3}},
        },
    }
    return report | ({"memory": {"ways": [{"kind": kind, "steps": steps} for kind, steps in WAYS]}} if plays else {})


def make(folder, seed=0, n=9, horizon=3, size=8, plays=True):
    """An evaluation of random numbers; equal seeds give equal ones."""
    rng = np.random.default_rng(seed)
    clips = {
        "ids": np.stack([np.full(n, 3), 5 * np.arange(n)], 1),
        "episodes": np.full((n, 32), 7, np.uint8),
        "nats": rng.random((n, horizon)),
        "regions/all": np.full((n, horizon - 1), 4),
        "shown/real": np.random.default_rng(0).integers(0, 256, (2, CONTEXT + horizon, size, size, 3), np.uint8),
        "shown/seen": rng.integers(0, 256, (2, CONTEXT + horizon, size, size, 3), np.uint8),
        "shown/actions": np.zeros((2, CONTEXT + horizon), np.int64),
    }
    for name in YARDSTICKS:
        clips[f"error/{name}"] = rng.random((n, horizon)) / 50
        clips[f"ssim/{name}"] = rng.random((n, horizon))
        clips[f"regions/{name}"] = rng.integers(0, 5, (n, horizon - 1))
    recorded = np.random.default_rng(0).integers(-1, 2, (n, horizon)).astype(float)
    clips |= {"rewards": rng.normal(size=(n, horizon)), "rewards_true": recorded}
    clips |= {"termination": rng.random((n, horizon)), "termination_true": (recorded > 0).astype(float)}
    if plays:
        places = np.stack([np.arange(6), np.arange(6)], 1)
        clips |= {f"{test}/situations": places for test in ("counterfactual", "memory", "decisions")}
        clips |= {f"decisions/{name}": rng.random((6, 1)) for name in ("dream", "planner_dream", "planner_simulator")}
        clips |= {f"counterfactual/{name}": rng.random((6, 8)) / 20 for name in ("retrieval", "own", "other")}
        there = np.random.default_rng(0).random((len(WAYS), 6)) < 0.7
        clips |= {
            f"memory/{name}": np.where(there, rng.random(there.shape) / 20, np.nan) for name in ("error", "ceiling")
        }
    return Evaluation(folder, finite(make_report(folder, n, horizon, plays)), clips)


def saved(side):
    write_report(side.folder, side.report, side.clips)
    return side.folder


def by_name(comparison):
    return {measure["name"]: measure for measure in comparison["measures"]}


def draws(n):
    """Rows of a thousand resamples, one after the other."""
    rng = np.random.default_rng(0)
    return [np.repeat(np.arange(n), row) for row in rng.multinomial(n, np.full(n, 1 / n), 1000)]


def test_intervals_are_those_of_resampling_the_same_clips_of_both_by_hand(tmp_path):
    one, other = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    found = by_name(compare([one, other]))

    def psnr(side, rows, name="imagined"):
        return np.mean([-10 * np.log10(np.mean([side.clips[f"error/{name}"][r, h] for r in rows])) for h in range(3)])

    def way_back(side, rows):
        pairs = [(w, s) for s in rows for w in (0, 1) if np.isfinite(side.clips["memory/error"][w, s])]
        mean = {key: np.mean([side.clips[f"memory/{key}"][pair] for pair in pairs]) for key in ("error", "ceiling")}
        return 10 * np.log10(mean["error"] / mean["ceiling"])

    def recall(side, rows):
        return side.clips["regions/imagined"][rows].sum() / side.clips["regions/all"][rows].sum()

    def precision(side, rows):
        return metrics.average_precision(side.clips["rewards"][rows], side.clips["rewards_true"][rows] > 0)

    def gap(side, rows):
        return np.mean(
            [side.clips["decisions/planner_simulator"][r] - side.clips["decisions/planner_dream"][r] for r in rows]
        )

    by_hand = {
        "PSNR of imagined frames, dB": (psnr, 9),
        "PSNR over shuffled actions, dB": (lambda s, r: psnr(s, r) - psnr(s, r, "shuffled_actions"), 9),
        "SSIM of the tokenizer": (lambda s, r: s.clips["ssim/reconstruction"][r].mean(), 9),
        "Nats a token": (lambda s, r: s.clips["nats"][r].mean(), 9),
        "Small regions recalled, imagined": (recall, 9),
        "Reward error": (lambda s, r: np.abs(s.clips["rewards"] - s.clips["rewards_true"])[r].mean(), 9),
        "Finding rewards above 0, average precision": (precision, 9),
        "Retrieval of branches, step 4": (lambda s, r: s.clips["counterfactual/retrieval"][r, 3].mean(), 6),
        "There and back, 1 step each way: dB under the ceiling": (way_back, 6),
        "Decisions, counterfactual planning gap": (gap, 6),
    }
    for name, (statistic, count) in by_hand.items():
        values = [statistic(side, np.arange(count)) for side in (one, other)]
        assert found[name]["values"] == pytest.approx(values), name
        (difference,) = found[name]["differences"]
        assert difference["mean"] == pytest.approx(values[1] - values[0]), name
        resampled = [statistic(other, rows) - statistic(one, rows) for rows in draws(count)]
        interval = np.percentile(resampled, [2.5, 97.5])
        np.testing.assert_allclose(difference["ci95"], interval, rtol=1e-9, err_msg=name)
        assert difference["excludes_zero"] == bool(interval[0] > 0 or interval[1] < 0)


def test_intervals_are_about_those_of_scipy(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    one, other = make(tmp_path / "a", 1, n=60), make(tmp_path / "b", 2, n=60)
    difference = by_name(compare([one, other]))["SSIM of imagined frames"]["differences"][0]
    pairs = [side.clips["ssim/imagined"].mean(1) for side in (other, one)]
    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 4000, "rng": 5}
    expected = stats.bootstrap(pairs, lambda x, y: np.mean(x) - np.mean(y), **options).confidence_interval
    np.testing.assert_allclose(difference["ci95"], [expected.low, expected.high], atol=0.01)


def test_what_is_hard_for_both_cancels(tmp_path):
    one, other = make(tmp_path / "a", 1, n=40), make(tmp_path / "b", 1, n=40)
    rng = np.random.default_rng(0)
    other.clips["ssim/imagined"] = one.clips["ssim/imagined"] + 0.02 + rng.normal(size=(40, 3)) / 100
    sides = [metrics.mean_over_rows(side.clips["ssim/imagined"].mean(1))["ci95"] for side in (one, other)]
    assert sides[0][1] > sides[1][0]  # each alone says nothing
    (difference,) = by_name(compare([one, other]))["SSIM of imagined frames"]["differences"]
    assert difference["excludes_zero"] and difference["ci95"][1] - difference["ci95"][0] < 0.01


@settings(max_examples=4, deadline=None)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)), n=st.integers(2, 12), horizon=st.integers(2, 4))
def test_against_itself_nothing_differs_and_the_other_way_round_everything_is_reversed(
    tmp_path_factory, seeds, n, horizon
):
    folder = tmp_path_factory.getbasetemp()
    one, other = (make(folder / name, seed, n, horizon) for name, seed in zip("ab", seeds, strict=True))
    itself = compare([one, one, one])
    assert itself["config"] == {} and len(itself["measures"]) > 15
    for measure in itself["measures"]:
        for difference in measure["differences"]:
            assert difference["mean"] == 0 and not difference["excludes_zero"]
            assert difference["ci95"] is None or np.nan_to_num(difference["ci95"]).tolist() == [0, 0]
    there, back = by_name(compare([one, other])), by_name(compare([other, one]))
    for name, measure in there.items():
        (first,), (second,) = measure["differences"], back[name]["differences"]
        assert first["mean"] == -second["mean"] and first["excludes_zero"] == second["excludes_zero"]
        if first["ci95"] is not None:
            np.testing.assert_allclose(first["ci95"], -np.array(second["ci95"])[::-1], atol=1e-12)


def test_three_reports_on_one_page_that_loads_nothing(tmp_path):
    folders = [saved(make(tmp_path / name, seed)) for seed, name in enumerate(("a", "b", "<script>alert(1)"))]
    comparison = compare_reports([folders[0], folders[1] / REPORT, folders[2]], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.json", "compare.mp4", "index.html"}
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(comparison))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page and "http" not in page and "$" not in page and "prefers-color-scheme: dark" in page
    assert page.count("data:image/png;base64,") == 4 and "data:video/mp4;base64," in page
    header, rows = measure_rows(comparison)
    assert header == ["", "A", "B", "B − A (95 % interval)", "C", "C − A (95 % interval)"]
    assert all(len(row) == len(header) for row in rows)
    count, height, width = probe_video(tmp_path / "out" / "compare.mp4")
    assert count == CONTEXT + 3 and width > 4 * 8 * 20 and height > 2 * 8 * 20  # real, A, B, C; two clips


def test_better_is_higher_or_lower_as_it_should_be(tmp_path):
    one, other = make(tmp_path / "a", 1), make(tmp_path / "b", 1)
    other.clips["nats"] = one.clips["nats"] + 1
    other.clips["ssim/imagined"] = one.clips["ssim/imagined"] + 0.1
    _, rows = measure_rows(finite(compare([one, other])))
    cells = {row[0]: row[-1] for row in rows}
    assert cells["Nats a token ↓"] == "+1.000 (+1.000 to +1.000) worse"
    assert cells["SSIM of imagined frames ↑"] == "+0.100 (+0.100 to +0.100) better"
    assert cells["PSNR of imagined frames, dB ↑"] == "+0.00 (+0.00 to +0.00)"
    assert cells["FD-EffLite0 of imagined frames ↓"] == "+0.0"  # nothing to draw


def test_nats_of_other_tokenizers_are_shown_and_not_compared(tmp_path):
    one, other = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    other.report["world"]["tokenizer_hash"] = "another"
    comparison = finite(compare([one, other]))
    assert len(by_name(comparison)["Nats a token"]["values"]) == 2
    assert [row[-1] for row in measure_rows(comparison)[1] if row[0].startswith("Nats")] == ["–"]
    assert "other tokenizers" in " ".join(comparison["notes"])


def test_what_differs_in_config_is_named_by_key(tmp_path):
    one, other = make(tmp_path / "a"), make(tmp_path / "b")
    world = other.report["world"]
    world["dynamics"]["prior"]["kind"] = "pixelcnn"
    world["meta"]["training"]["dynamics_training"] = {"steps": 40, "seed": 1}
    other.report["protocol"]["sampling"]["temperature"] = 0.5  # how a world is sampled is its own affair
    assert compare([one, other])["config"] == {
        "dynamics.prior.kind": ["transformer", "pixelcnn"],
        "dynamics_training.steps": [20, 40],
        "dynamics_training.seed": [None, 1],
        "weights": ["a-hash", "b-hash"],
        "sampling.temperature": [1.0, 0.5],
    }
    del world["meta"]["training"]
    config, (note,) = config_differences([one, other])
    assert "dynamics_training.steps" not in config and "older" in note and note.endswith(f"{other.folder}.")


def test_tests_in_other_situations_are_left_out_with_a_note(tmp_path):
    one, other, without = make(tmp_path / "a", 1), make(tmp_path / "b", 2), make(tmp_path / "c", 3, plays=False)
    other.clips["memory/situations"] = other.clips["memory/situations"] + 1
    comparison = compare([one, other])
    assert [measure["over"] for measure in comparison["measures"]].count("6 situations") == 4 + 3
    assert "--memory is left out: the situations differ" in comparison["notes"][0]
    notes = compare([one, without])["notes"]
    assert len(notes) == 3 and all(f"not measured in {without.folder}." in note for note in notes)
    assert compare([without, without])["notes"] == []
    assert {measure.over for measure in MEASURES} == {"clips", "counterfactual", "memory", "decisions"}


def another(side, **changes):
    report = copy.deepcopy(side.report)
    for path, value in changes.items():
        section, key = path.split("__")
        report[section][key] = value
    return Evaluation(side.folder, report, dict(side.clips))


def moved(side):
    side.clips["ids"] = side.clips["ids"] + [[0, 1]] * 9
    return side


def recorded_again(side):
    side.clips["episodes"] = side.clips["episodes"] + np.arange(9, dtype=np.uint8)[:, None]
    return side


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda side: another(side, protocol__context=4), ["protocols", "context: {a} has 2, {b} has 4"]),
        (lambda side: another(side, protocol__horizon=9), ["protocols", "horizon: {a} has 3, {b} has 9"]),
        (lambda side: another(side, protocol__seed=5), ["protocols", "seed: {a} has 0, {b} has 5", "evaluate"]),
        (lambda side: make(side.folder, n=7), ["protocols", "clips: {a} has 9, {b} has 7"]),
        (
            lambda side: moved(another(side, dataset__seed=8)),
            ["datasets", "dataset.seed: {a} has 0, {b} has 8", "9 of 9 clips are others", "episode 3 from frame 1"],
        ),
        (recorded_again, ["datasets", "8 of 9 clips are of episodes that hold something else", "episode 3", "--data"]),
    ],
)
def test_other_protocols_and_datasets_are_refused_by_name_and_nothing_is_written(tmp_path, change, words):
    one, other = saved(make(tmp_path / "a", 1)), saved(change(make(tmp_path / "b", 2)))
    with pytest.raises(UsageError) as caught:
        compare_reports([one, other], tmp_path / "out")
    missing = [word for word in words if word.format(a=one, b=other) not in str(caught.value)]
    assert not missing and "\n" not in str(caught.value) and not (tmp_path / "out").exists(), caught.value


def test_what_is_no_report_is_refused_with_the_way_out(tmp_path):
    one, other, out = saved(make(tmp_path / "a", 1)), saved(make(tmp_path / "b", 2)), tmp_path / "out"

    def refuse(error, words, paths, out=out):
        with pytest.raises(error) as caught:
            compare_reports(paths, out)
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value
        assert not (tmp_path / "out").exists()

    refuse(UsageError, ["1 report given", "two"], [one])
    refuse(UsageError, ["27 reports given", "26"], [one] * 27)
    refuse(UsageError, [f"{tmp_path / 'none'}", "worldvq evaluate"], [one, tmp_path / "none"])
    refuse(UsageError, [f"--out {other}", "another"], [one, other], other)
    older = shutil.copytree(other, tmp_path / "older")
    report = json.loads((older / REPORT).read_text())
    del report["clips"]
    (older / REPORT).write_text(json.dumps(report))
    refuse(UsageError, [f"{older / REPORT}", "older", "worldvq evaluate"], [one, older])
    shutil.copy(one / CLIPS, other / CLIPS)
    refuse(CorruptFileError, [f"{other / CLIPS}", "another evaluation"], [one, other])
    (other / CLIPS).unlink()
    refuse(CorruptFileError, [f"{other / CLIPS}"], [one, other])
    (other / REPORT).write_text("[1, 2]")
    refuse(CorruptFileError, [f"{other / REPORT}", "not the report"], [one, other])


def test_what_is_written_is_read_again(tmp_path):
    side = make(tmp_path / "a", 4)
    again = read_report(saved(side))
    assert again.clips.keys() == side.clips.keys()
    for name, array in side.clips.items():
        np.testing.assert_array_equal(again.clips[name], array)
        assert again.clips[name].dtype == array.dtype
    assert {key: again.report[key] for key in side.report} == side.report
