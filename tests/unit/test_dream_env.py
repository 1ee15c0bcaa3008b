"""The dream as an environment: Gymnasium's checks and wrappers, scalar against vector, and wrong calls."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, RecordVideo
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dream_envs import CONTEXT, LENGTH, WORLDS, make_data, start
from support.worlds import HEIGHT, SPACES, WIDTH, make_actions, make_frames, make_world
from worldvq_envs.dream import DreamEnv, DreamVectorEnv

import worldvq
from worldvq.data.clips import read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError

ID, EVERYTHING = "worldvq/Dream-v0", ("entropy", "tokens", "feature")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {kind: make_data(tmp_path_factory.mktemp(kind) / "data", kind) for kind in SPACES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    WORLDS["discrete"].save(path)
    return path


@pytest.fixture
def made(folder, stores):
    """What ``gymnasium.make`` is told."""
    return {"world": folder, "data": stores["discrete"], "context": CONTEXT, "horizon": 12}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.filterwarnings("ignore:.*For Box action spaces.*")  # a recorded space is not ours to normalise
@pytest.mark.filterwarnings("ignore:.*Box action space (maximum|minimum):UserWarning")
def test_passes_the_gymnasium_checker(stores, kind):
    env = DreamEnv(**start(kind, stores, info=EVERYTHING, render_mode="rgb_array"))
    check_env(env, skip_render_check=True)
    assert env.action_names == SPACES[kind].names


def test_is_made_by_gymnasium_in_both_forms(made):
    env = gymnasium.make(ID, render_mode="rgb_array", info=EVERYTHING, **made)
    observation, info = env.reset(seed=1)
    assert observation in env.observation_space and observation.shape == (HEIGHT, WIDTH, 3)
    assert env.unwrapped.action_names == ("left", "stay", "right") and env.action_space == gymnasium.spaces.Discrete(3)
    np.testing.assert_array_equal(env.render(), observation)
    assert info["entropy"].shape == info["tokens"].shape == WORLDS["discrete"].tokenizer.grid
    assert info["feature"].shape == (WORLDS["discrete"].dynamics.config.width,)
    batch = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **made)
    assert isinstance(batch, DreamVectorEnv)
    observations, _ = batch.reset(seed=1)
    assert observations in batch.observation_space
    np.testing.assert_array_equal(observations[0], observation)


def test_works_under_the_wrappers_that_people_use(made, tmp_path):
    env = gymnasium.make(ID, render_mode="rgb_array", **made)
    env = RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda _: True, disable_logger=True)
    env = FrameStackObservation(RecordEpisodeStatistics(env), 4)
    stacked, _ = env.reset(seed=0)
    assert stacked.shape == (4, HEIGHT, WIDTH, 3)
    info, steps = {}, 0
    while "episode" not in info:
        before, (stacked, _, _, _, info) = stacked, env.step(1)
        np.testing.assert_array_equal(stacked[:-1], before[1:])
        steps += 1
    env.close()
    assert info["episode"]["l"] == steps and len(list(tmp_path.glob("videos/*.mp4"))) == 1
    several = gymnasium.wrappers.vector.RecordEpisodeStatistics(gymnasium.make_vec(ID, num_envs=2, **made))
    several.reset(seed=0)
    infos = [several.step([1, 1])[-1] for _ in range(14)]
    assert any("episode" in info for info in infos)


def test_an_episode_is_what_the_world_itself_imagines(stores):
    """Contexts, seeds, rewards and frames, against ``WorldModel.imagine_tokens`` and clips read by hand."""
    world, actions = WORLDS["discrete"], make_actions("discrete", 1, 20)[0]
    env = DreamEnv(**start("discrete", stores, info="tokens"))
    _, info = env.reset(seed=5)
    seen = [info["tokens"]]
    rewards, frames = [], []
    for action in actions:
        frame, reward, terminated, truncated, info = env.step(int(action))
        seen.append(info["tokens"]), rewards.append(reward), frames.append(frame)
        if terminated or truncated:
            break
    rng = np.random.default_rng(np.random.SeedSequence(5))
    store = EpisodeStore.open(stores["discrete"])
    windows = [(number, first) for number in (1, 3, 5) for first in range(LENGTH - CONTEXT)]
    clip = read_clips(store, np.array([windows[rng.integers(len(windows))]]), CONTEXT)
    row_seed = rng.integers(2**63 - 1)
    taken = torch.cat([clip.actions[:, :-1], actions[None, : len(rewards)]], 1)
    expected = world.imagine_tokens(world.tokenize(clip.frames), taken, row_seeds=[row_seed])
    np.testing.assert_array_equal(seen[0], world.tokenize(clip.frames)[0, -1])
    np.testing.assert_array_equal(np.stack(seen[1:]), expected.tokens[0])
    np.testing.assert_allclose(rewards, expected.rewards[0], rtol=1e-4, atol=1e-4)
    difference = np.stack(frames).astype(int) - world.render(expected.tokens)[0].numpy()
    assert np.abs(difference).max() <= 1


def test_contexts_are_held_out_and_do_not_begin_where_an_episode_ended(stores):
    world, store = WORLDS["discrete"], EpisodeStore.open(stores["discrete"])
    env = DreamVectorEnv(num_envs=150, **start("discrete", stores, info="tokens"))
    _, info = env.reset(seed=0)
    last = {}
    for number in (1, 3, 5):
        tokens = world.tokenize(torch.from_numpy(store.read(number).frames)[None])[0].numpy()
        last |= {tokens[first + CONTEXT - 1].tobytes(): (number, first) for first in range(LENGTH - CONTEXT)}
    begun = {last[tokens.tobytes()] for tokens in info["tokens"]}
    assert begun == set(last.values()) and len(begun) > 12  # every one of them comes up, and no other


def same(left, right):
    """Compare nested infos, frames and flags; rounding may show."""
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, tuple | list) or (isinstance(left, np.ndarray) and left.dtype == object):
        for one, other in zip(left, right, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                same(one, other)
    elif np.asarray(left).dtype == np.uint8:
        assert np.abs(np.asarray(left).astype(int) - right).max() <= 1
    else:
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("kind", SPACES)
def test_a_vector_equals_gymnasiums_own_of_scalar_ones(stores, mode, kind):
    kwargs = start(kind, stores, info=EVERYTHING, render_mode="rgb_array", horizon=6)
    ours = DreamVectorEnv(num_envs=4, autoreset_mode=mode, **kwargs)
    theirs = SyncVectorEnv([lambda: DreamEnv(**kwargs)] * 4, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert ours.action_space == theirs.action_space and ours.observation_space == theirs.observation_space
    same(ours.reset(seed=7), theirs.reset(seed=7))
    terminated = truncated = 0
    for step in range(30):
        actions = make_actions(kind, 4, 1)[:, 0].numpy()
        left, right = ours.step(actions), theirs.step(actions)
        same(left, right)
        terminated, truncated = terminated + left[2].sum(), truncated + left[3].sum()
        if step % 9 == 8:
            same(ours.render(), theirs.render())
        if step == 20:
            mask = np.array([False, True, True, False])
            same(ours.reset(seed=3, options={"reset_mask": mask}), theirs.reset(seed=3, options={"reset_mask": mask}))
    assert terminated > 3 < truncated


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), row=st.integers(0, 11))
def test_a_row_of_many_gives_the_episode_of_a_scalar_one(stores, seed, row):
    """Its seed is that of the batch plus its number; whatever ends and begins beside it."""
    kwargs = start("discrete", stores, info="tokens")
    many, one = DreamVectorEnv(num_envs=12, **kwargs), DreamEnv(**kwargs)
    many.reset(seed=seed)
    one.reset(seed=seed + row)
    actions = np.random.default_rng(seed).integers(3, size=(12, 12))
    for taken in actions:
        _, reward, ended, cut, info = one.step(taken[row])
        batch = many.step(taken)
        np.testing.assert_array_equal(batch[4]["tokens"][row], info["tokens"])
        assert (batch[2][row], batch[3][row]) == (ended, cut)
        np.testing.assert_allclose(batch[1][row], reward, rtol=1e-4, atol=1e-4)
        if ended or cut:
            break
    assert ended or cut


def test_endings_come_as_often_as_the_model_says(stores):
    """500 episodes at a constant chance of 0.18: lengths are geometric, cut at the horizon."""
    world = make_world()
    with torch.no_grad():
        world.dynamics.termination.weight.zero_()
        world.dynamics.termination.bias.fill_(-1.5)
    env = DreamVectorEnv(num_envs=500, **{**start("discrete", stores), "world": world, "horizon": 4})
    env.reset(seed=0)
    chance, alive = 1 / (1 + np.exp(1.5)), np.ones(500, bool)
    for step in range(4):
        _, _, terminated, truncated, _ = env.step(np.zeros(500, int))
        spread = np.sqrt(chance * (1 - chance) / alive.sum())
        assert abs(terminated[alive].mean() - chance) < 4 * spread
        assert not truncated.any() or (step == 3 and (truncated == ~terminated)[alive].all())
        alive &= ~terminated


def test_contexts_may_be_given_of_any_length(stores):
    world, frames, actions = WORLDS["discrete"], make_frames(2, 5), make_actions("discrete", 2, 4)
    env = DreamVectorEnv(world, num_envs=2, info="tokens")  # without data
    _, info = env.reset(seed=0, options={"frames": frames.numpy(), "actions": actions.numpy()})
    np.testing.assert_array_equal(info["tokens"], world.tokenize(frames)[:, -1])
    given = {"frames": frames[0, :2].numpy(), "actions": actions[0, :1].numpy()}
    mask = np.array([False, True])
    _, info = env.reset(options={"reset_mask": mask, **given})
    np.testing.assert_array_equal(info["tokens"][1], world.tokenize(frames)[0, 1])
    np.testing.assert_array_equal(info["_tokens"], mask)
    one = DreamEnv(world, info="tokens")
    one.reset(seed=0, options=given)


def test_what_does_not_fit_is_named(made, stores, tmp_path):
    world, frames = WORLDS["discrete"], make_frames(1, 3)[0].numpy()
    for changes, words in (
        ({"world": tmp_path}, "no world in"),
        ({"data": tmp_path}, "no dataset in|no dataset"),
        ({"data": stores["box"]}, "action_space"),
        ({"context": 1}, "context 1: give a whole number of at least 2"),
        ({"context": LENGTH}, r"no held-out episode has 10 frames.*context \+ 1"),
        ({"horizon": 0}, "horizon 0"),
        ({"info": ("entropi",)}, "did you mean 'entropy'"),
        ({"sampling": {"temprature": 1}}, "temperature"),
        ({"render_mode": "human"}, "rgb_array"),
    ):
        with pytest.raises(UsageError, match=words):
            DreamEnv(**{**made, **changes})
    env = DreamEnv(world)
    for options, words in (
        ({}, "data=DIR"),
        ({"frames": frames}, "together with the actions"),
        ({"frames": frames[:1], "actions": []}, "a context of 1 frames is too short"),
        ({"frames": frames[:, :8], "actions": [0, 0]}, "frames are uint8"),
        ({"frames": frames, "actions": [0, 9]}, "the action 9"),
        ({"frames": frames, "actions": [0]}, "2 actions between them, got 1"),
        ({"frame": frames, "actions": [0]}, r"options \['frame'\]"),
    ):
        with pytest.raises(UsageError, match=words):
            env.reset(options=options)
    with pytest.raises(UsageError, match="call reset"):
        env.step(0)
    with pytest.raises(UsageError, match="call reset"):
        env.get_state()
    env.reset(options={"frames": frames, "actions": [0, 0]})
    with pytest.raises(UsageError, match="the action 3"):
        env.step(3)


def test_what_does_not_fit_a_batch_is_named(stores):
    kwargs = start("discrete", stores)
    with pytest.raises(UsageError, match="num_envs 0"):
        DreamVectorEnv(num_envs=0, **kwargs)
    with pytest.raises(UsageError, match="NextStep, SameStep"):
        DreamVectorEnv(num_envs=2, autoreset_mode="Disabled", **kwargs)
    env = DreamVectorEnv(num_envs=2, **kwargs)
    for call in (lambda: env.step([0, 0]), lambda: env.fork([0]), lambda: env.forecast([0, 0])):
        with pytest.raises(UsageError, match="call reset"):
            call()
    with pytest.raises(UsageError, match="first reset is of all"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(UsageError, match="3 seeds for 2"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(UsageError, match="3 contexts for 2"):
        env.reset(options={"frames": make_frames(3, 3).numpy(), "actions": np.zeros((3, 2))})
    env.reset(seed=0)
    with pytest.raises(UsageError, match="2 booleans"):
        env.reset(options={"reset_mask": np.array([False, False])})
    state = env.get_state()
    with pytest.raises(UsageError, match="of 2 dreams"):
        DreamEnv(**kwargs).set_state(state)
    other = DreamVectorEnv(num_envs=2, **{**kwargs, "world": make_world()})
    with pytest.raises(UsageError, match="another world"):
        other.set_state(state)


def test_importing_worldvq_registers_it():
    assert worldvq.__version__ and ID in gymnasium.registry


def test_stable_baselines3_trains_in_it(made):
    """With the line of docs/dream_env.md."""
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from worldvq_envs.sb3 import SB3VecEnv

    env = SB3VecEnv(gymnasium.make_vec("worldvq/Dream-v0", num_envs=8, autoreset_mode="SameStep", **made))
    agent = stable_baselines3.PPO("MlpPolicy", env, n_steps=8, batch_size=32, n_epochs=1, device="cpu", seed=0)
    before = next(agent.policy.parameters()).detach().clone()
    agent.learn(128)
    assert (next(agent.policy.parameters()) != before).any()
    stable_baselines3.A2C("MlpPolicy", gymnasium.make("worldvq/Dream-v0", **made), n_steps=4, device="cpu").learn(8)
