"""InfoNCE by hand, and a temperature that learns once per step and stays in its range."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from trainers import make_trainer

from kdctool.batch import Batch
from kdctool.objectives.contrastive import accuracy, info_nce, similarity
from kdctool.train.step import train_step

LEARNS = {"contrastive": {"learn_temperature": True, "weight": 1.0, "temperature_range": [0.04, 0.06]}}


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_direction_is_a_softmax_over_the_other_modality() -> None:
    sim = similarity(torch.randn(5, 8, generator=rng(1)), torch.randn(5, 8, generator=rng(2)), 0.1)
    own = torch.arange(5)
    v2a, a2v = F.cross_entropy(sim.T, own), F.cross_entropy(sim, own)
    torch.testing.assert_close(info_nce(sim[None], "v2a")[0], v2a)
    torch.testing.assert_close(info_nce(sim[None], "a2v")[0], a2v)
    torch.testing.assert_close(info_nce(sim[None], "both")[0], (v2a + a2v) / 2)
    assert abs(float(v2a - a2v)) > 1e-3


def test_accuracy_counts_the_direction_it_is_asked_for() -> None:
    # Video 1 finds audio 0, video 0 its own; audio 0 finds its own, audio 1 video 0.
    sim = torch.tensor([[[3.0, 2.0], [2.5, 1.0]]])
    assert float(accuracy(sim, "v2a")) == 0.5
    assert float(accuracy(sim, "a2v")) == 0.5
    sim = torch.tensor([[[3.0, 2.0], [1.0, 1.5]]])
    assert [float(accuracy(sim, way)) for way in ("v2a", "a2v", "both")] == [0.5, 1.0, 0.75]


def test_a_learned_temperature_starts_where_the_fixed_one_is(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(list(range(8)))
    fixed, learned = (
        make_objective("cav", objective={"contrastive": {"learn_temperature": learns, "weight": 1.0}})
        for learns in (False, True)
    )
    a, b = (objective(batch, rng(), 8) for objective in (fixed, learned))
    torch.testing.assert_close(a.total, b.total)
    assert float(b.meters["temperature"]) == pytest.approx(0.05)
    assert "temperature" not in a.meters


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_a_learned_temperature_enters_the_loss_once_however_the_batch_is_split(
    micro: int, make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    whole, split = (make_objective("kdc_mae", objective=LEARNS) for _ in range(2))
    for step in range(3):
        train_step(make_trainer(whole, 1e-3), [make_batch(list(range(8)))], step)
        parts = [make_batch(list(range(i, i + micro))) for i in range(0, 8, micro)]
        row = train_step(make_trainer(split, 1e-3), parts, step)
    start = math.log(0.05)
    moved = float(whole.contrastive.log_temperature.detach()) - start
    assert abs(moved) > 1e-4
    assert float(split.contrastive.log_temperature.detach()) - start == pytest.approx(moved, rel=1e-4)
    assert row["temperature"] == pytest.approx(0.05, rel=0.2)


def test_a_learned_temperature_stays_in_its_range_and_comes_back_from_its_edge(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective("cav", objective=LEARNS)
    value = objective.contrastive.log_temperature
    for start, edge in ((-9.0, 0.04), (0.0, 0.06)):
        with torch.no_grad():
            value.fill_(start)
        objective.after_step(0)
        assert float(value.exp()) == pytest.approx(edge)
    objective(make_batch(list(range(8))), rng(), 8).total.backward()
    assert float(value.grad.abs()) > 0
