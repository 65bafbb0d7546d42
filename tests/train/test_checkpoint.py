"""Checkpoints: complete or absent, checked before use, and of the right model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kdctool.errors import UsageFault
from kdctool.train import checkpoint


def model_and_optimizer(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    groups = [
        {"params": list(model[0].parameters()), "lr_scale": 1.0},
        {"params": list(model[1].parameters()), "lr_scale": 2.0},
    ]
    return model, torch.optim.AdamW(groups, lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 3)
    checkpoint.save(tmp_path, model, optimizer, {"step": 3})
    train(model, optimizer, 3)
    other, other_optimizer = model_and_optimizer()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 3
    checkpoint.restore(found, other, other_optimizer)
    train(other, other_optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = model_and_optimizer()
    for step in (1, 2):
        train(model, optimizer, 1)
        checkpoint.save(tmp_path, model, optimizer, {"step": step})
    path = tmp_path / "step-00000002" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "remove":
        path.unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "is damaged" in capsys.readouterr().err


def test_an_interrupted_save_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    checkpoint.save(tmp_path, model, optimizer, {"step": 1})
    half = tmp_path / "step-00000002.partial"
    half.mkdir()
    (half / checkpoint.MODEL).write_bytes(b"half")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    checkpoint.purge(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_purge_keeps_the_newest(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    for step in range(1, 6):
        checkpoint.save(tmp_path, model, optimizer, {"step": step})
        checkpoint.purge(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    checkpoint.save(tmp_path, model, optimizer, {"step": 1})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    with pytest.raises(UsageFault, match="of another model: 4 tensors differ"):
        checkpoint.restore(found, *model_and_optimizer(width=4))
