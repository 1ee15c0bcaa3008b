"""A dream in progress: flat for ever, the same however it is drawn, compiled or not."""

import shutil

import pytest
import torch

from tests.unit.test_world import CODES, WINDOW, make_actions, make_frames, make_world
from worldvq.errors import UsageError


@pytest.fixture(scope="module")
def world():
    return make_world()


@torch.no_grad()
def test_a_long_dream_equals_recomputing_what_it_can_remember_from_scratch(world):
    """Each of L blocks sees ``context_frames`` frames of the block below: L (context_frames - 1) + 1 frames in all."""
    dynamics, steps = world.dynamics, 60
    reach = len(dynamics.blocks) * (WINDOW - 1) + 1
    tokens, actions = torch.randint(CODES, (2, steps, *dynamics.grid)), make_actions("discrete", 2, steps)
    state = dynamics.start(2)
    before = [(cache.keys.data_ptr(), cache.keys.shape) for cache in state.caches]
    for step in range(steps):
        streamed = dynamics.observe(tokens[:, step], actions[:, step], state)
        if step % 7 == 0 and step >= reach:
            window = slice(step + 1 - reach, step + 1)
            fresh = dynamics.context(tokens[:, window], actions[:, window])
            torch.testing.assert_close(streamed.context[:, 0], fresh.context[:, -1], rtol=1e-4, atol=1e-4)
            shorter = dynamics.context(tokens[:, window][:, 1:], actions[:, window][:, 1:])
            assert not torch.allclose(streamed.context[:, 0], shorter.context[:, -1], rtol=1e-4, atol=1e-4)
    assert [(cache.keys.data_ptr(), cache.keys.shape) for cache in state.caches] == before  # in place, for ever


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
