"""The filter bank is Kaldi's as torchaudio computes it, for any length and any clip of a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdctool.data.fbank import centre, log_mel, model_input, num_frames
from kdctool.errors import DataFault


def noise(samples: int, seed: int = 0, loudness: float = 3000.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(samples, generator=rng) * loudness).clamp(-32768, 32767).to(torch.int16)


@pytest.mark.parametrize(("sample_rate", "bins"), [(16000, 128), (16000, 64), (8000, 40), (22050, 80)])
@pytest.mark.parametrize("samples", [600, 4000, 16123])
def test_it_equals_torchaudio(sample_rate: int, bins: int, samples: int) -> None:
    kaldi = pytest.importorskip("torchaudio").compliance.kaldi
    wave = centre(torch.stack([noise(samples, seed) for seed in range(3)]))
    ours = log_mel(wave, sample_rate, bins)
    for row, mine in zip(wave, ours, strict=True):
        oracle = kaldi.fbank(
            row[None], htk_compat=True, sample_frequency=sample_rate, use_energy=False, window_type="hanning",
            num_mel_bins=bins, dither=0.0, frame_shift=10,
        )  # fmt: skip
        assert mine.shape == oracle.shape
        high = oracle >= -8
        torch.testing.assert_close(mine[high], oracle[high], atol=1e-4, rtol=0)
        torch.testing.assert_close(mine, oracle, atol=1e-2, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(400, 5000))
def test_the_number_of_frames_follows_the_length(samples: int) -> None:
    assert log_mel(centre(noise(samples))[None]).shape == (1, num_frames(samples), 128)
    assert num_frames(samples) == 1 + (samples - 400) // 160


def test_ten_seconds_give_998_frames_and_a_short_clip_is_refused() -> None:
    assert num_frames(160_000) == 998
    assert num_frames(399) == 0
    with pytest.raises(DataFault, match="399 samples is shorter"):
        log_mel(torch.zeros(1, 399))


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    wave = centre(torch.stack([noise(3000, 1), noise(3000, 2, 30.0)]))
    torch.testing.assert_close(log_mel(wave)[1:], log_mel(wave[1:]), atol=1e-5, rtol=0)


def test_silence_is_the_floor_and_nothing_is_infinite() -> None:
    bank = log_mel(torch.zeros(1, 800))
    assert torch.equal(bank, torch.full_like(bank, torch.finfo(torch.float32).eps).log())


def test_autocast_does_not_lower_its_precision() -> None:
    wave = centre(noise(2000))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_mel(wave), log_mel(wave.clone()))
        inside = log_mel(wave)
    assert torch.equal(inside, log_mel(wave))


def test_tables_made_in_inference_mode_serve_training_later() -> None:
    wave = centre(noise(2000))[None]
    with torch.inference_mode():
        log_mel(wave, num_mel_bins=33)
    log_mel(wave.requires_grad_(), num_mel_bins=33).sum().backward()
    assert wave.grad is not None


def test_centre_scales_int16_and_removes_the_mean() -> None:
    wave = centre(torch.tensor([[0, 16384, -16384, 32767]], dtype=torch.int16))
    scaled = torch.tensor([[0.0, 0.5, -0.5, 32767 / 32768]])
    torch.testing.assert_close(wave, scaled - scaled.mean())
    stereo = torch.tensor([[100, 100], [300, 300]], dtype=torch.int16)
    torch.testing.assert_close(centre(stereo, dims=(-2, -1))[0], torch.full((2,), -100 / 32768))


def test_padding_comes_before_normalisation() -> None:
    bank = torch.ones(1, 3, 2)
    torch.testing.assert_close(model_input(bank, 4, -5.0, 2.0)[0, :, 0], torch.tensor([3.0, 3.0, 3.0, 2.5]))
    assert model_input(bank, 2, 0.0, 1.0).shape == (1, 2, 2)
