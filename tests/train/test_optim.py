"""Schedules as functions of the step, and who is decayed."""

import pytest
import torch
from torch import nn

from kdctool.recipe import Optim
from kdctool.train.optim import build, learning_rate, set_learning_rate


def test_the_step_schedule_is_multi_step_lr_of_the_reference() -> None:
    options = Optim(lr=1.0, schedule="step", step_start=10, step_every=5, step_gamma=0.5)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(sgd, list(range(10, 1000, 5)), gamma=0.5)
    for epoch in range(25):
        assert learning_rate(options, epoch * 7 + 3, 7, 175) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        reference.step()


def test_cosine_warms_up_and_ends_at_min_lr() -> None:
    options = Optim(lr=1.0, schedule="cosine", warmup_epochs=1.0, min_lr=0.1)
    rates = [learning_rate(options, step, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_adamw_spares_biases_and_embeddings_and_adam_spares_nothing() -> None:
    module = nn.Module()
    module.linear = nn.Linear(3, 3)
    module.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
    decays = {
        g["weight_decay"]: len(g["params"]) for g in build(module, Optim(name="adamw", weight_decay=0.1)).param_groups
    }
    assert decays == {0.1: 1, 0.0: 2}
    decays = {
        g["weight_decay"]: len(g["params"]) for g in build(module, Optim(name="adam", weight_decay=0.1)).param_groups
    }
    assert decays == {0.1: 3}


def test_the_head_gets_its_multiple_of_the_rate() -> None:
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = build(module, Optim(lr=0.1), {"head.": 10.0})
    set_learning_rate(optimizer, 0.01)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.01, 0.1])
