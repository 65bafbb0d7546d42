"""Kaldi-compatible log-mel filter banks of a whole batch at once, on the CPU or a GPU.

Same numbers as torchaudio.compliance.kaldi.fbank with htk_compat, a hanning window, no energy and no dither
(torchaudio is the oracle of the tests, not needed here). Bins near the log floor hold rounding noise of the
spectrum, so only values above about -8 agree to 1e-4 between implementations.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.errors import DataFault

FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
PREEMPHASIS = 0.97
LOW_FREQUENCY_HZ = 20.0
INT16_SCALE = 32768.0
_BAND_FILTERS = 32


def centre(waveform: Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """int16 samples as floats in [-1, 1) minus their own mean, the filter bank's input.

    waveform: (..., S). The reference takes the mean of a stereo file over both channels together before it keeps
    the first one: dims = (-2, -1).
    """
    scaled = waveform.float() / INT16_SCALE
    return scaled - scaled.mean(dim=dims, keepdim=True)


def num_frames(samples: int, sample_rate: int = 16000) -> int:
    """Filter-bank frames of a waveform: only windows that lie inside it count."""
    size, shift = _window_samples(sample_rate)
    return 0 if samples < size else 1 + (samples - size) // shift


def log_mel(waveform: Tensor, sample_rate: int = 16000, num_mel_bins: int = 128) -> Tensor:
    """Log-mel filter bank: waveform (B, S), centred floats -> (B, T, F), T = num_frames(S).

    Runs in float32 whatever autocast says. On a GPU, leave float32 matrix products at full precision
    (torch's default): TF32 moves values by about 1e-3.
    """
    size, shift = _window_samples(sample_rate)
    if waveform.shape[-1] < size:
        raise DataFault(f"a waveform of {waveform.shape[-1]} samples is shorter than one window of {size} samples")
    with torch.autocast(waveform.device.type, enabled=False):
        tables = _tables(sample_rate, num_mel_bins, waveform.device)
        waveform = waveform.float()
        if waveform.device.type != "cpu":
            return _log_mel(waveform, size, shift, tables)
        # One clip at a time fits into the processor's cache; the whole batch at once takes much longer.
        return torch.stack([_log_mel(clip, size, shift, tables) for clip in waveform])


def _log_mel(waveform: Tensor, size: int, shift: int, tables: "_Tables") -> Tensor:
    """Waveform (..., S) -> (..., T, F)."""
    window, bands = tables
    frames = waveform.unfold(-1, size, shift)
    frames = frames - frames.mean(dim=-1, keepdim=True)  # (..., T, window)
    padded = frames.new_zeros((*frames.shape[:-1], _fft_size(size)))
    # Product first, then difference: fused into one rounding (alpha=) it is 1e-4 away from Kaldi's.
    before = frames * PREEMPHASIS
    padded[..., :1] = (frames[..., :1] - before[..., :1]) * window[:1]  # a frame's first sample precedes itself
    padded[..., 1:size] = (frames[..., 1:] - before[..., :-1]).mul_(window[1:])
    spectrum = torch.fft.rfft(padded)  # (..., T, fft / 2 + 1)
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    energy = [power[..., first:end] @ weights for first, end, weights in bands]
    return torch.cat(energy, dim=-1).clamp_min(torch.finfo(torch.float32).eps).log()


def model_input(fbank: Tensor, target_frames: int, mean: float, std: float) -> Tensor:
    """Zero-pad at the end or cut to `target_frames`, then normalise: (B, T0, F) -> (B, target_frames, F).

    In this order, so padded frames hold -mean / std, which is louder than real silence. Published weights were
    trained with it.
    """
    fbank = F.pad(fbank[:, :target_frames], (0, 0, 0, max(0, target_frames - fbank.shape[1])))
    return fbank.sub_(mean).div_(std)  # F.pad made a copy


def _window_samples(sample_rate: int) -> tuple[int, int]:
    return int(sample_rate * FRAME_LENGTH_MS * 0.001), int(sample_rate * FRAME_SHIFT_MS * 0.001)


def _fft_size(window: int) -> int:
    return 1 << (window - 1).bit_length()


_Tables = tuple[Tensor, list[tuple[int, int, Tensor]]]


@lru_cache(maxsize=8)
def _tables(sample_rate: int, num_mel_bins: int, device: torch.device) -> _Tables:
    """Window (size,) and mel weights as bands of filters, made once per device.

    A band is (first, end, weights (end - first, filters)): the spectrum's bins that carry weight in these filters,
    never the Nyquist bin. A GPU takes all filters at once; on the CPU bands of 32 save three quarters of the products.

    Inference mode off: tensors made inside it could not take part in a later training step.
    """
    size, _ = _window_samples(sample_rate)
    with torch.inference_mode(False):
        window = torch.hann_window(size, periodic=False, dtype=torch.float32)
        mel = _mel_weights(sample_rate, num_mel_bins, _fft_size(size))
        if device.type != "cpu":
            return window.to(device), [(0, len(mel), mel.to(device))]
        bands = []
        for filters in mel.split(_BAND_FILTERS, dim=1):
            used = filters.any(dim=1).nonzero().flatten().tolist() or [0]
            bands.append((used[0], used[-1] + 1, filters[used[0] : used[-1] + 1].contiguous()))
        return window, bands


def _mel_weights(sample_rate: int, num_mel_bins: int, fft_size: int) -> Tensor:
    """Triangular filters on Kaldi's mel scale, (fft / 2, F).

    In float32 like torchaudio's: the narrow low filters have weights so small that another precision shows.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (LOW_FREQUENCY_HZ, sample_rate / 2))
    delta = (high - low) / (num_mel_bins + 1)
    place = torch.arange(num_mel_bins, device="cpu").unsqueeze(1)
    left, peak, right = (low + (place + step) * delta for step in (0.0, 1.0, 2.0))  # (F, 1) each
    hertz = (sample_rate / fft_size) * torch.arange(fft_size // 2, dtype=torch.float32, device="cpu")
    mel = 1127.0 * (1.0 + hertz / 700.0).log().unsqueeze(0)  # (1, fft / 2)
    up, down = (mel - left) / (peak - left), (right - mel) / (right - peak)
    return torch.minimum(up, down).clamp_min(0.0).T.contiguous()
