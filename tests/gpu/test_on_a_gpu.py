"""What only a GPU can show: precisions agree, filter banks are those of the CPU, a run's state survives the disk."""

from pathlib import Path

import pytest
import torch

from kdctool import recipe as recipes
from kdctool.batch import Batch
from kdctool.data.fbank import log_mel
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives import build
from kdctool.recipe.machine import Parallel
from kdctool.train import checkpoint, optim
from kdctool.train.parallel import wrap
from kdctool.train.step import Trainer, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

RECIPE = """
name = "gpu"
[model]
audio_frames = 256
mel_bins = 64
image_size = 64
width = 192
heads = 3
depth = 2
[objective]
decoder = { width = 128, heads = 4, depth = 2 }
[optim]
lr = 1e-3
"""
CLIPS = 16
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def batch_on(device: str) -> Batch:
    rng = torch.Generator().manual_seed(0)
    batch = {
        "clip": torch.arange(CLIPS),
        "row": torch.arange(CLIPS),
        "fbank": torch.randn(CLIPS, 256, 64, generator=rng),
        "frame": torch.randn(CLIPS, 3, 64, 64, generator=rng),
    }
    return {name: value.to(device) for name, value in batch.items()}


def trainer(precision: str, device: str = "cuda", compile: str = "off", checkpointed: bool = False) -> Trainer:
    recipe = recipes.loads(RECIPE)
    torch.manual_seed(0)
    objective = build(recipe, AVEncoder(recipe.model)).to(device).train()
    options = Parallel(mode="none", compile=compile, checkpoint_activations=checkpointed)
    return Trainer(
        objective=objective,
        module=wrap(objective, torch.device(device), options),
        optimizer=optim.build(objective, recipe.optim),
        scaler=torch.amp.GradScaler(device, enabled=precision == "fp16"),
        device=torch.device(device),
        autocast=AUTOCAST[precision],
        global_batch=CLIPS,
        grad_clip=0.0,
        seed=0,
    )


def losses(of: Trainer, steps: int, first: int = 0) -> list[float]:
    batch = batch_on(of.device.type)
    return [train_step(of, [batch], step)["loss"] for step in range(first, first + steps)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(precision: str) -> None:
    """1 %: bf16 rounds every activation to 1 in 256, and 20 steps of Adam let the runs part a little."""
    exact, rough = losses(trainer("fp32"), 20), losses(trainer(precision), 20)
    assert exact[-1] < 0.95 * exact[0]
    assert rough[0] == pytest.approx(exact[0], rel=2e-3)
    assert rough == pytest.approx(exact, rel=1e-2)


def test_float32_on_the_gpu_is_float32_on_the_cpu() -> None:
    """The first loss alone: masks are drawn on the device, so the same seed gives others; the mean is close."""
    here, there = losses(trainer("fp32", "cpu"), 1)[0], losses(trainer("fp32"), 1)[0]
    assert there == pytest.approx(here, rel=2e-2)


@pytest.mark.parametrize("options", [{"compile": "on"}, {"checkpointed": True}], ids=str)
def test_compile_and_checkpointing_change_no_loss(options: dict) -> None:
    assert losses(trainer("fp32", **options), 5) == pytest.approx(losses(trainer("fp32"), 5), rel=1e-4)


def test_fp16_scales_its_loss_and_moves_the_weights() -> None:
    own = trainer("fp16")
    before = [p.detach().clone() for p in own.objective.parameters() if p.requires_grad]
    found = losses(own, 8)
    assert all(0 < loss < 100 for loss in found)
    assert own.scaler.get_scale() > 1
    after = [p for p in own.objective.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_step_repeats_bit_for_bit_within_float32() -> None:
    assert losses(trainer("fp32"), 1) == losses(trainer("fp32"), 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_of_the_gpu_goes_on_where_it_was(precision: str, tmp_path: Path) -> None:
    own = trainer(precision)
    losses(own, 4)
    state = {"step": 4, "clips": 4 * CLIPS, "scaler": own.scaler.state_dict()}
    checkpoint.save(tmp_path, own.objective, own.optimizer, state)
    want = losses(own, 3, first=4)
    other = trainer(precision)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.restore(found, other.objective, other.optimizer)
    other.scaler.load_state_dict(found.state["scaler"])
    assert {p.device.type for p in other.objective.parameters()} == {"cuda"}
    assert {
        value.device.type for state in other.optimizer.state.values() for name, value in state.items() if name != "step"
    } == {"cuda"}
    assert losses(other, 3, first=4) == pytest.approx(want, rel=1e-5)


def test_a_checkpoint_of_the_gpu_opens_on_the_cpu(tmp_path: Path) -> None:
    own = trainer("fp32")
    losses(own, 2)
    checkpoint.save(tmp_path, own.objective, own.optimizer, {"step": 2, "scaler": own.scaler.state_dict()})
    here = trainer("fp32", "cpu")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.restore(found, here.objective, here.optimizer)
    for name, value in own.objective.state_dict().items():
        assert torch.equal(here.objective.state_dict()[name], value.cpu()), name


def test_filter_banks_of_the_gpu_are_those_of_the_cpu() -> None:
    """Above -8; below, a bin is the rounding noise of the spectrum."""
    rng = torch.Generator().manual_seed(0)
    waveform = 0.3 * torch.randn(4, 16000 * 3, generator=rng)
    waveform[0] *= torch.linspace(1, 0, waveform.shape[1])
    waveform[1] = torch.sin(torch.arange(waveform.shape[1]) * 0.2)
    here, there = log_mel(waveform), log_mel(waveform.cuda()).cpu()
    loud = here > -8
    assert loud.float().mean() > 0.5
    assert float((here - there)[loud].abs().max()) < 1e-3
