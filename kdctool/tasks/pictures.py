"""How far a picture or a spectrogram that was filled in is from the true one. One number per clip, float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""The Gaussian window of SSIM, in pixels (Wang et al., 2004)."""
LEAST_ERROR = 1e-10
"""Equal pictures have 100 dB: a mean over clips with one infinite value would say nothing."""
DB_PER_NEPER = 4.342944819032518
"""10 / ln 10: the filter bank holds natural logarithms of power."""


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B, C, H, W) in 0-1, over all pixels: (B,). At most 100."""
    error = (one.double() - other.double()).square().flatten(1).mean(1)
    return -10.0 * error.clamp_min(LEAST_ERROR).log10()


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of pictures (B, C, H, W) in 0-1, mean over channels and pixels: (B,).

    As Wang et al. (2004) define it: population covariances under a Gaussian window, only where the window lies inside
    the picture. A picture smaller than the window has a window of the largest odd size that fits.
    """
    one, other = one.double(), other.double()
    window = _window(min(WINDOW, *(side - 1 + side % 2 for side in one.shape[-2:])), one.device)
    x, y = _blur(one, window), _blur(other, window)
    x_spread = _blur(one * one, window) - x * x
    y_spread = _blur(other * other, window) - y * y
    shared = _blur(one * other, window) - x * y
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * x * y + c1) * (2 * shared + c2) / ((x * x + y * y + c1) * (x_spread + y_spread + c2))
    return alike.flatten(1).mean(1)


def log_spectral_distance(one: Tensor, other: Tensor, counted: Tensor) -> Tensor:
    """dB between log-mel filter banks (B, T, F) in natural logarithms of power: (B,).

    Root mean square over the bins of a frame where `counted` (B, T, F) is 1, then the mean over frames with such bins.
    """
    counted = counted.double()
    difference = (one.double() - other.double()) * DB_PER_NEPER
    bins = counted.sum(2)  # (B, T)
    rms = ((difference.square() * counted).sum(2) / bins.clamp_min(1)).sqrt()
    return (rms * (bins > 0)).sum(1) / (bins > 0).sum(1).clamp_min(1)


def _window(size: int, device: torch.device) -> Tensor:
    place = torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2
    weights = (-place.square() / (2 * SIGMA**2)).exp()
    return weights / weights.sum()


def _blur(image: Tensor, window: Tensor) -> Tensor:
    """Weighted means of (B, C, H, W) under the window wherever it lies inside."""
    flat = image.flatten(0, 1).unsqueeze(1)  # (B * C, 1, H, W)
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return flat.unflatten(0, image.shape[:2]).squeeze(2)
