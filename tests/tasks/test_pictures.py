"""PSNR, SSIM and log-spectral distance against slow literal ones, and scikit-image where it is installed."""

import math

import numpy as np
import pytest
import torch

from kdctool.tasks.pictures import log_spectral_distance, psnr, ssim


def pictures(height=19, width=23, channels=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    one = torch.rand(2, channels, height, width, generator=rng)
    return one, (one + 0.2 * torch.randn(one.shape, generator=rng)).clamp(0, 1)


def literal_ssim(x, y, size=11, sigma=1.5):
    """Wang et al. (2004), window by window: x and y (H, W)."""
    place = np.arange(size) - size // 2
    weights = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    values = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            a, b = (image[top : top + size, left : left + size] for image in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            shared = (weights * (a - mean_a) * (b - mean_b)).sum()
            upper = (2 * mean_a * mean_b + 1e-4) * (2 * shared + 9e-4)
            values.append(upper / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_the_mean_over_all_windows():
    one, other = pictures()
    expected = [
        np.mean([literal_ssim(a.double().numpy(), b.double().numpy()) for a, b in zip(x, y, strict=True)])
        for x, y in zip(one, other, strict=True)
    ]
    assert ssim(one, other).tolist() == pytest.approx(expected, abs=1e-10)


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    one, other = pictures(64, 48)
    for x, y, ours in zip(one, other, ssim(one, other).tolist(), strict=True):
        theirs = metrics.structural_similarity(
            x.double().numpy(),
            y.double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=0,
        )
        assert ours == pytest.approx(theirs, abs=1e-10)
        assert float(psnr(x[None], y[None])) == pytest.approx(
            metrics.peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=1.0), abs=1e-9
        )


def test_equal_pictures_have_similarity_one_and_a_hundred_decibels():
    one, _ = pictures()
    assert ssim(one, one).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert psnr(one, one).tolist() == [100.0, 100.0]


def test_psnr_is_the_mean_squared_error_in_decibels():
    one = torch.zeros(1, 3, 4, 4)
    assert float(psnr(one, one + 0.1)) == pytest.approx(20.0, abs=1e-6)


def test_a_picture_smaller_than_the_window_still_has_a_similarity():
    one, other = pictures(8, 5)
    expected = np.mean([literal_ssim(*(x[0, i].double().numpy() for x in (one, other)), 5) for i in range(3)])
    assert float(ssim(one, other)[0]) == pytest.approx(expected, abs=1e-10)


def test_log_spectral_distance_is_in_decibels_and_counts_only_what_it_is_told():
    one = torch.zeros(1, 4, 6)
    other = one + math.log(10.0)  # Ten times the power: 10 dB.
    everywhere = torch.ones_like(one)
    assert float(log_spectral_distance(one, other, everywhere)) == pytest.approx(10.0)
    counted = torch.zeros_like(one)
    counted[0, 1, 2] = counted[0, 3, :] = 1
    louder = other.clone()
    louder[0, 0] += 99.0
    assert float(log_spectral_distance(one, louder, counted)) == pytest.approx(10.0)
    louder[0, 1, 2] = 3 * math.log(10.0)
    assert float(log_spectral_distance(one, louder, counted)) == pytest.approx((30.0 + 10.0) / 2)
