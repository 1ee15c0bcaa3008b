"""Telling actions from frames: on a toy where they are plain to see, with worlds that obey, do not, or show nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.episodes import write

from worldvq.config.env import EnvConfig
from worldvq.data.clips import heldout_clips, read_clips
from worldvq.errors import UsageError
from worldvq.evaluation import inverse
from worldvq.evaluation.action_classes import factors_of
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.interventions_page import cards, section
from worldvq.evaluation.inverse import KINDS, inverse_dynamics
from worldvq.stages.interventions import intervene
from worldvq.types import ActionSpace, Episode

SIZE = 8
MOVES = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)])
SPACES = {
    "discrete": ActionSpace("discrete", (5,), names=("stay", "left", "right", "up", "down")),
    "multi_discrete": ActionSpace("multi_discrete", (3, 2), names=("side", "fall")),
    "box": ActionSpace("box", low=(-1.0, 0.0), high=(1.0, 1.0), names=("steer", "gas")),
}
CONFIG = EvaluateConfig(clips=24, context=2, horizon=3, batch_size=10)


def moves_of(kind, actions):
    """Rows and columns (..., 2) by which a light moves."""
    if kind == "discrete":
        return MOVES[actions]
    if kind == "multi_discrete":
        return np.stack([actions[..., 1], actions[..., 0] - 1], -1)
    return np.round(np.asarray(actions)[..., ::-1] * 1.4).astype(int)  # of steer, three classes that are seen


def draw(places):
    """Frames (..., SIZE, SIZE, 3) of a square of light at places (..., 2)."""
    distance = (np.arange(SIZE) - np.asarray(places)[..., None]) % SIZE < 3  # (..., 2, SIZE)
    light = distance[..., 0, :, None] & distance[..., 1, None, :]
    return np.repeat(light[..., None], 3, -1).astype(np.uint8) * 200 + 20


def record(path, kind="discrete", num_episodes=40, steps=30, **settings):
    rng, episodes = np.random.default_rng(0), []
    for _ in range(num_episodes):
        if kind == "box":  # gas is off most of the time
            actions = np.stack([rng.uniform(-1, 1, steps), rng.random(steps) < 0.2], -1).astype(np.float32)
        else:
            factors = [rng.integers(0, n, steps) for n in SPACES[kind].nvec]
            actions = factors[0] if kind == "discrete" else np.stack(factors, -1)
        start = rng.integers(0, SIZE, 2)
        places = start + np.concatenate([[[0, 0]], moves_of(kind, actions).cumsum(0)])
        episodes.append(Episode(draw(places), actions, np.zeros(steps, np.float32), False, truncated=True))
    return write(path, SPACES[kind], episodes, heldout_every=4, **settings)


class ToyWorld:
    """Its tokens are pixels. It moves the light as the actions say, or as if each row had the actions of the next."""

    frame_size = (SIZE, SIZE)
    tokenizer = SimpleNamespace(num_codes=256, grid=(SIZE, SIZE))
    meta: dict = {}

    def __init__(self, kind="discrete", obeys=True, sees=True):
        self.kind, self.obeys, self.sees, self.action_space = kind, obeys, sees, SPACES[kind]

    def tokenize(self, frames, sounds=None):
        return frames

    def render(self, tokens):
        return (tokens.float() * 0.9).to(torch.uint8) if self.sees else torch.full_like(tokens, 90)

    def imagine_tokens(self, tokens, actions, seed=0, row_seeds=None, **sampling):
        assert sampling["method"] == "predictive"  # as in the protocol, so that the frames are the same
        taken = actions[:, tokens.shape[1] - 1 :].numpy()
        steps = moves_of(self.kind, taken if self.obeys else np.roll(taken, 1, 0)).cumsum(1)
        lasts = tokens[:, -1].numpy()
        rows = [[np.roll(one, tuple(s), (0, 1)) for s in row] for one, row in zip(lasts, steps, strict=True)]
        return SimpleNamespace(tokens=torch.from_numpy(np.array(rows)))


@pytest.fixture(autouse=True, scope="module")
def _short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverse, "STEPS", 450)
        patch.setattr(inverse, "BATCH", 32)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with record(tmp_path_factory.mktemp("inverse") / "data") as store:
        yield store


@pytest.fixture(scope="module")
def learnt(store):
    actions = np.concatenate([store.mapped(number).actions for number in store.numbers("train")])
    return inverse._learn(store, factors_of(store.action_space, actions), seed=0)


@pytest.fixture
def told(store, learnt, monkeypatch):
    """What is told of a world, by a network that has learnt once for all tests."""
    monkeypatch.setattr(inverse, "_learn", lambda *_: learnt)
    return lambda **world: inverse_dynamics(ToyWorld(**world), store, CONFIG)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SPACES)
def test_what_an_obedient_dream_does_is_told_as_in_reality(tmp_path, told, monkeypatch, kind):
    if kind == "discrete":
        report = told()
    else:
        monkeypatch.undo()
        with record(tmp_path / "data", kind) as store:
            report = inverse_dynamics(ToyWorld(kind), store, CONFIG)  # type: ignore[arg-type]
    assert report["training"]["macro_f1"] > 0.9
    for name in KINDS:
        result = report[name]
        assert result["macro_f1"]["mean"] > 0.9
        assert len(result["by_step"]["mean"]) == len(result["by_step"]["ci95"]) == CONFIG.horizon
        assert min(result["by_step"]["mean"]) > 0.8 and len(result["by_action"]) == len(report["actions"])
        low, high = result["macro_f1"]["ci95"]
        assert low <= result["macro_f1"]["mean"] <= high
    assert {action["factor"] for action in report["actions"]} == set(SPACES[kind].names if kind != "discrete" else [""])
    assert len(report["cuts"]) == (2 if kind == "box" else 0)


def test_a_dream_that_does_something_else_is_told_by_chance(told):
    report = told(obeys=False)
    assert report["real"]["macro_f1"]["mean"] > 0.9 and report["reconstruction"]["macro_f1"]["mean"] > 0.9
    assert report["imagined"]["macro_f1"]["mean"] < report["chance"]["random"] + 0.15


def test_what_the_tokenizer_loses_is_told_apart_from_what_the_dream_does(told):
    report = told(sees=False)
    assert report["real"]["macro_f1"]["mean"] > 0.9
    for name in ("reconstruction", "imagined"):
        assert report[name]["macro_f1"]["mean"] <= report["chance"]["constant"] + 0.03


def test_actions_that_change_nothing_are_left_out_of_all(store, told):
    report = told()
    clips = read_clips(store, heldout_clips(store, CONFIG.clips, 5), 5)
    frames, actions = clips.frames.numpy()[:, 1:], clips.actions.numpy()[:, 1:-1]
    still = [np.array_equal(row[t], row[t + 1]) for row in frames for t in range(3)]
    assert report["left_out"] == sum(still) == (actions == 0).sum() > 0
    assert report["pairs"] == len(still) - sum(still)
    counts = {action["action"]: action["pairs"] for action in report["actions"]}
    assert counts == {name: (actions == n).sum() for n, name in enumerate(SPACES["discrete"].names) if n}


def test_same_seed_same_network_and_nobodys_generator_is_touched(store, monkeypatch):
    monkeypatch.setattr(inverse, "STEPS", 20)
    factors, learnt = factors_of(store.action_space, np.arange(5)), []
    for number, seed in ((5, 0), (6, 0), (6, 1)):
        torch.manual_seed(number)
        state = torch.random.get_rng_state()
        network, _ = inverse._learn(store, factors, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        learnt.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert torch.equal(learnt[0], learnt[1])
    assert not torch.equal(learnt[0], learnt[2])


def test_datasets_without_anything_to_tell_are_refused(tmp_path):
    frames, rewards = draw(np.zeros((9, 2), int)), np.zeros(8, np.float32)
    same, mixed = (
        Episode(frames, actions, rewards, False, truncated=True) for actions in (np.ones(8, int), np.arange(8) % 5)
    )
    for name, episodes, why in (
        ("same", [same] * 8, "one and the same"),
        ("still", [mixed] * 8, "changes a frame"),
        ("few", [mixed] * 2, "two training episodes"),
    ):
        data = write(tmp_path / name, SPACES["discrete"], episodes, heldout_every=2)
        with data as store, pytest.raises(UsageError, match=why):
            inverse_dynamics(ToyWorld(), store, CONFIG)  # type: ignore[arg-type]


def run(data, tmp_path, **tests):
    asked = {"branches": False, "returns": False, **tests}
    return intervene(ToyWorld(), data, tmp_path, CONFIG, situations=4, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"id": "videos:clips"}, "videos, which nobody can play: --inverse instead of --counterfactual\n"),
        ({"id": "NotInstalled-v0"}, "NotInstalled-v0"),
        ({"id": "worldvq/Maze-v0", "max_steps": 30}, "cannot be forked: episode"),
    ],
)
def test_what_cannot_be_forked_is_told_instead(tmp_path, capsys, monkeypatch, env, why):
    monkeypatch.setattr(inverse, "STEPS", 2)
    with record(tmp_path / "data", env=EnvConfig(size=(SIZE, SIZE), **env)) as store:
        data = store.path
    report = run(data, tmp_path, branches=True)
    assert list(report) == ["inverse"] and set(KINDS) <= set(report["inverse"])
    said = [line for line in capsys.readouterr().out.splitlines(keepends=True) if "--inverse instead" in line]
    assert len(said) == 1 and why in said[0]
    with pytest.raises(UsageError):  # nothing says whether it remembers
        run(data, tmp_path, returns=True)


def test_the_page_shows_every_kind_and_what_could_not_be_computed(told):
    report = told()
    report["real"]["by_step"]["ci95"][0] = [None, None]
    report["real"]["by_step"]["mean"][0] = report["training"]["macro_f1"] = None
    page = section({"inverse": report}, None)
    assert "Can one tell what was done?" in page and "<b>" not in page
    for words in ("real frames through the tokenizer", "imagined frames", "F1 of", "left", "down", "–"):
        assert words in page
    ((value, meaning),) = cards({"inverse": report})
    assert value == f"{report['imagined']['macro_f1']['mean']:.2f}" and "chance 0.25" in meaning


def test_frames_are_shrunk_to_a_bounded_size():
    frames = torch.arange(3 * 256 * 96 * 3).remainder(251).to(torch.uint8).reshape(3, 256, 96, 3)
    small = inverse._shrink(frames)
    assert small.shape == (3, 3, 64, 24)
    blocks = frames.numpy().reshape(3, 64, 4, 24, 4, 3).mean((2, 4)) / 127.5 - 1
    np.testing.assert_allclose(small.permute(0, 2, 3, 1).numpy(), blocks, atol=1e-5)
    assert inverse._shrink(frames[:, :64, :64]).shape == (3, 3, 64, 64)
