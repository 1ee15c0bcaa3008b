"""Learned codes against NumPy loops of the papers' equations, and against vector-quantize-pytorch."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.nn.codebook import k_means, rotation
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.quantizer import make_quantizer
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer


def make(num_codes=8, code_dim=3, **options):
    """A quantizer that has seen its first batch."""
    quantizer = make_quantizer(QuantizerConfig(num_codes=num_codes, code_dim=code_dim, **{"kind": "ema"} | options))
    quantizer.initialized.fill_(True)
    if options.get("kind", "ema") == "ema":
        quantizer.ema_sum.copy_(quantizer.codebook)
        quantizer.ema_count.fill_(1.0)
    return quantizer


def rows_of(z):
    return z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def library_pair(kind="ema", cosine=False, rotate=False, num_codes=16, dim=4, decay=0.9):
    """Ours and the other library's, of the same codes; for learned codes its one loss is the sum of both of ours."""
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(3)
    options = {"decay": decay} if kind == "ema" else {}
    ours = make(
        num_codes,
        dim,
        kind=kind,
        cosine=cosine,
        gradient="rotation" if rotate else "straight_through",
        commitment_cost=1.0,
        revive_after=1000,
        **options,
    )
    theirs = library.VectorQuantize(
        dim=dim,
        codebook_size=num_codes,
        decay=decay,
        use_cosine_sim=cosine,
        rotation_trick=rotate,
        ema_update=kind == "ema",
        learnable_codebook=kind == "sgd",
        accept_image_fmap=True,
    )
    with torch.no_grad():
        theirs.codebook = ours.codebook.detach()
        theirs._codebook.embed_avg.copy_(ours.codebook.detach())
    return ours.train(), theirs.train()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 10_000))
def test_nearest_code_is_the_brute_force_one(num_codes, dim, seed):
    torch.manual_seed(seed)
    quantizer = make(num_codes, dim)
    z = torch.randn(7, dim)
    distances = ((z.numpy()[:, None] - quantizer.codebook.numpy()[None]) ** 2).sum(-1)
    chosen = quantizer.nearest(z).numpy()
    np.testing.assert_allclose(distances[np.arange(7), chosen], distances.min(1), rtol=1e-4, atol=1e-5)


def test_forward_gives_codes_commitment_and_straight_through_gradient():
    quantizer = make().eval()
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    out = quantizer(z)
    codes = quantizer.codebook.numpy()[out.tokens.numpy()].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out.z_q.detach().numpy(), codes, atol=1e-6)
    np.testing.assert_allclose(float(out.loss.detach()), 0.25 * ((z.detach().numpy() - codes) ** 2).mean(), rtol=1e-5)
    weight = torch.randn_like(z)
    (out.z_q * weight).sum().backward()
    np.testing.assert_allclose(z.grad.numpy(), weight.numpy())


