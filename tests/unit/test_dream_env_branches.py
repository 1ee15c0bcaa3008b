"""The dream environment for planners: states, forks, forecasts, and what it says of a step."""

import numpy as np
import pytest
import torch
from support.dream_envs import WORLDS, make_data, start
from support.worlds import CODES, SPACES, make_actions, make_frames, make_world
from worldvq_envs.dream import DreamEnv, DreamVectorEnv

EVERYTHING = ("entropy", "tokens", "feature")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {kind: make_data(tmp_path_factory.mktemp(kind) / "data", kind) for kind in SPACES}


@pytest.mark.parametrize("num_envs", [None, 3])
def test_a_state_continues_exactly_and_branches(stores, num_envs):
    kwargs = start("discrete", stores, info="tokens")
    shape = () if num_envs is None else (num_envs,)
    rng = np.random.default_rng(0)

    def make():
        return DreamEnv(**kwargs) if num_envs is None else DreamVectorEnv(num_envs=num_envs, **kwargs)

    def follow(env, actions):
        seen = []
        for action in actions:
            _, _, terminated, truncated, info = env.step(action)
            seen.append(info["tokens"])
            if num_envs is None and (terminated or truncated):
                seen.append(env.reset()[1]["tokens"])
        return np.stack(seen)

    env = make()
    env.reset(seed=4)
    follow(env, rng.integers(3, size=(2, *shape)))
    state = env.get_state()
    future, other = rng.integers(3, size=(2, 20, *shape))
    expected = follow(env, future)
    fresh = make()
    fresh.set_state(state)
    np.testing.assert_array_equal(follow(fresh, future), expected)
    shown = env.set_state(state)
    np.testing.assert_array_equal(shown, fresh.set_state(state))
    assert (follow(env, other)[:15] != expected[:15]).any()
    env.set_state(state)  # which nothing has changed
    np.testing.assert_array_equal(follow(env, future), expected)


def test_forks_are_batches_of_their_own(stores):
    kwargs = start("discrete", stores, info="tokens")
    one, many = DreamEnv(**kwargs), DreamVectorEnv(num_envs=3, **kwargs)
    one.reset(seed=1)
    many.reset(seed=0)  # whose row 1 is the same
    one.step(2)
    many.step([0, 2, 1])
    forks = [one.fork(2), many.fork([1, 1]), many.fork([1, 1], row_seeds=[7, 8])]
    before = many.get_state()
    seen = [np.stack([fork.step([1, 1])[4]["tokens"] for _ in range(2)]) for fork in forks]
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0][:, 0], seen[0][:, 1])
    assert (seen[2][:, 0] != seen[2][:, 1]).any()
    assert torch.equal(many.get_state().dream.tokens, before.dream.tokens)
    np.testing.assert_array_equal(np.stack([one.step(1)[4]["tokens"] for _ in range(2)]), seen[0][:, 0])


def test_a_forecast_draws_each_token_from_the_parallel_head(stores):
    """Against the head's own logits, by recomputing from scratch, at temperature 0 and, for frequencies, at 1."""
    world = WORLDS["discrete"]
    env = DreamEnv(**start("discrete", stores, sampling={"temperature": 0}))
    env.reset(seed=2)
    fork = env.fork(3)
    state = fork.get_state().dream
    context = world.dynamics.observe(state.tokens, torch.tensor([0, 1, 2]), state.state).context[:, 0]
    step = fork.forecast([0, 1, 2])
    assert torch.equal(step.tokens, world.dynamics.forecast(context).argmax(-1))
    drawn = DreamEnv(**start("discrete", stores, sampling={"temperature": 1}))
    drawn.reset(seed=2)
    many = drawn.fork(2000, row_seeds=np.arange(2000))
    tokens = many.forecast(np.ones(2000, int)).tokens[:, 0, 0]
    expected = world.dynamics.forecast(context)[1, 0, 0].softmax(-1).detach().numpy()
    found = np.bincount(tokens, minlength=CODES) / 2000
    assert np.abs(found - expected).max() < 4 * np.sqrt(expected * (1 - expected) / 2000).max()
    _, _, _, _, info = many.step(np.ones(2000, int))  # and goes on
    assert info == {}


def test_entropy_and_feature_are_those_of_the_whole_past(stores):
    """Recomputed without any cache: a pass over all frames since the context began."""
    world, actions = make_world(num_blocks=1, recall=False), make_actions("discrete", 1, 1)
    env = DreamEnv(**{**start("discrete", stores, info=EVERYTHING), "world": world})
    frames = make_frames(1, 2)
    env.reset(seed=0, options={"frames": frames[0].numpy(), "actions": actions[0].numpy()})
    *_, info = env.step(2)
    tokens = torch.cat([world.tokenize(frames), torch.from_numpy(info["tokens"])[None, None]], 1)
    with torch.no_grad():
        taken = torch.cat([actions, torch.tensor([[2, 0]])], 1)
        context = world.dynamics.context(tokens, taken).context[:, 1]
        chances = world.dynamics.prior(tokens[:, 2], context).softmax(-1)[0].numpy()
    np.testing.assert_allclose(info["entropy"], -(chances * np.log(chances)).sum(-1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(info["feature"], context[0].mean((0, 1)).numpy(), rtol=1e-3, atol=1e-4)
