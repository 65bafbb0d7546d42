"""FLOPs are counted: the numbers of the closed formula 24 n d^2 + 4 n^2 d, times three, to the last digit."""

import pytest
import torch

from kdctool import recipe as recipes
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives import build
from kdctool.train import flops

SHAPES = {"fbank": (64, 32), "frame": (3, 32, 32)}
TINY = (
    "model.audio_frames=64", "model.mel_bins=32", "model.image_size=32", "model.video_patch=8", "model.width=32",
    "model.heads=2", "model.depth=1", "objective.decoder={width=16, heads=2, depth=1}",
)  # fmt: skip


def block(tokens: int, width: int) -> float:
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def objective(*changes: str) -> torch.nn.Module:
    recipe = recipes.loads('name = "flops"', list(changes))
    return build(recipe, AVEncoder(recipe.model))


@pytest.mark.parametrize(("kind", "views"), [("kdc_mae", 2), ("cav_mae", 1)])
def test_the_count_is_the_formula(kind: str, views: int) -> None:
    counted = flops.per_clip(objective(f'objective.name="{kind}"', f"masking.views={views}", *TINY), SHAPES, clips=2)
    patches = 2 * 32 * (8 * 256 + 16 * 192)
    encoder = block(2, 32) + block(4, 32) + block(6, 32) + block(2, 32) + block(4, 32)
    decoder = 2 * 6 * 32 * 16 + block(24, 16) + 2 * 16 * (8 * 256 + 16 * 192)
    contrast = 2 * 2 * 32  # a row of the similarity matrix of two clips
    assert counted == 3 * views * (encoder + decoder + contrast) + 2 * patches


def test_base_is_467_gflop() -> None:
    assert flops.per_clip(objective(), {"fbank": (1024, 128), "frame": (3, 224, 224)}) / 1e9 == pytest.approx(
        466.7, abs=0.1
    )


def test_counting_leaves_the_objective_alone() -> None:
    own = objective(*TINY)
    own.eval()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    flops.per_clip(own, SHAPES)
    assert not own.training
    assert all(parameter.grad is None for parameter in own.parameters())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce GTX 1080", None),
        ("AMD EPYC", None),
    ],
)
def test_a_device_is_known_by_its_name_or_unknown(name: str, tflops: float | None) -> None:
    assert flops.peak_tflops(name) == tflops


def test_mfu_is_a_share_and_none_for_an_unknown_device() -> None:
    assert flops.mfu(847.6, 466.7e9, "NVIDIA H200") == pytest.approx(0.4, abs=1e-3)
    assert flops.mfu(847.6, 466.7e9, "some card") is None