def test_the_codebook_moves_as_appendix_a1_says():
    quantizer = make(num_codes=4, code_dim=2, decay=0.9, revive_after=1000).train()
    codebook, count, total = (
        b.clone().double().numpy() for b in (quantizer.codebook, quantizer.ema_count, quantizer.ema_sum)
    )
    for _ in range(5):
        z = torch.randn(3, 2, 2, 2)
        quantizer(z)
        rows = rows_of(z).double().numpy()
        nearest = ((rows[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        for code in range(4):
            mine = rows[nearest == code]
            count[code] = 0.9 * count[code] + 0.1 * len(mine)
            total[code] = 0.9 * total[code] + 0.1 * mine.sum(0)
        smoothed = (count + 1e-5) / (count.sum() + 4e-5) * count.sum()
        codebook = total / smoothed[:, None]
        np.testing.assert_allclose(quantizer.codebook.numpy(), codebook, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "cosine", "rotate"),
    [
        ("ema", False, False),
        ("ema", True, False),
        ("ema", False, True),
        ("ema", True, True),
        ("sgd", False, False),  # the other library has no learned cosine codes
        ("sgd", False, True),
    ],
)
def test_training_agrees_with_another_library(kind, cosine, rotate):
    """Codes, tokens, loss and every gradient, over several updates."""
    ours, theirs = library_pair(kind, cosine, rotate)
    steppers = [torch.optim.SGD(q.parameters(), lr=5.0) for q in (ours, theirs)] if kind == "sgd" else []
    for seed in range(6):
        torch.manual_seed(seed)
        data, weight = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
        first, second = data.clone().requires_grad_(), data.clone().requires_grad_()
        out = ours(first)
        z_q, tokens, loss = theirs(second)
        ((out.z_q * weight).sum() + out.loss).backward()
        ((z_q * weight).sum() + loss.sum()).backward()
        assert torch.equal(out.tokens, tokens)
        torch.testing.assert_close(out.z_q, z_q, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.loss, loss.sum() * (2 if kind == "sgd" else 1))
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.lookup(tokens)[0, :, 0, 0], ours.codebook[tokens[0, 0, 0]])


@pytest.mark.parametrize("cosine", [False, True])
def test_the_codebook_loss_against_numpy(cosine):
    quantizer = make(num_codes=6, code_dim=3, kind="sgd", cosine=cosine, revive_after=1000).train()
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = quantizer(z)
    rows, table = rows_of(z).double().numpy(), quantizer.table.weight.detach().double().numpy()
    if cosine:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    codes = table / np.linalg.norm(table, axis=1, keepdims=True) if cosine else table
    nearest = (rows @ codes.T).argmax(1) if cosine else ((rows[:, None] - codes) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(out.tokens.flatten().numpy(), nearest)
    np.testing.assert_allclose(out.loss.item(), 1.25 * ((rows - codes[nearest]) ** 2).mean(), rtol=1e-5)
    out.loss.backward()
    gradient = np.zeros_like(table)
    for row, code in zip(rows, nearest, strict=True):
        toward = 2 * (codes[code] - row) / rows.size
        if cosine:  # only what is tangent to the sphere moves the code
            toward = (toward - codes[code] * (codes[code] @ toward)) / np.linalg.norm(table[code])
        gradient[code] += toward
    np.testing.assert_allclose(quantizer.table.weight.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["ema", "sgd"])
def test_cosine_codes_have_unit_length_and_the_smallest_angle(kind):
    quantizer = make(12, 5, kind=kind, cosine=True).train()
    z = 3 * torch.randn(4, 5, 6, 6, requires_grad=True)
    out = quantizer(z)
    torch.testing.assert_close(out.z_q.norm(dim=1), torch.ones(4, 6, 6))
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(12))
    quantizer.eval()
    angles = F.cosine_similarity(rows_of(z)[:, None], quantizer.codebook.detach()[None], dim=-1).argmax(1)
    assert torch.equal(quantizer.nearest(rows_of(z)), angles)
    assert torch.equal(quantizer(z).tokens.flatten(), angles)
    assert torch.equal(quantizer.nearest(100 * rows_of(z)), angles)
    # The gradient passes to the unit vector, and from there through the normalisation.
    data, weight = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    first, second = data.clone().requires_grad_(), data.clone().requires_grad_()
    (quantizer(first).z_q * weight).sum().backward()
    (F.normalize(second, dim=1) * weight).sum().backward()
    torch.testing.assert_close(first.grad, second.grad)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 1e3]))
def test_rotation_is_the_explicit_matrix(dim, seed, scale):
    torch.manual_seed(seed)
    z = (scale * torch.randn(2, dim, 3, dtype=torch.float64)).requires_grad_()
    codes, weight = torch.randn(2, 2, dim, 3, dtype=torch.float64)
    out = rotation(z, codes)
    assert torch.equal(out, codes)
    (out * weight).sum().backward()
    for b, n in itertools.product(range(2), range(3)):
        e, q, w = z[b, :, n].detach().numpy(), codes[b, :, n].numpy(), weight[b, :, n].numpy()
        e_unit, q_unit = e / np.linalg.norm(e), q / np.linalg.norm(q)
        r = (e_unit + q_unit) / np.linalg.norm(e_unit + q_unit)
        matrix = np.eye(dim) - 2 * np.outer(r, r) + 2 * np.outer(q_unit, e_unit)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-9)
        np.testing.assert_allclose(matrix @ e_unit, q_unit, atol=1e-9)
        expected = np.linalg.norm(q) / np.linalg.norm(e) * matrix.T @ w
        np.testing.assert_allclose(z.grad[b, :, n].numpy(), expected, rtol=1e-7, atol=1e-9)


