"""Causality by brute force, streaming = the full pass, actions as NumPy scales them."""

import numpy as np
import pytest
import torch

from worldvq.errors import UsageError
from worldvq.models.config import DynamicsConfig, PriorConfig
from worldvq.models.dynamics import ActionEmbedding, Dynamics
from worldvq.nn.merge import Merge
from worldvq.nn.recall import Recall
from worldvq.types import ActionSpace

SPACES = {
    "discrete": ActionSpace("discrete", nvec=(5,)),
    "multi_discrete": ActionSpace("multi_discrete", nvec=(3, 2, 4)),
    "box": ActionSpace("box", low=(-1.0, -1.0), high=(1.0, float("inf"))),
}
CONFIG = DynamicsConfig(
    context_frames=3, width=16, num_blocks=2, num_heads=2, prior=PriorConfig(width=16, num_blocks=2, num_heads=2)
)


def random_actions(space, *shape):
    if space.kind == "box":
        return torch.randn(*shape, *space.shape)
    factors = [torch.randint(n, shape) for n in space.nvec]
    return factors[0] if space.kind == "discrete" else torch.stack(factors, -1)


def make(kind="discrete", grid=(2, 3), num_codes=7, recall=False, merge=1):
    config = CONFIG.model_copy(update={"recall": recall, "merge": merge})
    model = Dynamics(config, grid, num_codes, SPACES[kind]).eval()
    for parameter in model.parameters():  # nothing may be hidden by zero-initialised branches
        torch.nn.init.normal_(parameter, std=0.3)
    return model


CASES = [*((kind, False, 1) for kind in SPACES), ("discrete", True, 1), ("discrete", False, 2), ("discrete", True, 2)]


@pytest.mark.parametrize(("kind", "recall", "merge"), CASES)
@torch.no_grad()
def test_no_logit_sees_its_own_token_a_later_one_or_a_later_action(kind, recall, merge):
    width, steps = 4 if merge == 2 else 3, 8 if recall else 6
    model = make(kind, (2, width), recall=recall, merge=merge)
    tokens, actions = torch.randint(7, (1, steps, 2, width)), random_actions(SPACES[kind], 1, steps)
    logits = model(tokens, actions).logits  # [:, t] is of frame t + 1

    def changed(new_tokens, new_actions):
        return ((model(new_tokens, new_actions).logits - logits).abs().amax(-1) > 1e-6)[0].flatten(1)

    # Frames back through the sliding windows of all blocks, and of recall.
    window = (CONFIG.num_blocks + recall) * (CONFIG.context_frames - 1)
    for frame in range(steps):
        for place in range(2 * width):
            other = tokens.clone()
            other[0, frame].view(-1)[place] = (other[0, frame].view(-1)[place] + 1) % 7
            hit = changed(other, actions)  # (steps - 1, places): frames 1 ... by place
            for target in range(1, steps):
                if target < frame or target > frame + window + 1:
                    assert not hit[target - 1].any()
                elif target == frame:  # within the frame: raster order, strictly later places only
                    assert not hit[target - 1, : place + 1].any()
                    assert hit[target - 1, place + 1 :].all()
                else:
                    assert hit[target - 1].all()
    for step in range(steps):
        other = actions.clone()
        other[0, step] = (other[0, step] + 1) % 2 if kind != "box" else other[0, step] + 1
        hit = changed(tokens, other)
        assert not hit[:step].any()  # actions[step] leads into frame step + 1, which is logits[step]
        assert step >= steps - 1 or hit[step].all()


