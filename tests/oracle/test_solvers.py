"""A world as stable-worldmodel's own solvers take one; what they get is what the dream says of each plan."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from support.worlds import SPACES, make_actions, make_frames, make_world

from worldvq.errors import UsageError
from worldvq.planning.costs import CostModel
from worldvq.planning.rollout import forecast_plans, survived_return

HORIZON, SAMPLES = 3, 16


@pytest.fixture(scope="module")
def solvers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # environments of it that are not installed
        return pytest.importorskip("stable_worldmodel.solver")


def one_hot(space, actions):
    """Plans (..., H, ...) as rows of choices (..., H, D), or as they are."""
    if space.kind == "box":
        return actions
    factors = actions[..., None] if space.kind == "discrete" else actions
    rows = [torch.nn.functional.one_hot(factors[..., i], n) for i, n in enumerate(space.nvec)]
    return torch.cat(rows, -1).float()


def situation(kind, rows=2, frames=2):
    pixels = make_frames(rows, frames)
    info = {"pixels": pixels}
    if frames > 1:
        info["past_actions"] = make_actions(kind, rows, frames - 1)
    return info


def expanded(info, samples):
    return {key: value[:, None].expand(-1, samples, *value.shape[1:]) for key, value in info.items()}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("gradient", [False, True])
def test_costs_are_what_the_dream_says_with_and_without_a_gradient(kind, gradient):
    world, info = make_world(kind), situation(kind)
    plans = make_actions(kind, 2 * 5, HORIZON).unflatten(0, (2, 5))
    candidates = one_hot(SPACES[kind], plans).requires_grad_(gradient)
    model = CostModel(world)
    costs = model.get_cost(expanded(info, 5), candidates)
    goal = make_frames(2, 1)
    far = model.get_cost(expanded({**info, "goal": goal}, 5), candidates)
    assert costs.shape == far.shape == (2, 5) and costs.requires_grad == far.requires_grad == gradient
    codes = world.tokenizer.quantizer.codebook
    for row in range(2):
        dream = world.start(info["pixels"][row, None], info["past_actions"][row, None])
        outcome = forecast_plans(dream, plans[row])
        expected = -survived_return(outcome.rewards, outcome.termination)
        torch.testing.assert_close(costs[row].detach(), expected, rtol=1e-4, atol=1e-4)
        wanted = codes[world.tokenize(goal[row, None])[0, 0]]
        distance = (codes[outcome.tokens[:, -1]] - wanted).square().mean((1, 2, 3))
        torch.testing.assert_close(far[row].detach(), distance, rtol=1e-4, atol=1e-4)
    if gradient:
        (costs.sum() + far.sum()).backward()
        assert candidates.grad is not None and (candidates.grad.flatten(1).norm(dim=1) > 0).all()
        assert all(parameter.grad is None for parameter in world.dynamics.parameters())


def test_a_gradient_of_a_single_step_is_that_of_finite_differences():
    """The reward of the first step depends smoothly on a box action: nothing is passed straight through there."""
    world, info = make_world("box"), situation("box", 1, 1)
    model = CostModel(world)
    action = torch.tensor([[[[0.3, -0.2]]]], requires_grad=True)
    model.get_cost(expanded(info, 1), action).sum().backward()
    with torch.no_grad():
        for axis in range(2):
            step = torch.zeros(1, 1, 1, 2)
            step[..., axis] = 1e-3
            sides = [model.get_cost(expanded(info, 1), action + sign * step).item() for sign in (1, -1)]
            assert action.grad[0, 0, 0, axis].item() == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=0.05, abs=1e-3)


def test_several_steps_in_a_row_are_a_block():
    world, info = make_world("discrete"), situation("discrete", 1)
    plans = make_actions("discrete", 4, 6)[None]
    rows = one_hot(SPACES["discrete"], plans)
    blocks = rows.reshape(1, 4, 3, 6)
    torch.testing.assert_close(
        CostModel(world).get_cost(expanded(info, 4), blocks), CostModel(world).get_cost(expanded(info, 4), rows)
    )


def test_what_is_no_candidate_and_no_picture_is_refused():
    model, info = CostModel(make_world("discrete")), expanded(situation("discrete", 1), 2)
    with pytest.raises(UsageError, match="D = 3 numbers a step"):
        model.get_cost(info, torch.zeros(1, 2, 3, 4))
    with pytest.raises(UsageError, match="pixels are float32"):
        model.get_cost({**info, "pixels": info["pixels"].float()}, torch.zeros(1, 2, 3, 3))
    with pytest.raises(UsageError, match="1 action between them"):
        model.get_cost({"pixels": info["pixels"]}, torch.zeros(1, 2, 3, 3))


def configured(solver, space, rows):
    if space.kind == "box":
        single = gymnasium.spaces.Box(-1, 1, (2,))
        space = gymnasium.vector.utils.batch_space(single, rows)
    else:
        space = gymnasium.spaces.Discrete(space.nvec[0])
    solver.configure(action_space=space, n_envs=rows, config=SimpleNamespace(horizon=HORIZON, action_block=1))
    return solver


@pytest.mark.parametrize("name", ["CEMSolver", "MPPISolver", "ICEMSolver"])
def test_its_sampling_solvers_run_on_numbers(solvers, name):
    model, info = CostModel(make_world("box")), situation("box")
    solver = configured(getattr(solvers, name)(model, num_samples=SAMPLES, n_steps=4, topk=4), SPACES["box"], 2)
    found = solver.solve(info)["actions"]
    assert found.shape == (2, HORIZON, 2)
    with torch.no_grad():
        costs = model.get_cost(expanded(info, 1), found[:, None])[:, 0]
        at_random = model.get_cost(expanded(info, 64), torch.randn(2, 64, HORIZON, 2))
    assert (costs < at_random.mean(1)).all()


def test_its_gradient_solver_goes_down(solvers):
    model, info = CostModel(make_world("box")), situation("box")
    solver = solvers.GradientSolver(model, n_steps=15, num_samples=4, optimizer_kwargs={"lr": 0.02})
    found = configured(solver, SPACES["box"], 2).solve(info)
    history = np.array(found["cost"]).sum(0)
    assert history[-1] < history[0] and found["actions"].shape == (2, HORIZON, 2)


@pytest.mark.parametrize("name", ["CategoricalCEMSolver", "PGDSolver"])
def test_its_solvers_of_choices_find_good_plans(solvers, name):
    world, info = make_world("discrete"), situation("discrete")
    model = CostModel(world)
    sizes = {"num_samples": 24, "n_steps": 6} | ({"topk": 4} if name == "CategoricalCEMSolver" else {})
    found = configured(getattr(solvers, name)(model, **sizes), SPACES["discrete"], 2).solve(info)["actions"]
    plans = torch.tensor(list(itertools.product(range(3), repeat=HORIZON)))
    every = one_hot(SPACES["discrete"], plans[None].expand(2, -1, -1))
    with torch.no_grad():
        costs = model.get_cost(expanded(info, len(plans)), every)
        chosen = one_hot(SPACES["discrete"], found.long().reshape(2, 1, HORIZON))
        reached = model.get_cost(expanded(info, 1), chosen)[:, 0]
    assert (reached < costs.mean(1)).all()
    if name == "CategoricalCEMSolver":
        assert (reached <= costs.quantile(0.2, dim=1)).all()
