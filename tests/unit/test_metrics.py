"""Metrics against their formulas and independent implementations."""

import math

import numpy as np
import pytest
import torch

from worldvq.errors import UsageError
from worldvq.evaluation import metrics


def pair(num_images=5, height=24, width=37, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-60, 60, a.shape), 0, 255).astype(np.uint8)
    return a, b


def test_psnr_is_the_formula():
    a, b = pair(130, 8, 8)
    expected = [10 * math.log10(255**2 / np.mean((x.astype(float) - y) ** 2)) for x, y in zip(a, b, strict=True)]
    for first, second in ((a, b), (torch.tensor(a).float(), b.astype(np.float32))):
        np.testing.assert_allclose(metrics.psnr(metrics.squared_error(first, second)), expected, rtol=1e-5)
    assert metrics.psnr(metrics.squared_error(a[:1], a[:1])) == [100]


def test_shapes_are_checked():
    a, b = pair()
    for metric in (metrics.squared_error, metrics.ssim):
        with pytest.raises(ValueError, match="equal shapes"):
            metric(a, b[:, :-1])


def test_ssim_agrees_with_torchmetrics_and_pytorch_msssim():
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    msssim = pytest.importorskip("pytorch_msssim")
    a, b = pair(140, 33, 40)
    x, y = (torch.tensor(z).movedim(-1, 1).float() for z in (a, b))
    ours = metrics.ssim(a, b)
    np.testing.assert_allclose(ours, msssim.ssim(x, y, data_range=255, size_average=False), atol=1e-4)
    _, full = torchmetrics.structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    # It mirrors the borders; where the window lies inside the image the two must agree.
    np.testing.assert_allclose(ours, full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(metrics.ssim(a, a), 1.0, atol=1e-6)


def test_ssim_of_tiny_images_is_finite():
    a, b = pair(3, 6, 5)
    assert np.isfinite(metrics.ssim(a, b)).all()


@pytest.mark.parametrize(("num_a", "num_b", "dims"), [(200, 150, 7), (20, 30, 40), (25, 90, 40)])
def test_frechet_agrees_with_the_matrix_square_root(num_a, num_b, dims):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a = rng.normal(size=(num_a, dims)) @ rng.normal(size=(dims, dims))
    b = rng.normal(size=(num_b, dims)) @ rng.normal(size=(dims, dims)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(linalg.sqrtm(cov_a + 1e-9 * np.eye(dims)) @ cov_b @ linalg.sqrtm(cov_a + 1e-9 * np.eye(dims)))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=2e-3)


def test_frechet_of_scaled_features_has_a_closed_form():
    a = np.random.default_rng(0).normal(size=(500, 3))
    centred = a - a.mean(0)
    spread = np.trace(np.cov(a.T))
    # N(0, S) against N(m, 4 S): |m|^2 + (2 - 1)^2 tr S
    assert metrics.frechet_distance(centred, 2 * centred + 3) == pytest.approx(27 + spread)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="at least two"):
        metrics.frechet_distance(a[:1], a)


def test_fd_efflite0_grows_with_the_damage():
    pytest.importorskip("efficientnet_lite_pytorch")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    frames = coarse.repeat(16, axis=1).repeat(16, axis=2)
    noisy = [np.clip(frames + rng.normal(0, s, frames.shape), 0, 255).astype(np.uint8) for s in (1, 8)]
    assert metrics.efflite0_features(frames).shape == (24, 1280)
    assert metrics.efflite0_features(frames[:2, :20, :30]).shape == (2, 1280)
    distances = [metrics.fd_efflite0(frames, other) for other in (frames, *noisy)]
    assert distances[0] == pytest.approx(0, abs=1e-3 * distances[1])
    assert distances[0] < distances[1] < distances[2]


def test_missing_extra_names_the_way_out(monkeypatch):
    metrics._efflite0.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UsageError, match=r"worldvq\[metrics\]"):
        metrics.efflite0_features(np.zeros((1, 8, 8, 3), np.uint8))


def test_perplexity():
    assert metrics.perplexity([5, 5, 5, 5, 0, 0]) == pytest.approx(4)
    assert metrics.perplexity([9, 0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one"):
        metrics.perplexity([0, 0])


def test_bootstrap_is_deterministic_and_near_the_normal_interval():
    values = np.random.default_rng(0).normal([0, 5, 10], size=(400, 3))
    interval = metrics.ci95(metrics.bootstrap_means(values))
    np.testing.assert_array_equal(interval, metrics.ci95(metrics.bootstrap_means(values)))
    half = 1.96 * values.std(axis=0) / 20
    np.testing.assert_allclose(interval[:, 0], values.mean(0) - half, atol=0.02)
    np.testing.assert_allclose(interval[:, 1], values.mean(0) + half, atol=0.02)
    assert metrics.ci95(metrics.bootstrap_means(values[:, 0])).shape == (2,)


def test_ranking_scores_agree_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.2
    scores = (rng.random(300) + 0.3 * labels).round(1).clip(0, 1)  # with ties
    x, y = torch.tensor(scores), torch.tensor(labels).long()
    expected = classification.binary_average_precision(x, y)
    assert metrics.average_precision(scores, labels) == pytest.approx(float(expected), abs=1e-6)
    assert metrics.auc(scores, labels) == pytest.approx(float(classification.binary_auroc(x, y)), abs=1e-6)
    assert math.isnan(metrics.average_precision(scores, np.zeros(300)))
    assert math.isnan(metrics.auc(scores, np.ones(300)))


def test_correlation():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert metrics.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert math.isnan(metrics.correlation(a, np.ones(50)))