@pytest.mark.parametrize(("kind", "recall", "merge"), [*CASES, ("multi_discrete", True, 1), ("box", True, 1)])
@torch.no_grad()
def test_streaming_with_the_ring_cache_equals_the_full_pass(kind, recall, merge):
    grid, steps = (4, 6) if merge == 2 else (2, 3), 11  # the ring of 3 turns over several times
    model = make(kind, grid, recall=recall, merge=merge)
    tokens, actions = torch.randint(7, (2, steps, *grid)), random_actions(SPACES[kind], 2, steps)
    full, state = model.context(tokens, actions), model.start(2)
    for t in range(steps):
        one = model.observe(tokens[:, t], actions[:, t], state)
        torch.testing.assert_close(one.context[:, 0], full.context[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.rewards[:, 0], full.rewards[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.termination[:, 0], full.termination[:, t], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_squares_are_merged_and_split_as_numpy_cuts_them():
    layer = Merge((6, 4), 2, 3)
    x, coarse = np.random.default_rng(0).standard_normal((5, 24, 3)), torch.randn(5, 6, 3)
    grid, squares = x.reshape(5, 6, 4, 3), [(slice(i, i + 2), slice(j, j + 2)) for i in (0, 2, 4) for j in (0, 2)]
    cut = np.stack([grid[:, rows, columns].reshape(5, 12) for rows, columns in squares], axis=1)  # (5, 6, 12)
    merged = layer.join(torch.from_numpy(x).float())
    np.testing.assert_allclose(merged, cut @ layer.into.weight.numpy().T, rtol=1e-5, atol=1e-5)
    back = grid.copy()
    for number, (rows, columns) in enumerate(squares):
        back[:, rows, columns] += (coarse[:, number] @ layer.out.weight.T).numpy().reshape(5, 2, 2, 3)
    back = torch.from_numpy(back.reshape(5, 24, 3)).float()
    expected = layer.norm(back + layer.feed_forward(back))
    torch.testing.assert_close(layer.split(coarse, torch.from_numpy(x).float()), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_merged_positions_start_as_their_own_tokens():
    config = CONFIG.model_copy(update={"recall": True, "merge": 2})
    model, tokens = Dynamics(config, (2, 4), 7, SPACES["discrete"]).eval(), torch.randint(7, (2, 5, 2, 4))
    assert model.merge is not None
    context = model.context(tokens, random_actions(SPACES["discrete"], 2, 5)).context
    torch.testing.assert_close(context, model.merge.norm(model.embed(tokens)))


def test_a_grid_that_does_not_divide_is_refused_with_what_would():
    with pytest.raises(UsageError, match=r"dynamics\.merge 2: a grid of 21x21 .* set it to 1 or 3 or 7"):
        make(grid=(21, 21), merge=2)


@torch.no_grad()
def test_box_actions_enter_between_minus_one_and_one():
    inf, huge = float("inf"), 1e308  # a float64 that no float32 holds
    bounds = [(0, 255), (-1, 1), (-1e-3, 3e-3), (1000, 1001), (-999_999, 999_999)]
    as_they_are = [(-inf, inf), (-inf, 2), (0, inf), (-huge, huge), (-3.4028234663852886e38, 3.4028234663852886e38)]
    low, high = (np.array(side, float) for side in zip(*bounds, *as_they_are, (3, 3), strict=True))
    embedding = ActionEmbedding(ActionSpace("box", low=tuple(low), high=tuple(high)), len(low))
    assert not [name for name in embedding.state_dict() if "map" not in name]
    torch.nn.init.eye_(embedding.map.weight)
    torch.nn.init.zeros_(embedding.map.bias)
    rng, n = np.random.default_rng(0), len(bounds)
    actions = rng.uniform(-5, 5, (2, 4, len(low)))
    actions[..., :n] = rng.uniform(low[:n], high[:n], (2, 4, n))
    actions[0, 0, :n], actions[0, 1, :n] = low[:n], high[:n]
    actions[..., -1] = 3
    actions = actions.astype(np.float32)
    expected = actions.astype(float)
    expected[..., :n] = 2 * (expected[..., :n] - low[:n]) / (high[:n] - low[:n]) - 1
    expected[..., -1] = 0
    np.testing.assert_allclose(embedding(torch.from_numpy(actions)), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_recall_is_that_of_numpy():
    layer, window = Recall(8, 2, 6), 3
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    frames, actions = torch.randn(2, 5, 6, 8), torch.randn(2, 5, 8)
    found = layer(frames, actions, window).numpy()
    values = layer.value(frames).unflatten(-1, (4, 4)).numpy()  # (B, T, N, heads, D)
    whole = (layer.describe(frames) * layer.place).mean(2).unflatten(-1, (4, 4)).numpy()
    whole = whole / np.linalg.norm(whole, axis=-1, keepdims=True)
    ask, led = (part(actions).unflatten(-1, (4, 4)).numpy() for part in (layer.ask, layer.led))
    for b, t in np.ndindex(2, 5):
        known = range(max(0, t - window + 1), t + 1)
        recalled = np.zeros((6, 4, 4))
        for head in range(4):
            scores, shown = [layer.nothing[head].item()], [np.zeros((6, 4))]
            for u in known:
                other = u + 1 if head < 2 else u - 1  # the frame that the newest one is compared with
                if other in known:
                    alike = whole[b, t, head] @ whole[b, other, head] * layer.sharpness[head].item()
                    scores.append(alike + ask[b, t, head] @ led[b, min(u, other), head] / 2)
                    shown.append(values[b, u, :, head])
            weights = np.exp(scores) / np.exp(scores).sum()
            recalled[:, head] = np.tensordot(weights, np.array(shown), 1)
        expected = layer.out(torch.from_numpy(recalled.reshape(6, 16)).float()).numpy()
        np.testing.assert_allclose(found[b, t], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("head", "expected"), [(0, [0, 4]), (1, [2])])
def test_who_sees_a_frame_again_recalls_what_came_before_and_after_it(head, expected):
    """Frames 0 1 2 3 2 1: before frame 1 came 0, and at the end 2, which is at place 4; after it came 2."""
    layer, pictures = Recall(16, 1, 4), torch.randn(4, 4, 16)
    frames = pictures[[0, 1, 2, 3, 2, 1]][None]
    layer.sharpness.fill_(100)
    layer.ask.weight.zero_()
    layer.ask.bias.zero_()
    layer.out.weight.zero_()
    layer.out.weight[:, 16 * head : 16 * head + 16] = torch.eye(16)
    recalled = layer(frames, torch.zeros(1, 6, 16), window=6)[0, -1]
    shown = layer.value(frames)[0, expected, :, 16 * head : 16 * head + 16].mean(0)
    torch.testing.assert_close(recalled, shown, rtol=1e-3, atol=1e-3)
