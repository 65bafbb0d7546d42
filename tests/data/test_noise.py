"""Counter-based noise: uniform, reproducible, and independent of the batch it is drawn in."""

import torch

from kdctool.data.augment import noise_and_roll
from kdctool.data.noise import uniform


def test_it_is_uniform_and_uncorrelated() -> None:
    x = uniform(torch.tensor([1, 2, 3, 2**62]), 50_000)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert torch.allclose(x.mean(dim=1), torch.full((4,), 0.5), atol=0.006)
    assert torch.allclose(x.var(dim=1), torch.full((4,), 1 / 12), atol=0.003)
    correlation = torch.corrcoef(x) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([x[0, 1:], x[0, :-1]]))[0, 1])) < 0.02


def test_a_row_depends_on_its_key_alone() -> None:
    assert torch.equal(uniform(torch.tensor([5, 9]), 100)[1], uniform(torch.tensor([9]), 100)[0])


def test_augmentation_adds_up_to_a_tenth_and_rolls_along_time() -> None:
    fbank = torch.zeros(64, 32, 16)
    fbank[:, 5] = 10.0
    out = noise_and_roll(fbank, torch.arange(64))
    peak = out.mean(dim=2).argmax(dim=1)
    assert len(set(peak.tolist())) > 16
    low = torch.where(out < 5, out, torch.zeros(()))
    assert float(low.min()) >= 0
    assert float(low.max()) <= 0.1
    assert torch.equal(out[7], noise_and_roll(fbank[7:8], torch.tensor([7]))[0])
