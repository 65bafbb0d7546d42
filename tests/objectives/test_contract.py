"""What the trainer may rely on, for every registered objective."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdctool.batch import Batch
from kdctool.objectives import Loss, objectives

NAMES = objectives.names()
EVERYONE = list(range(8))

VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "both directions, shift sample": {
        "objective": {"contrastive": {"direction": "both"}, "self_distillation": {"shift": "sample"}}
    },
    "independent masks": {"masking": {"complementary": False}},
    "learned temperature": {"objective": {"contrastive": {"learn_temperature": True, "weight": 1.0}}},
    "contrast in its own pass": {"objective": {"contrastive": {"own_ratio": 0.4}}},
}
FAMILY: dict[str, dict[str, Any]] = {
    "teacher": {"objective": {"self_distillation": {"stop_gradient": "teacher", "divergence": "kl"}}},
    "teacher, softmax, every modality": {
        "objective": {
            "self_distillation": {
                "stop_gradient": "teacher", "distribution": "softmax", "temperature": 0.5, "per_modality": True,
            }
        }
    },
    "one side stopped, every modality": {
        "objective": {
            "self_distillation": {"stop_gradient": "first", "divergence": "kl_reverse", "per_modality": True},
            "contrastive": {"own_ratio": 0.3},
        }
    },
    "light decoder": {"objective": {"decoder": {"kind": "light", "share": 0.3}}},
    "all patches": {"objective": {"reconstruction": {"patches": "all"}}},
    "learned masks": {"masking": {"audio": "adaptive", "video": "adaptive"}},
    "learned masks, light decoder": {
        "masking": {"audio": "adaptive"}, "objective": {"decoder": {"kind": "light"}},
    },
}  # fmt: skip
"""Only the family itself, with two views, has these."""
CASES = [(name, key, changes) for name in NAMES for key, changes in VARIANTS.items()]
CASES += [("kdc_mae", key, changes) for key, changes in FAMILY.items()]
IDS = [f"{name}: {key}" for name, key, _ in CASES]
every_case = pytest.mark.parametrize(("name", "changes"), [(name, c) for name, _, c in CASES], ids=IDS)


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(objective: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


@every_case
def test_the_loss_is_finite_and_the_weighted_sum_of_its_terms(
    name: str, changes: dict[str, Any], make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective(name, **changes)
    loss: Loss = objective(make_batch(EVERYONE), rng(), 8)
    assert torch.isfinite(loss.total)
    assert loss.terms.keys() == loss.weights.keys() == objective.weights.keys()
    assert loss.weights == objective.weights
    expected = sum(loss.weights[key] * value for key, value in loss.terms.items())
    torch.testing.assert_close(loss.total.detach(), expected)
    assert all(not value.requires_grad for value in (*loss.terms.values(), *loss.meters.values()))


@every_case
def test_trainable_is_exactly_what_gets_a_gradient(
    name: str, changes: dict[str, Any], make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective(name, **changes)
    trainable = {key for key, p in objective.named_parameters() if p.requires_grad}
    objective.requires_grad_(True)  # what would get a gradient if nothing were frozen
    objective(make_batch(EVERYONE), rng(), 8).total.backward()
    reached = {key for key, p in objective.named_parameters() if p.grad is not None}
    assert trainable == {key for key in reached if "pos_embed" not in key}  # the tables are fixed
    assert all(p.grad is None for key, p in objective.named_parameters() if key.startswith("teacher."))
    assert float(objective.encoder.patch_embed_a.proj.weight.grad.abs().sum()) > 0
    assert float(objective.encoder.patch_embed_v.proj.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_loss(
    name: str, make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective(name), make_batch(EVERYONE)
    first, again, other = (objective(batch, rng(seed), 8).total.detach() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_case
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_with_cached_features_equal_one_pass(
    name: str,
    changes: dict[str, Any],
    micro_batches: int,
    make_objective: Callable[..., Any],
    make_batch: Callable[..., Batch],
) -> None:
    objective = make_objective(name, **changes)
    whole: Loss = objective(make_batch(EVERYONE), rng(), 8)
    whole.total.backward()
    expected = gradients(objective)
    objective.zero_grad()

    order = [3, 1, 0, 2, 7, 5, 6, 4]  # a clip's masks follow from its row, not from when it comes
    size = 8 // micro_batches
    micros = [make_batch(order[i : i + size]) for i in range(0, 8, size)]
    with torch.no_grad():
        parts = [objective.features(batch, rng(), 8) for batch in micros]
    features = {key: torch.cat([part[key] for part in parts], dim=1).requires_grad_() for key in parts[0]}
    terms = objective.coupled(features) if features else {}
    grads: dict[str, torch.Tensor] = {}
    if features:
        coupled = sum(objective.weights[key] * value for key, value in terms.items())
        leaves = features | {key: p for key, p in objective.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(coupled, list(leaves.values()), allow_unused=True)
        grads = {key: grad for key, grad in zip(leaves, found, strict=True) if grad is not None}
    sums = {key: value.detach() for key, value in terms.items()}
    for i, batch in enumerate(micros):
        mine = {
            key: grad[:, i * size : (i + 1) * size] * micro_batches if key in features else grad
            for key, grad in grads.items()
        }
        loss: Loss = objective(batch, rng(), 8, mine)
        assert not loss.terms.keys() & terms.keys()
        (loss.total / micro_batches).backward()
        for key, value in loss.terms.items():
            sums[key] = sums.get(key, 0) + value / micro_batches

    assert sums.keys() == whole.terms.keys()
    for key, value in whole.terms.items():
        torch.testing.assert_close(sums[key], value, atol=1e-6, rtol=1e-5)
    found = gradients(objective)
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, atol=1e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_float32_under_autocast(
    name: str, make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective(name), make_batch(EVERYONE)
    exact = objective(batch, rng(), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch, rng(), 8)
        features = objective.features(batch, rng(), 8)
        coupled = objective.coupled(features) if features else {}
    assert loss.total.dtype == torch.float32
    assert all(x.dtype == torch.float32 for x in (*loss.terms.values(), *features.values(), *coupled.values()))
    for key, value in coupled.items():
        torch.testing.assert_close(value.detach(), loss.terms[key])
    torch.testing.assert_close(loss.total, exact.total, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_generator_decides(
    name: str, make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective(name), make_batch(EVERYONE)
    torch.manual_seed(1)
    first = objective(batch, rng(), 8).total
    torch.manual_seed(2)
    assert torch.equal(first, objective(batch, rng(), 8).total)
    objective.after_step(0)
    assert torch.equal(first, objective(batch, rng(), 8).total)
