"""A dream in progress: flat for ever, the same however it is drawn, compiled or not."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.worlds import CODES, HEIGHT, SPACES, WIDTH, WINDOW, make_actions, make_frames, make_world

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import evaluate
from worldvq.types import Episode


@pytest.fixture(scope="module")
def world():
    return make_world()


@torch.no_grad()
def test_a_long_dream_equals_recomputing_what_it_can_remember_from_scratch(world):
    """Recall and each of L blocks see ``context_frames`` frames of what is below: (L + 1) (context_frames - 1) + 1."""
    dynamics, steps = world.dynamics, 60
    reach = (len(dynamics.blocks) + 1) * (WINDOW - 1) + 1
    tokens, actions = torch.randint(CODES, (2, steps, *dynamics.grid)), make_actions("discrete", 2, steps)
    state = dynamics.start(2)
    rings = [*state.caches, state.recalled]
    before = [(cache.keys.data_ptr(), cache.keys.shape) for cache in rings]
    for step in range(steps):
        streamed = dynamics.observe(tokens[:, step], actions[:, step], state)
        if step % 7 == 0 and step >= reach:
            window = slice(step + 1 - reach, step + 1)
            fresh = dynamics.context(tokens[:, window], actions[:, window])
            torch.testing.assert_close(streamed.context[:, 0], fresh.context[:, -1], rtol=1e-4, atol=1e-4)
            shorter = dynamics.context(tokens[:, window][:, 1:], actions[:, window][:, 1:])
            assert not torch.allclose(streamed.context[:, 0], shorter.context[:, -1], rtol=1e-4, atol=1e-4)
    assert [(cache.keys.data_ptr(), cache.keys.shape) for cache in rings] == before  # in place, for ever


@pytest.mark.parametrize("batch", [1, 4])
def test_every_method_imagines_the_same(world, batch):
    frames, actions = make_frames(batch, 2), make_actions("discrete", batch, 12)
    drawn = {method: world.imagine(frames, actions, seed=4, temperature=0.8, method=method) for method in METHODS}
    assert all(torch.equal(drawn[method], drawn["sequential"]) for method in METHODS)
    tokens = world.imagine_tokens(world.tokenize(frames), actions, seed=4, method="predictive")
    assert tokens.passes.shape == (batch, 11) and (tokens.passes >= 1).all()
    assert tokens.passes.float().mean() < world.dynamics.grid[0] * world.dynamics.grid[1]


METHODS = ("auto", "predictive", "sequential")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
def test_compiled_steps_draw_the_same(world):
    frames, actions = make_frames(2, 2), make_actions("discrete", 2, 7)

    def dream(**sampling):
        session = world.start(frames, actions[:, :1], seed=1, **sampling)
        pictures = [session.step(actions[:, index]) for index in range(1, 7)]
        return session.tokens, torch.stack(pictures)

    (tokens, pictures), (other_tokens, other_pictures) = dream(), dream(compile=True)
    assert torch.equal(tokens, other_tokens)
    assert (pictures.int() - other_pictures.int()).abs().max() <= 1


def test_unknown_ways_of_sampling_are_refused_with_the_nearest_known(world):
    frames, actions = make_frames(1, 2), make_actions("discrete", 1, 3)
    with pytest.raises(UsageError, match="temperature"):
        world.imagine(frames, actions, temprature=1)
    with pytest.raises(UsageError, match="method"):
        world.imagine(frames, actions, method="fast")


class Row:
    """What one row of a dream was told and drew, to be dreamt again alone."""

    def __init__(self, frames, actions, seed):
        self.frames, self.before, self.seed = frames, actions, seed
        self.taken, self.tokens, self.rewards, self.endings = [], [], [], []

    def copy(self, seed=None):
        row = Row(self.frames, self.before, self.seed if seed is None else seed)
        for name in ("taken", "tokens", "rewards", "endings"):
            setattr(row, name, list(getattr(self, name)))
        return row

    def took(self, action, step, index):
        self.taken.append(action)
        for name, values in (("tokens", step.tokens), ("rewards", step.rewards), ("endings", step.termination)):
            getattr(self, name).append(values[index])

    def check(self, world, seed, **sampling):
        if not self.taken:
            return
        actions = torch.cat([self.before, torch.stack(self.taken)])[None]
        alone = world.imagine_tokens(world.tokenize(self.frames[None]), actions, seed, [self.seed], **sampling)
        assert torch.equal(alone.tokens[0], torch.stack(self.tokens))
        torch.testing.assert_close(alone.rewards[0], torch.stack(self.rewards), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.termination[0], torch.stack(self.endings), rtol=1e-4, atol=1e-4)


def begin(kind, count, context, first_seed):
    frames, actions = make_frames(count, context), make_actions(kind, count, context - 1)
    return [Row(frames[i], actions[i], first_seed + i) for i in range(count)]


def together(rows):
    return torch.stack([row.frames for row in rows]), torch.stack([row.before for row in rows])


WORLDS = {(prior, kind): make_world(kind, prior=prior) for prior in ("transformer", "pixelcnn") for kind in SPACES}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prior", ["transformer", "pixelcnn"])
@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(list(SPACES)),
    number=st.integers(0, 2**31),
    batch=st.integers(1, 16),
    doings=st.lists(st.sampled_from(["step", "step", "step", "reset", "fork", "seeded fork", "keep"]), max_size=12),
)
def test_what_a_row_dreams_is_the_same_alone_and_among_others(prior, method, kind, number, batch, doings):
    """Whatever happens to its neighbours, after being forked, reset, or left over; contexts of any length."""
    world, rng = WORLDS[prior, kind], np.random.default_rng(number)
    torch.manual_seed(number)
    sampling = {"method": method, "temperature": 0.9}
    rows = begin(kind, batch, int(rng.integers(1, 2 * WINDOW)), 100)
    dream = world.start(*together(rows), number, [row.seed for row in rows], **sampling)
    left = []
    for doing in [*doings, "step"]:
        some = rng.permutation(len(rows))[: rng.integers(1, len(rows) + 1)]
        if doing == "step":
            taken = make_actions(kind, len(rows), 1)[:, 0]
            step = dream.step_tokens(taken)
            for index, row in enumerate(rows):
                row.took(taken[index], step, index)
        elif doing == "reset":
            new = begin(kind, len(some), int(rng.integers(1, 2 * WINDOW)), int(rng.integers(1000)))
            dream.reset(some, *together(new), [row.seed for row in new])
            for index, row in zip(some, new, strict=True):
                left.append(rows[index])
                rows[index] = row
        elif doing == "keep":
            dream.keep(some)
            rows = [rows[i] for i in some]
            assert len(dream) == len(rows)
        else:  # the fork goes on, and the dream it came from too
            some = rng.integers(len(rows), size=rng.integers(1, 5))
            fork, copies = dream.fork(some), [rows[i].copy() for i in some]
            taken = make_actions(kind, len(copies), 1)[:, 0]
            step = fork.step_tokens(taken)
            for index, row in enumerate(copies):
                row.took(taken[index], step, index)
            left += copies
    for row in [*rows, *left]:
        row.check(world, number, **sampling)


def test_forks_with_the_same_actions_agree_and_with_new_seeds_do_not():
    world, frames, actions = make_world(), make_frames(2, 3), make_actions("discrete", 2, 9)
    dream = world.start(frames, actions[:, :2], seed=3)
    dream.step(actions[:, 2])
    same, other = dream.fork([1, 1, 0]), dream.fork([1], row_seeds=[77])
    assert torch.equal(same.render(), dream.render()[[1, 1, 0]])
    for step in range(3, 9):
        drawn, own = same.step_tokens(actions[[1, 1, 0], step]).tokens, dream.step_tokens(actions[:, step]).tokens
        assert torch.equal(drawn, own[[1, 1, 0]])
        other.step_tokens(actions[1:, step])
    assert not torch.equal(other.tokens[0], dream.tokens[1])


def test_a_row_that_begins_again_dreams_again_what_it_did_unless_it_is_seeded_anew():
    world, frames, actions = make_world(), make_frames(3, 3), make_actions("discrete", 3, 6)
    dream = world.start(frames, actions[:, :2], seed=1)
    first = [dream.step_tokens(actions[:, step]).tokens for step in range(2, 6)]
    dream.reset([False, True, False], frames[1:2], actions[1:2, :2])
    dream.reset([2], frames[2:], actions[2:, :2], row_seeds=[9])
    again = [dream.step_tokens(actions[:, step]).tokens for step in range(2, 6)]
    assert torch.equal(torch.stack(again)[:, 1], torch.stack(first)[:, 1])
    assert not torch.equal(torch.stack(again)[:, 2], torch.stack(first)[:, 2])
    assert dream.steps.tolist() == [8, 4, 4]
    dream.reset(np.zeros(3, bool), frames[:0], actions[:0, :2])  # nothing has ended: nothing happens


def test_arrays_lists_and_single_actions_are_taken():
    """As a store gives them: NumPy, memory-mapped and read-only too."""
    frames, actions = make_frames(2, 3), make_actions("discrete", 2, 6)
    world, expected = make_world(), make_world().imagine(frames, actions, seed=2)
    frozen = frames.numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(world.imagine(frozen, actions.numpy(), seed=2), expected)
    assert torch.equal(world.imagine(frames, actions.float(), seed=2), expected)
    one, all_rows = world.start(frozen, actions[:, :2].tolist()), world.start(frames, actions[:, :2])
    for action in (1, np.int64(2), torch.tensor(0)):
        assert torch.equal(one.step(action), all_rows.step(torch.full((2,), int(action))))
    assert one.step([1, 2]).shape == (2, HEIGHT, WIDTH, 3)
    binary = make_world("multi_discrete")
    assert binary.start(frames, make_actions("multi_discrete", 2, 2)).step(np.array([2, 1])).shape[0] == 2


@pytest.mark.parametrize(
    ("kind", "action", "words"),
    [
        ("discrete", 3, "one step: the action 3 lies outside discrete"),
        ("discrete", [0, -1], "the action -1"),
        ("discrete", 0.5, r"the action 0\.5"),
        ("discrete", float("nan"), "nan"),
        ("discrete", [0, 1, 2], r"actions \[3\] of one step, this world takes \[2\]"),
        ("multi_discrete", [0, 2], "the action 2"),
        ("box", [0.0, float("inf")], "inf"),
        ("box", [1.5, 0.0], r"the action 1\.5 lies outside box"),
        ("box", [1e30, 0.0], "lies outside"),
    ],
)
def test_actions_that_are_none_are_refused_and_change_nothing(kind, action, words):
    world, frames, actions = make_world(kind), make_frames(2, 2), make_actions(kind, 2, 3)
    dream, other = (world.start(frames, actions[:, :1]) for _ in range(2))
    with pytest.raises(UsageError, match=words):
        dream.step(action)
    assert torch.equal(dream.step(actions[:, 1]), other.step(actions[:, 1]))


def test_rows_and_seeds_that_do_not_fit_are_named():
    world, frames, actions = make_world(), make_frames(2, 2), make_actions("discrete", 2, 1)
    dream = world.start(frames, actions)
    for rows, words in (
        ([2], "rows 0 to 1"),
        ([-1], "rows 0 to 1"),
        ([0.0], "rows 0 to 1"),
        ([True], "rows 0 to 1"),
        ([0, 0], "twice"),
        ([], "rows"),
        ([False, False], "at least one"),
    ):
        with pytest.raises(UsageError, match=words):
            dream.keep(rows)
    with pytest.raises(UsageError, match="1 rows begin again, but there are contexts for 2"):
        dream.reset([0], frames, actions)
    with pytest.raises(UsageError, match=r"row_seeds are .*2 integers are needed"):
        world.start(frames, actions, row_seeds=[1])
    with pytest.raises(UsageError, match="frames are float32"):
        world.start(frames.float(), actions)


def test_a_world_samples_as_its_own_config_says():
    """Whoever asks: imagine, start, and what training draws; what is given wins, None lifts a truncation."""
    frames, actions = make_frames(2, 2), make_actions("discrete", 2, 6)
    world, plain = make_world(), make_world()
    world.meta["sampling"] = {"temperature": 0.3, "top_k": 2}
    own = plain.imagine(frames, actions, seed=1, temperature=0.3, top_k=2)
    assert torch.equal(world.imagine(frames, actions, seed=1), own)
    assert not torch.equal(plain.imagine(frames, actions, seed=1), own)
    assert world.start(frames, actions[:, :1]).sampling.temperature == 0.3
    lifted = world.imagine(frames, actions, seed=1, temperature=1, top_k=None)
    assert torch.equal(lifted, plain.imagine(frames, actions, seed=1))


def store_of_noise(path):
    space = SPACES["discrete"]
    meta = DatasetMeta(
        env=EnvConfig(), action_space=space.to_json(), frame_size=(HEIGHT, WIDTH), policy="random", heldout_every=2
    )
    with EpisodeStore.create(path, meta) as store:
        for number in range(4):
            frames, actions = make_frames(1, 9)[0].numpy(), make_actions("discrete", 1, 8)[0].numpy()
            store.commit(number, Episode(frames, actions, np.zeros(8, np.float32), terminated=False, truncated=True))
    return path


def test_what_an_evaluation_finds_does_not_depend_on_its_batches(tmp_path):
    data = store_of_noise(tmp_path / "data")
    reports = [
        evaluate(
            make_world(),
            data,
            tmp_path / str(size),
            EvaluateConfig(clips=5, context=2, horizon=3, batch_size=size),
            progress=False,
        )
        for size in (1, 2, 5)
    ]
    for report in reports[1:]:
        for name in ("imagined", "shuffled_actions"):
            np.testing.assert_allclose(report["psnr"][name]["mean"], reports[0]["psnr"][name]["mean"], rtol=1e-3)


def test_a_dream_multiplies_in_bf16_where_it_is_told_to(world):
    frames, actions = make_frames(4, 3), make_actions("discrete", 4, 3)
    whole, half = (world.start(frames, actions[:, :2], precision=precision) for precision in ("no", "bf16"))
    assert torch.equal(whole.tokens, half.tokens)  # frames are tokenized as always
    for dream in (whole, half):
        dream.forecast(actions[:, 2])
    assert not torch.equal(whole.context, half.context)
    torch.testing.assert_close(whole.context, half.context, rtol=0.05, atol=0.1)
    half.tokens = whole.tokens
    assert (whole.render().int() - half.render().int()).abs().max() <= 12
    torch.testing.assert_close(whole.entropy(), half.entropy(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("able", "expected"), [(True, "bf16"), (False, "no")])
def test_an_evaluation_says_which_precision_it_ran_in(tmp_path, monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    config = EvaluateConfig(clips=2, context=2, horizon=1, sampling={"precision": "auto"})  # type: ignore[arg-type]
    report = evaluate(make_world(), store_of_noise(tmp_path / "data"), tmp_path / "out", config, progress=False)
    assert report["protocol"]["sampling"]["precision"] == expected
    assert f"&#x27;precision&#x27;: &#x27;{expected}&#x27;" in (tmp_path / "out" / "index.html").read_text()
