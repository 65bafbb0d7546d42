"""What a step tells of its terms: raw, weighted, their gradients one by one, and nothing that changes the step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trainers import make_trainer

from kdctool.batch import Batch
from kdctool.train.step import train_step

EVERYONE = list(range(8))


@pytest.mark.parametrize("micro", [8, 4])
def test_every_term_is_told_raw_and_weighted_and_the_weighted_ones_are_the_loss(
    micro: int, make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective("kdc_mae")
    row = train_step(make_trainer(objective), [make_batch(EVERYONE[i : i + micro]) for i in range(0, 8, micro)], 0)
    for name, weight in objective.weights.items():
        assert row[f"weighted/{name}"] == pytest.approx(weight * row[name])
    weighted = [value for name, value in row.items() if name.startswith("weighted/")]
    assert len(weighted) == 4
    assert sum(weighted) == pytest.approx(row["loss"])


def test_accuracy_is_of_the_whole_batch_with_several_micro_batches_too(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    found = []
    for micro in (8, 4, 1):
        micros = [make_batch(EVERYONE[i : i + micro]) for i in range(0, 8, micro)]
        found.append(train_step(make_trainer(make_objective("kdc_mae")), micros, 0)["contrastive_accuracy"])
    assert found[0] < 1, "one clip alone would always be its own best match"
    assert found == pytest.approx([found[0]] * 3)


@pytest.mark.parametrize("micro", [8, 2])
def test_a_terms_gradient_norm_is_that_of_the_term_alone(
    micro: int, make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    micros = [make_batch(EVERYONE[i : i + micro]) for i in range(0, 8, micro)]
    row = train_step(make_trainer(make_objective("kdc_mae"), gradient_norms_every=1), micros, 0)
    off = {"reconstruction": {"weight": 0.0}, "contrastive": {"weight": 0.0}, "self_distillation": {"weight": 0.0}}
    for name, weight in (("contrastive", 0.01), ("self_distillation", 10.0)):
        alone = make_objective("kdc_mae", objective=off | {name: {"weight": weight}})
        expected = train_step(make_trainer(alone), micros, 0)["grad_norm"]
        assert row[f"gradient/{name}"] == pytest.approx(expected, rel=1e-3)


def test_measuring_happens_at_its_interval_and_changes_no_step(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    states, rows = [], []
    for more in ({}, {"gradient_norms_every": 2, "collapse_every": 3}):
        objective = make_objective("kdc_mae")
        trainer = make_trainer(objective, **more)
        rows.append([train_step(trainer, [make_batch(EVERYONE)], step) for step in range(4)])
        states.append(objective.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    for step, (plain, measured) in enumerate(zip(*rows, strict=True)):
        assert plain == {name: measured[name] for name in plain}
        kinds = {name.split("/")[0] for name in measured.keys() - plain.keys()}
        assert kinds == ({"gradient"} if step % 2 == 0 else set()) | (
            {"rank", "uniformity", "alignment"} if step % 3 == 0 else set()
        )
    assert 1 <= rows[1][0]["rank/joint"] <= 8
