"""The protocol on a toy world in which every number is known."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.episodes import write

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation import metrics, protocol
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import _derangement, evaluate
from worldvq.evaluation.report_files import read_report
from worldvq.evaluation.summary import YARDSTICKS
from worldvq.types import ActionSpace, Episode

SPACE = ActionSpace("discrete", nvec=(3,), names=("left", "stay", "right"))
SIZE = 16
CONFIG = EvaluateConfig(clips=10, context=2, horizon=4, batch_size=4)


def draw(position: np.ndarray | int) -> np.ndarray:
    """A ramp of red, and a column of light at the position (mod 16)."""
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    frame[..., 0] = 3 * np.arange(SIZE)
    frame[:, int(position) % SIZE] = 250
    return frame


class ToyWorld:
    """One token a frame: the position of the light. Perfect, but for the red, which its decoder loses."""

    action_space = SPACE
    frame_size = (SIZE, SIZE)
    tokenizer = SimpleNamespace(num_codes=SIZE, grid=(1, 1))
    device = torch.device("cpu")
    meta: dict = {}

    def hash(self):
        return "toy"

    def description(self):
        return {"tokenizer": {}, "tokenizer_hash": "toy", "dynamics": {}, "action_space": SPACE.to_json(), "meta": {}}

    def tokenize(self, frames, sounds=None):
        return frames[..., 0, :, 2].argmax(-1)[..., None, None]

    def render(self, tokens):
        frames = torch.stack([torch.tensor(draw(int(token))) for token in tokens.flatten()])
        frames[..., 0][frames[..., 2] == 0] = 0
        return frames.unflatten(0, tokens.shape[:2])

    def imagine_tokens(self, tokens, actions, seed=0, row_seeds=None, **sampling):
        steps = (actions[:, tokens.shape[1] - 1 :] - 1).cumsum(1)
        imagined = (tokens[:, -1:, 0, 0] + steps) % SIZE
        nothing = torch.zeros(imagined.shape)
        passes = torch.full(imagined.shape, 3)
        return SimpleNamespace(tokens=imagined[..., None, None], rewards=nothing, termination=nothing, passes=passes)

    def score(self, clip, context):
        into = slice(context - 1, -1)
        rewards, ends = clip.rewards[:, into], clip.terminated[:, into]
        return SimpleNamespace(
            nats=torch.full(clip.tokens[:, context:].shape, 0.5),
            rewards=rewards + 0.25,
            rewards_true=rewards,
            termination=ends.float(),
            termination_true=ends,
            mask=clip.mask[:, context:],
        )


def record(path, space=SPACE, size=SIZE, num_episodes=8):
    rng, episodes = np.random.default_rng(0), []
    for number in range(num_episodes):
        actions = rng.integers(0, 3, 20)
        positions = np.concatenate([[number], number + np.cumsum(actions - 1)])
        frames = np.stack([draw(p) for p in positions])[:, :size, :size]
        rewards = (actions == 2).astype(np.float32)
        episodes.append(Episode(frames, actions, rewards, terminated=True, truncated=False))
    return write(path, space, episodes).path


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    data = record(folder / "data")
    report = evaluate(ToyWorld(), data, folder / "report", CONFIG, progress=False)  # type: ignore[arg-type]
    return data, folder / "report", report


def clips(data):
    with EpisodeStore.open(data) as store:
        return read_clips(store, heldout_clips(store, 10, 6, 0), 6)


def test_report_on_disk_is_what_is_returned(result):
    _, out, report = result
    assert json.loads((out / "report.json").read_text()) == report
    for name in ("index.html", "rollout.mp4", "strip.png", "psnr.png", "ssim.png"):
        assert (out / name).stat().st_size > 500
    assert [file.name for file in out.iterdir() if file.name.startswith(".")] == [".lock"]


def test_report_has_the_keys_that_programs_rely_on(result):
    report = result[2]
    for key in ("psnr", "ssim"):
        assert set(report[key]) == set(YARDSTICKS)
        for name in YARDSTICKS:
            curve = report[key][name]
            assert len(curve["mean"]) == 4 and np.array(curve["ci95"]).shape == (4, 2)
            assert all(low <= mean <= high for mean, (low, high) in zip(curve["mean"], curve["ci95"], strict=True))
        assert set(report["summary"][key]) == set(YARDSTICKS)
    assert (report["num_clips"], report["context"], report["horizon"]) == (10, 2, 4)
    assert report["env_id"] == "Toy-v0" and report["seconds"] > 0
    assert {"worldvq", "torch", "numpy", "python"} <= set(report["versions"])
    assert report["regions"] is None or report["regions"]["imagined"]["count"] == 0  # a column is no small thing
    assert {"seeds", "rewards", "termination", "world", "data"} <= set(report)


def test_what_is_kept_of_each_clip_gives_the_numbers_of_the_report(result):
    data, out, report = result
    kept, clip = read_report(out).clips, clips(data)
    for name in YARDSTICKS:
        pooled = -10 * np.log10(kept[f"error/{name}"].mean(0))
        np.testing.assert_allclose(pooled, report["psnr"][name]["mean"], rtol=1e-6)
        np.testing.assert_allclose(kept[f"ssim/{name}"].mean(0), report["ssim"][name]["mean"])
    assert kept["nats"].shape == (10, 4) and kept["nats"].mean() == pytest.approx(report["nats_per_token"])
    np.testing.assert_array_equal(kept["rewards_true"], clip.rewards[:, 1:-1])
    np.testing.assert_array_equal(kept["termination_true"], clip.terminated[:, 1:-1])
    with EpisodeStore.open(data) as store:
        np.testing.assert_array_equal(kept["ids"], heldout_clips(store, 10, 6, 0))
        assert [row.tobytes().hex() for row in kept["episodes"]] == [store.entry(n).sha256 for n in kept["ids"][:, 0]]
    chosen = [int(np.flatnonzero((clip.frames.numpy() == real).all((1, 2, 3, 4)))[0]) for real in kept["shown/real"]]
    world = ToyWorld()
    np.testing.assert_array_equal(kept["shown/seen"][:, :2], world.render(world.tokenize(clip.frames[chosen, :2])))
    dreamt = world.imagine_tokens(world.tokenize(clip.frames[chosen, :2]), clip.actions[chosen, :-1]).tokens
    np.testing.assert_array_equal(kept["shown/seen"][:, 2:], world.render(dreamt))
    np.testing.assert_array_equal(kept["shown/actions"], clip.actions[chosen])


def test_perfect_model_reaches_the_ceiling(result):
    report = result[2]
    for key in ("psnr", "ssim"):
        assert report[key]["imagined"] == report[key]["reconstruction"]
        gain = report["gains"][key]["over_copy_last"]
        assert gain["mean"] > 0


def test_copy_last_is_the_last_context_frame(result):
    data, _, report = result
    frames = clips(data).frames.numpy().astype(float)
    for step in range(4):
        errors = ((frames[:, 2 + step] - frames[:, 1]) ** 2).mean(axis=(1, 2, 3))
        expected = [min(10 * np.log10(255**2 / e), metrics.PSNR_CAP) if e else metrics.PSNR_CAP for e in errors]
        assert report["psnr_per_frame"]["copy_last"]["mean"][step] == pytest.approx(np.mean(expected), rel=1e-5)
        pooled = 10 * np.log10(255**2 / errors.mean())
        assert report["psnr"]["copy_last"]["mean"][step] == pytest.approx(pooled, rel=1e-5)


def test_shuffled_actions_are_another_clips(result):
    data, _, report = result
    clip, world = clips(data), ToyWorld()
    actions = clip.actions[:, :-1].clone()
    actions[:, 1:] = actions[_derangement(10, 0), 1:]
    frames = world.render(world.imagine_tokens(world.tokenize(clip.frames[:, :2]), actions).tokens)
    for step in range(4):
        error = metrics.squared_error(clip.frames[:, 2 + step], frames[:, step]).mean()
        assert report["psnr"]["shuffled_actions"]["mean"][step] == pytest.approx(-10 * np.log10(error), rel=1e-5)
    assert report["gains"]["psnr"]["over_shuffled_actions"]["mean"] > 0


def test_scores(result):
    data, _, report = result
    clip = clips(data)
    assert report["nats_per_token"] == pytest.approx(0.5)
    assert report["bits_per_frame"] == pytest.approx(0.5 / np.log(2))
    counts = np.bincount(ToyWorld().tokenize(clip.frames).flatten(), minlength=SIZE)
    assert report["perplexity"] == pytest.approx(metrics.perplexity(counts))
    rewards = report["rewards"]
    assert rewards["mae"] == pytest.approx(0.25) and rewards["correlation"] == pytest.approx(1)
    assert rewards["positive_rate"] == pytest.approx(clip.rewards[:, 1:-1].mean())
    assert rewards["average_precision_positive"] == pytest.approx(1)
    assert rewards["average_precision_negative"] is None
    positive, all_of_them = int(clip.rewards[:, 1:-1].sum()), clip.rewards[:, 1:-1].numel()
    assert f"{positive} of {all_of_them} transitions" in (result[1] / "index.html").read_text()
    ends = clip.terminated[:, 1:-1].float().mean()
    assert report["termination"]["rate"] == pytest.approx(ends)
    assert report["termination"]["average_precision"] == (1 if ends else None)


def test_fd_is_named_with_its_horizons(result):
    report = result[2]
    if report["fd_efflite0"] is None:
        pytest.skip("the metrics extra is not installed")
    fd = report["fd_efflite0"]
    assert fd["horizons"] == [1, 2, 4] and all(len(fd[name]["mean"]) == 3 for name in YARDSTICKS)
    assert fd["imagined"] == fd["reconstruction"]


def test_page_holds_everything_and_loads_nothing(result):
    page = (result[1] / "index.html").read_text()
    assert page.count("data:image/png;base64,") >= 4 and "data:video/mp4;base64," in page
    assert "http" not in page and "$" not in page
    assert "Toy-v0" in page


def test_what_is_shown_is_spread_over_how_much_changes_and_no_number_depends_on_it(tmp_path, result, monkeypatch):
    data, out, report = result
    drawn = []
    monkeypatch.setattr(protocol, "write_page", lambda out, report, rollouts: drawn.append(rollouts))
    again = evaluate(ToyWorld(), data, tmp_path / "out", CONFIG, progress=False)  # type: ignore[arg-type]
    timings = ("seconds", "imagined_frames_per_second")
    assert {k: v for k, v in again.items() if k not in timings} == {k: report[k] for k in report if k not in timings}
    clip = clips(data)
    frames = clip.frames.numpy()
    changes = [np.mean([np.abs(a.astype(float) - b).sum() for a, b in itertools.pairwise(one)]) for one in frames]
    order = sorted(range(10), key=lambda row: -changes[row])
    assert len(set(changes)) > 4
    rows = [order[i] for i in (0, 3, 5, 8)]  # of ten clips, the middles of the quarters 0-2.5, 2.5-5, 5-7.5, 7.5-10
    (rollouts,) = drawn
    np.testing.assert_array_equal(rollouts.real, frames[rows])
    np.testing.assert_array_equal(rollouts.actions, clip.actions.numpy()[rows])
    steps = (rollouts.actions[:, 1:-1] - 1).cumsum(1)
    lights = rollouts.real[..., 0, :, 2].argmax(-1)
    np.testing.assert_array_equal(rollouts.imagined[..., 0, :, 2].argmax(-1), (lights[:, 1:2] + steps) % SIZE)
    assert "ordered by how much" in (out / "index.html").read_text()


def test_without_the_extra_the_distance_is_null_with_a_note(tmp_path, result, monkeypatch):
    metrics._efflite0.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    config = EvaluateConfig(clips=3, context=2, horizon=2)
    report = evaluate(ToyWorld(), result[0], tmp_path / "out", config, progress=False)  # type: ignore[arg-type]
    assert report["fd_efflite0"] is None and report["regions"] is None
    assert all("worldvq[metrics]" in note for note in report["notes"]) and len(report["notes"]) == 2
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, "frame_size"),
        ({"space": ActionSpace("discrete", nvec=(4,))}, "action_space.nvec"),
        ({"space": ActionSpace("discrete", nvec=(3,), names=("a", "b", "c"))}, "action_space.names"),
    ],
)
def test_other_datasets_are_refused_before_anything_is_written(tmp_path, change, message):
    data = record(tmp_path / "data", **change)
    with pytest.raises(UsageError, match=message):
        evaluate(ToyWorld(), data, tmp_path / "out", CONFIG, progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [2, 3, 17])
def test_derangement_moves_every_clip(size):
    partner = _derangement(size, seed=1)
    assert sorted(partner) == list(range(size)) and (partner != np.arange(size)).all()
