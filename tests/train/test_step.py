"""One optimiser step: accumulation changes nothing, and nothing non-finite ever reaches the weights."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import trainers
from torch import Tensor, nn
from torch.nn import functional as F

from kdctool.batch import Batch
from kdctool.errors import KdctoolError
from kdctool.objectives import Loss
from kdctool.train.step import train_step


class TwoSided(nn.Module):
    """A toy objective with a term per clip and a term that couples all clips of the global batch."""

    weights = {"own": 1.0, "coupled": 0.5}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8))

    def features(self, batch: Batch, rng: torch.Generator, global_batch: int) -> dict[str, Tensor]:
        noise = torch.rand(global_batch, 6, generator=rng)[batch["row"]]
        x = F.normalize(self.encoder(batch["x"] + noise), dim=-1)
        return {"x": x[None], "y": x.roll(1, dims=-1)[None]}

    def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        sim = features["x"][0] @ features["y"][0].T / 0.1
        return {"coupled": F.cross_entropy(sim, torch.arange(len(sim)))}

    def forward(
        self, batch: Batch, rng: torch.Generator, global_batch: int, feature_grads: dict[str, Tensor] | None = None
    ) -> Loss:
        features = self.features(batch, rng, global_batch)
        own = (features["x"] - 0.3).square().mean()
        if feature_grads is None:
            coupled = self.coupled(features)["coupled"]
            return Loss(own + 0.5 * coupled, {"own": own.detach(), "coupled": coupled.detach()}, self.weights)
        total = own + sum((features[k] * g).sum() for k, g in feature_grads.items())
        return Loss(total, {"own": own.detach()}, self.weights)

    def after_step(self, step: int) -> None: ...


make_trainer = partial(trainers.make_trainer, lr=0.1)


def global_batch() -> Batch:
    torch.manual_seed(1)
    return {"x": torch.randn(8, 6), "row": torch.arange(8)}


def parts(batch: Batch, size: int) -> list[Batch]:
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, 8, size)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulation_takes_the_same_step_as_one_pass(size: int) -> None:
    whole, split = TwoSided(), TwoSided()
    for step in range(3):
        a = train_step(make_trainer(whole), [global_batch()], step)
        b = train_step(make_trainer(split), parts(global_batch(), size), step)
        assert a == pytest.approx(b, abs=1e-6)
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_negatives_of_a_micro_batch_alone_would_be_noticed() -> None:
    class Local(TwoSided):
        def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return super().coupled({k: v[:, :2] for k, v in features.items()})

    a = train_step(make_trainer(TwoSided()), [global_batch()], 0)
    b = train_step(make_trainer(Local()), parts(global_batch(), 2), 0)
    assert abs(a["coupled"] - b["coupled"]) > 1e-2


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    row = train_step(make_trainer(TwoSided()), parts(global_batch(), 2), 0)
    assert row["loss"] == pytest.approx(row["own"] + 0.5 * row["coupled"], abs=1e-6)


def test_a_non_finite_loss_stops_before_the_weights_change() -> None:
    objective = TwoSided()
    before = copy.deepcopy(objective.state_dict())
    batch = global_batch()
    batch["x"][3, 2] = float("nan")
    with pytest.raises(KdctoolError, match="not finite, so the step was not taken"):
        train_step(make_trainer(objective), [batch], 0)
    assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items())


def counted(name: str, method: Callable[[Tensor], Any], seen: list[str]) -> Callable[[Tensor], Any]:
    def counting(self: Tensor) -> Any:
        seen.append(name)
        return method(self)

    return counting


def test_a_step_waits_for_the_device_once_unless_its_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What brings a number from the device to Python: a flag, and the row in one transfer when somebody looks."""
    seen: list[str] = []
    trainer, micros = make_trainer(TwoSided()), parts(global_batch(), 4)
    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
            patch.setattr(Tensor, name, counted(name, getattr(Tensor, name), seen))
        row = train_step(trainer, micros, 0)
        assert seen == ["__bool__"]
        assert row["loss"] > 0
        assert row["grad_norm"] > 0
        assert seen == ["__bool__", "tolist"]
    assert set(row) == {"own", "coupled", "weighted/own", "weighted/coupled", "loss", "grad_norm"}
    assert dict(row) == row.numbers()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_either_of_loss_and_gradient_stops_a_step(where: str) -> None:
    class Broken(TwoSided):
        def forward(self, *args: Any) -> Loss:
            loss = super().forward(*args)
            nan = float("nan")
            if where == "loss":
                return Loss(
                    loss.total, {"own": loss.terms["own"] * nan, "coupled": loss.terms["coupled"]}, self.weights
                )
            loss.total.register_hook(lambda grad: grad * nan)
            return loss

    objective = Broken()
    before = copy.deepcopy(objective.state_dict())
    with pytest.raises(KdctoolError, match=f"step 3: loss {'nan' if where == 'loss' else '[0-9]'}"):
        train_step(make_trainer(objective), [global_batch()], 3)
    assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items())
    assert all(p.grad is None for p in objective.parameters())