def test_rotation_survives_zeros_and_opposites():
    codes = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0]], requires_grad=True)
    out = rotation(z, codes)
    out.sum().backward()
    assert torch.equal(out, codes) and bool(z.grad.isfinite().all())


@pytest.mark.parametrize("kind", ["ema", "sgd"])
@pytest.mark.parametrize("cosine", [False, True])
def test_a_dead_code_is_revived(kind, cosine):
    quantizer = make(num_codes=6, code_dim=2, kind=kind, cosine=cosine, revive_after=3).train()
    with torch.no_grad():
        table = quantizer.codebook if kind == "ema" else quantizer.table.weight
        table.copy_(torch.tensor([[1.0, 0.0]]))  # all the same: the first takes every vector
        if kind == "ema":
            quantizer.ema_sum.copy_(table)
    for _ in range(3):
        z = torch.randn(4, 2, 4, 4, requires_grad=True)
        out = quantizer(z)
        (out.z_q.sum() + out.loss).backward()  # reviving must not disturb the backward pass
    rows = F.normalize(rows_of(z)) if cosine else rows_of(z)
    assert (rows - quantizer.codebook[5]).abs().sum(1).min() < 1e-6  # it is one of the batch's encoder outputs
    assert int(quantizer.unused_steps.max()) == 0
    if kind == "ema":
        torch.testing.assert_close(quantizer.ema_sum[5] / quantizer.ema_count[5], quantizer.codebook[5])


@pytest.mark.parametrize("kind", ["ema", "sgd"])
@pytest.mark.parametrize("initialize", ["batch", "kmeans"])
def test_eval_changes_nothing_and_first_training_batch_initializes(kind, initialize):
    quantizer = make_quantizer(QuantizerConfig(kind=kind, num_codes=5, code_dim=2, initialize=initialize))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(1, 2, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    z = torch.randn(4, 2, 3, 3) + 10
    assert len(quantizer.train()(z).tokens.unique()) > 1
    assert bool(quantizer.initialized) and quantizer.codebook.mean() > 5
    resumed = make_quantizer(quantizer.config)
    resumed.load_state_dict(quantizer.state_dict())
    resumed.train()(torch.randn(4, 2, 3, 3) - 10)
    assert resumed.codebook.detach().mean() > 5  # a resumed run does not start over


@pytest.mark.parametrize("unit", [False, True])
def test_kmeans_agrees_with_another_library(unit):
    library = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    torch.manual_seed(0)
    rows = torch.randn(300, 4)
    rows = F.normalize(rows, dim=1) if unit else rows
    means = rows[:12].clone()
    means[7] = means[3] if unit else 100.0  # nothing is near it: it stays
    expected, _ = library.kmeans(
        rows[None], 12, num_iters=10, use_cosine_sim=unit, sample_fn=lambda samples, number: means[None]
    )
    found = k_means(rows, means, 10, unit)
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
    assert unit or torch.equal(found[7], means[7])


def test_kmeans_starts_closer_than_the_batch():
    errors = {}
    for initialize in ("batch", "kmeans"):
        torch.manual_seed(0)
        quantizer = make_quantizer(QuantizerConfig(kind="ema", num_codes=16, code_dim=2, initialize=initialize)).train()
        errors[initialize] = float(quantizer(torch.randn(8, 2, 8, 8)).loss)
    assert errors["kmeans"] < 0.8 * errors["batch"]


def test_state_of_older_checkpoints_still_fits():
    keys = {"codebook", "ema_count", "ema_sum", "unused_steps", "initialized"}
    assert make_quantizer(QuantizerConfig(kind="ema")).state_dict().keys() == keys


def test_learned_codes_are_spared_from_weight_decay():
    quantizer = make(kind="sgd")
    for kind in ("adamw", "muon"):
        decayed, spared = make_optimizer(quantizer, OptimizerConfig(kind=kind)).param_groups
        assert not decayed["params"] and spared["weight_decay"] == 0
        assert spared["params"][0] is quantizer.table.weight
