"""The quantizer against NumPy: eq. 1-3 and appendix A.1 of van den Oord et al. 2017, recomputed with loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvq.config import QuantizerConfig
from worldvq.nn.quantizer import VectorQuantizer


def make(num_codes=8, dim=3, **options):
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=num_codes, code_dim=dim, **options))
    quantizer.initialized.fill_(True)
    quantizer.ema_sum.copy_(quantizer.codebook)
    quantizer.ema_count.fill_(1.0)
    return quantizer


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
    np.testing.assert_allclose(
        float(out.commitment_loss.detach()), ((z.detach().numpy() - codes) ** 2).mean(), rtol=1e-5
    )
    weight = torch.randn_like(z)
    (out.z_q * weight).sum().backward()
    np.testing.assert_allclose(z.grad.numpy(), weight.numpy())


def test_the_codebook_moves_as_appendix_a1_says():
    quantizer = make(num_codes=4, dim=2, decay=0.9, revive_after=1000).train()
    codebook, count, total = (
        b.clone().double().numpy() for b in (quantizer.codebook, quantizer.ema_count, quantizer.ema_sum)
    )
    for _ in range(5):
        z = torch.randn(3, 2, 2, 2)
        quantizer(z)
        rows = z.double().permute(0, 2, 3, 1).reshape(-1, 2).numpy()
        nearest = ((rows[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        for code in range(4):
            mine = rows[nearest == code]
            count[code] = 0.9 * count[code] + 0.1 * len(mine)
            total[code] = 0.9 * total[code] + 0.1 * mine.sum(0)
        smoothed = (count + 1e-5) / (count.sum() + 4e-5) * count.sum()
        codebook = total / smoothed[:, None]
        np.testing.assert_allclose(quantizer.codebook.numpy(), codebook, rtol=1e-4, atol=1e-5)


def test_a_dead_code_is_revived_with_its_statistics():
    quantizer = make(num_codes=6, dim=2, revive_after=3).train()
    quantizer.codebook[5] = 1e3
    quantizer.ema_sum[5] = 1e3
    for _ in range(3):
        z = torch.randn(4, 2, 4, 4)
        quantizer(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 2)
    assert (rows - quantizer.codebook[5]).abs().sum(1).min() < 1e-6  # it is one of the batch's encoder outputs
    torch.testing.assert_close(quantizer.ema_sum[5] / quantizer.ema_count[5], quantizer.codebook[5])


def test_eval_changes_nothing_and_first_training_batch_initializes():
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=5, code_dim=2))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(1, 2, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    z = torch.randn(4, 2, 3, 3) + 10
    assert len(quantizer.train()(z).tokens.unique()) > 1
    assert bool(quantizer.initialized) and quantizer.codebook.mean() > 5


def test_agrees_with_another_library():
    library = pytest.importorskip("vector_quantize_pytorch")
    other = library.VectorQuantize(dim=4, codebook_size=16, use_cosine_sim=False)
    quantizer = make(16, 4).eval()
    quantizer.codebook.copy_(other.codebook)
    z = torch.randn(2, 9, 4)
    quantized, indices, _ = other.eval()(z)
    assert torch.equal(quantizer.nearest(z), indices)
    torch.testing.assert_close(quantizer.lookup(indices[:, None]).permute(0, 2, 3, 1)[:, 0], quantized)
