"""A world: saved and loaded bit for bit, imagined the same in every way there is, scored as NumPy scores it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.worlds import CODES, HEIGHT, SPACES, WIDTH, WINDOW, make_actions, make_frames, make_world

from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.files.reading import read_sealed, seal
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import load_tokenizer, save_tokenizer
from worldvq.nn.devices import resolve_device
from worldvq.types import TokenClip
from worldvq.world.dream import Dream
from worldvq.world.model import WorldModel

FILES = ("tokenizer.safetensors", "dynamics.safetensors")


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture
def saved(world, tmp_path):
    world.save(tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("kind", SPACES)
def test_a_saved_world_comes_back_bit_for_bit(tmp_path, kind):
    world, frames, actions = make_world(kind), make_frames(2, 3), make_actions(kind, 2, 5)
    assert len(world.tokenize(frames).unique()) > 2  # or nothing below means much
    world.save(tmp_path)
    again = WorldModel.load(tmp_path, "cpu")
    assert (again.action_space, again.meta, again.frame_size) == (SPACES[kind], {"env_id": "Toy-v0"}, (HEIGHT, WIDTH))
    for module, other in ((world.tokenizer, again.tokenizer), (world.dynamics, again.dynamics)):
        weights = other.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    imagined = world.imagine(frames, actions, seed=5)
    assert imagined.shape == (2, 3, HEIGHT, WIDTH, 3) and imagined.dtype == torch.uint8
    assert torch.equal(again.imagine(frames, actions, seed=5), imagined)
    assert not torch.equal(world.imagine(frames, actions, seed=6), imagined)


@pytest.mark.parametrize("kind", SPACES)
def test_imagining_at_once_equals_stepping(kind):
    world, frames, actions = make_world(kind), make_frames(3, 2), make_actions(kind, 3, 9)
    at_once = world.imagine(frames, actions, seed=1, temperature=0.7, top_k=5)
    dream = world.start(frames, actions[:, :1], seed=1, temperature=0.7, top_k=5)
    stepped = [dream.step(actions[:, index]) for index in range(1, 9)]
    assert stepped[0].shape == (3, HEIGHT, WIDTH, 3)
    # Pixels may round differently when more frames are decoded at once; tokens may not.
    assert (torch.stack(stepped, 1).int() - at_once.int()).abs().max() <= 1
    tokens = world.imagine_tokens(world.tokenize(frames), actions, seed=1, temperature=0.7, top_k=5).tokens
    dream = world.start(frames, actions[:, :1], seed=1, temperature=0.7, top_k=5)
    assert torch.equal(torch.stack([dream.step_tokens(actions[:, index])[0] for index in range(1, 9)], 1), tokens)


def test_temperature_zero_depends_on_no_seed_and_no_neighbour(world):
    frames, actions = make_frames(2, 2), make_actions("discrete", 2, 5)
    greedy = world.imagine(frames, actions, seed=0, temperature=0)
    assert torch.equal(world.imagine(frames, actions, seed=7, temperature=0), greedy)
    assert torch.equal(world.imagine(frames[1:], actions[1:], temperature=0), greedy[1:])
    # Drawing from the single most probable token is the same thing, whatever the noise.
    assert torch.equal(world.imagine(frames, actions, seed=3, top_k=1), greedy)


def test_imagined_frames_follow_the_actions(world):
    frames, actions = make_frames(16, 2), make_actions("discrete", 16, 6)
    other = actions.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 3
    one, two = (world.imagine(frames, taken) for taken in (actions, other))
    assert torch.equal(one[:, :2], two[:, :2])  # actions[:, 3] leads into the third imagined frame
    assert not torch.equal(one[:, 2:], two[:, 2:])


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_what_a_dream_remembers(num_blocks):
    """One block sees the last ``context_frames`` frames, so the rest may be cut off.

    A second block sees frames through what the first made of them, which reaches further back: cutting changes it.
    """
    world = make_world(num_blocks=num_blocks, recall=False)
    tokens, actions = torch.randint(CODES, (4, 10, *world.dynamics.grid)), make_actions("discrete", 4, 10)
    long = world.imagine_tokens(tokens, actions, seed=2)
    short = world.imagine_tokens(tokens[:, -WINDOW:], actions[:, -WINDOW:], seed=2)
    same = torch.allclose(long.rewards, short.rewards, rtol=1e-4, atol=1e-5)
    assert same == (num_blocks == 1)
    if num_blocks == 1:
        assert torch.equal(long.tokens, short.tokens)


def test_scores_are_those_of_numpy(world):
    context, steps = 2, 6
    tokens, actions = torch.randint(CODES, (3, steps, *world.dynamics.grid)), make_actions("discrete", 3, steps)
    rewards, terminated = torch.randn(3, steps), torch.rand(3, steps) < 0.3
    mask = torch.arange(steps) < torch.tensor([[6], [4], [2]])
    scores = world.score(TokenClip(tokens, actions, rewards, terminated, mask, mask), context)
    with torch.no_grad():
        prediction = world.dynamics(tokens, actions)
    logits = prediction.logits.double().numpy()  # [:, t - 1] is of frame t
    assert scores.nats.shape == (3, steps - context, *world.dynamics.grid)
    for index in np.ndindex(*scores.nats.shape):
        clip, step, row, column = index
        line = logits[clip, context + step - 1, row, column]
        token = int(tokens[clip, context + step, row, column])
        assert float(scores.nats[index]) == pytest.approx(np.log(np.exp(line).sum()) - line[token], rel=1e-4)
    reward, logit = prediction.rewards.double().numpy(), prediction.termination.double().numpy()
    edges = np.linspace(-20, 20, reward.shape[-1])
    bins = np.sign(edges) * (np.exp(np.abs(edges)) - 1)
    for step in range(steps - context):
        before = context + step - 1  # the transition that leads into frame context + step
        probability = np.exp(reward[:, before]) / np.exp(reward[:, before]).sum(-1, keepdims=True)
        np.testing.assert_allclose(scores.rewards[:, step], probability @ bins, rtol=1e-4)
        np.testing.assert_allclose(scores.termination[:, step], 1 / (1 + np.exp(-logit[:, before])), rtol=1e-4)
        assert torch.equal(scores.rewards_true[:, step], rewards[:, before])
        assert torch.equal(scores.termination_true[:, step], terminated[:, before])
        assert torch.equal(scores.mask[:, step], mask[:, context + step])


@pytest.mark.parametrize("kind", SPACES)
def test_actions_and_frames_that_do_not_fit_are_named(kind):
    world, frames, actions = make_world(kind), make_frames(2, 3), make_actions(kind, 2, 5)
    for wrong, word in (
        (frames[:, :, :-2], f"{HEIGHT - 2}"),
        (frames[..., :1], "1]"),
        (frames[0], str(list(frames[0].shape)).replace("[", r"\[")),
    ):
        with pytest.raises(UsageError, match=word):
            world.imagine(wrong, actions)
    for wrong in (actions[:, :2], actions[:1], actions[..., None], actions[:, 0]):
        with pytest.raises(UsageError) as caught:
            world.imagine(frames, wrong)
        assert str(list(wrong.shape)) in str(caught.value)
    with pytest.raises(UsageError, match="2 actions between them, got 1"):
        world.start(frames, actions[:, :1])
    with pytest.raises(UsageError, match="of one step"):
        world.start(frames, actions[:, :2]).step(actions[:1, 0])
    with pytest.raises(UsageError, match=r"temperature = -1"):
        world.imagine(frames, actions, temperature=-1)


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete"])
@pytest.mark.parametrize("step", [0, 4])
def test_a_choice_that_is_not_there_is_named(kind, step):
    world, actions = make_world(kind), make_actions(kind, 2, 5)
    actions[1, step] = 3
    with pytest.raises(UsageError, match="a clip: the action 3 lies outside"):
        world.imagine(make_frames(2, 3), actions)


def test_tokenizer_and_dynamics_must_fit(world):
    for grid, num_codes in (((2, 2), CODES), (world.dynamics.grid, CODES + 1)):
        other = Dynamics(world.dynamics.config, grid, num_codes, world.action_space)
        with pytest.raises(UsageError) as caught:
            WorldModel(world.tokenizer, other, {})
        assert str(caught.value).count("the tokenizer has") == 1  # the field that differs, and no other
        assert f"the dynamics expects {grid[0]}x{grid[1]}:" in str(caught.value) or f"expects {num_codes}:" in str(
            caught.value
        )


def test_what_is_missing_or_newer_is_said(saved):
    with pytest.raises(UsageError, match=r"nowhere: make one with `worldvq train dynamics`"):
        WorldModel.load(saved / "nowhere")
    with pytest.raises(UsageError, match="device 'gpux' is not there"):
        WorldModel.load(saved, "gpux")
    description = read_sealed(saved / "world.json")
    for version in (2, 99):
        (saved / "world.json").write_bytes(seal(description | {"format_version": version}))
        with pytest.raises(UsageError, match=rf"world\.json is of format {version}, .* reads formats 3 and 4"):
            WorldModel.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_truncated_missing_and_foreign_weights_are_named(saved, name):
    whole = (saved / name).read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=name):
            WorldModel.load(saved)
    (saved / name).write_bytes((saved / FILES[name == FILES[0]]).read_bytes())
    with pytest.raises(CorruptFileError, match=name):
        WorldModel.load(saved)
    (saved / name).unlink()
    with pytest.raises(UsageError, match=name):
        WorldModel.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_the_weights_is_found(saved, name):
    whole = (saved / name).read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for place in (*rng.integers(0, begin, 30), *rng.integers(begin, len(whole), 10)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        (saved / name).write_bytes(changed)
        with pytest.raises(CorruptFileError, match=name):
            WorldModel.load(saved)


def test_a_world_with_a_flipped_bit_in_its_description_is_refused_or_works(saved):
    path, frames, actions = saved / "world.json", make_frames(1, 2), make_actions("discrete", 1, 2)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    kind = whole.index(b'"kind": "discrete"') + 10
    for place in (kind, *rng.integers(0, len(whole), 120)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            assert WorldModel.load(saved).imagine(frames, actions).shape == (1, 1, HEIGHT, WIDTH, 3)
        except (UsageError, CorruptFileError) as error:
            assert str(saved) in str(error)  # world.json, or the weights that its numbers no longer fit
            refused += 1
    assert refused > 115  # a flip in the word "checksum" makes it a world from before there were any


def test_a_world_that_merges_positions_dreams_on_when_it_is_read_forked_and_joined(tmp_path):
    world, frames, actions = make_world(merge=2), make_frames(2, 2), make_actions("discrete", 2, 9)
    world.save(tmp_path)
    imagined = WorldModel.load(tmp_path).imagine(frames, actions, seed=5, method="sequential")
    dream = world.start(frames, actions[:, :1], seed=5)
    for index in range(1, 5):
        assert torch.equal(dream.step(actions[:, index]), imagined[:, index - 1])
    both = Dream.join([dream.fork([1]), dream.fork([0])])
    for index in range(5, 9):
        assert torch.equal(both.step(actions.flip(0)[:, index]), imagined.flip(0)[:, index - 1])
    path = tmp_path / "world.json"
    description = read_sealed(path)
    description["dynamics"]["merge"] = 3
    path.write_bytes(seal(description))
    with pytest.raises(CorruptFileError, match=r"world\.json is damaged: dynamics\.merge 3: a grid of 4x6"):
        WorldModel.load(tmp_path)


def test_a_world_that_was_not_written_to_its_end_is_none(world, saved, monkeypatch):
    replaced, replace = [], Path.replace

    def failing(path, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        world.save(saved)
    with pytest.raises(UsageError, match="no world in"):
        WorldModel.load(saved)
    assert not list(saved.glob(".*"))


def test_a_world_stays_as_it_was_where_another_finds_no_space(world, saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    calls = []

    def full(path, size):
        calls.append(path)
        if len(calls) == 3:
            raise RunError(f"{path}: the disk is full")

    monkeypatch.setattr("worldvq.files.atomic.check_space", full)
    with pytest.raises(RunError, match=r"world\.json: the disk is full"):
        world.save(saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_a_tokenizer_alone_comes_back_too(world, tmp_path):
    with pytest.raises(UsageError, match=r"no trained tokenizer in .*train tokenizer"):
        load_tokenizer(tmp_path)
    save_tokenizer(tmp_path, world.tokenizer)
    frames = torch.rand(3, 3, HEIGHT, WIDTH)
    assert torch.equal(load_tokenizer(tmp_path).encode(frames), world.tokenizer.encode(frames))
    (tmp_path / "tokenizer.json").write_text('{"width": ')
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_devices_by_name(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "meta", ""):
        with pytest.raises(UsageError, match=rf"^device '{name}' .*: give auto or one of .*cpu"):
            resolve_device(name)

    def zeros(_, device):  # as if there were such a device
        return SimpleNamespace(item=lambda: 0, device=torch.device(device))

    monkeypatch.setattr(torch, "zeros", zeros)
    for cuda, mps, device in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device("auto") == torch.device(device)
