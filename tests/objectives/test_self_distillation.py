"""The divergence between views: the released one, the paper's words, who gets a gradient, and the teacher."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdctool.batch import Batch
from kdctool.objectives.self_distillation import (
    SelfDistillationTerm,
    as_distribution,
    between_pairs,
    between_views,
    divergence,
    from_teacher,
    js,
    kl,
)
from kdctool.recipe import SelfDistillation

EVERYONE = list(range(8))
TAUGHT = {"self_distillation": {"stop_gradient": "teacher", "momentum": 0.75}}


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_equal_views_do_not_diverge() -> None:
    pooled = torch.randn(1, 6, 16, generator=rng()).expand(2, 6, 16)
    for shift in ("global", "sample", "local"):
        assert torch.equal(between_views(pooled, shift), torch.zeros(6))


@pytest.mark.parametrize("shift", ["global", "sample"])
def test_divergence_is_symmetric_bounded_and_positive(shift: str) -> None:
    pooled = 5 * torch.randn(2, 200, 16, generator=rng())
    forward, backward = between_views(pooled, shift), between_views(pooled.flip(0), shift)
    torch.testing.assert_close(forward, backward)
    assert float(forward.min()) > 0
    assert float(forward.max()) < math.log(2)
    apart = js(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert float(apart) == pytest.approx(math.log(2), abs=1e-6)


def test_three_views_are_the_mean_of_their_pairs() -> None:
    pooled = torch.randn(3, 5, 16, generator=rng())
    pairs = [between_views(pooled[[i, j]], "global") for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(between_views(pooled, "global"), sum(pairs) / 3)


def test_the_global_shift_couples_clips_and_the_sample_shift_does_not() -> None:
    pooled = torch.randn(2, 4, 8, generator=rng())
    for shift, couples in (("global", True), ("sample", False)):
        leaf = pooled.clone().requires_grad_()
        between_views(leaf, shift)[0].backward()
        others = float(leaf.grad[:, 1:].abs().sum())
        assert (others > 0) == couples
        p = as_distribution(pooled, shift)
        torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 4))
        assert float(p.min()) >= 0


@pytest.mark.parametrize("kind", ["js", "kl", "kl_reverse", "sym_kl"])
@pytest.mark.parametrize("distribution", ["shifted", "softmax"])
def test_every_divergence_is_what_an_independent_computation_says(kind: str, distribution: str) -> None:
    pooled = torch.randn(2, 6, 16, generator=rng()).double()
    options = SelfDistillation(divergence=kind, distribution=distribution, temperature=0.5)
    found = SelfDistillationTerm(options)({"joint": pooled})[0]["self_distillation"]
    if distribution == "softmax":
        p, q = F.softmax(pooled / 0.5, dim=-1).unbind(0)
    else:
        p, q = as_distribution(pooled, "global").unbind(0)
    p, q = p + 1e-12, q + 1e-12  # as released: the shifted minimum is an exact zero

    def oracle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.kl_div(b.log(), a, reduction="batchmean")  # torch's order: KL(a || b)

    expected = {
        "js": (oracle(p, (p + q) / 2) + oracle(q, (p + q) / 2)) / 2,
        "kl": oracle(p, q),
        "kl_reverse": oracle(q, p),
        "sym_kl": (oracle(p, q) + oracle(q, p)) / 2,
    }[kind]
    torch.testing.assert_close(found, expected)


def test_a_lower_temperature_sharpens_the_softmax() -> None:
    pooled = torch.randn(2, 6, 16, generator=rng())
    values = [
        SelfDistillationTerm(SelfDistillation(distribution="softmax", temperature=t))({"joint": pooled})[0]
        for t in (0.1, 1.0, 10.0)
    ]
    sharp, plain, flat = (float(value["self_distillation"]) for value in values)
    assert sharp > plain > flat > 0


def test_softmax_and_a_sample_shift_couple_no_clips() -> None:
    for changes, couples in (({}, True), ({"shift": "sample"}, False), ({"distribution": "softmax"}, False)):
        assert SelfDistillationTerm(SelfDistillation(**changes)).couples == couples


@pytest.mark.parametrize(
    ("stop", "learns"), [("none", (True, True)), ("first", (False, True)), ("second", (True, False))]
)
def test_a_stopped_side_gets_no_gradient_and_the_value_stays(stop: str, learns: tuple[bool, bool]) -> None:
    pooled = torch.randn(2, 4, 8, generator=rng()).requires_grad_()
    value = between_pairs(as_distribution(pooled, "sample"), "kl", stop).mean()
    value.backward()
    assert tuple(bool(grad.abs().sum() > 0) for grad in pooled.grad) == learns
    torch.testing.assert_close(value, between_pairs(as_distribution(pooled, "sample"), "kl").mean())


def test_a_teachers_view_is_compared_with_the_other_views_of_the_student() -> None:
    p, q = (as_distribution(torch.randn(3, 5, 8, generator=rng(seed)), "sample") for seed in (1, 2))
    pairs = [divergence(p[i], q[j], "kl") for i in range(3) for j in range(3) if i != j]
    torch.testing.assert_close(from_teacher(p, q, "kl"), sum(pairs) / 6)
    torch.testing.assert_close(from_teacher(p, p, "js"), between_pairs(p, "js"))
    assert float((kl(p[0], q[1]) - kl(q[1], p[0])).abs().max()) > 1e-4  # so the order is not idle


def test_the_teacher_is_the_moving_average_of_the_encoder(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective("kdc_mae", objective=TAUGHT)
    before = copy.deepcopy(objective.encoder.state_dict())
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    objective(make_batch(EVERYONE), rng(), 8).total.backward()
    optimizer.step()
    objective.after_step(0)
    now, mean = objective.encoder.state_dict(), objective.teacher.encoder.state_dict()
    moved = [name for name in now if not torch.equal(now[name], before[name])]
    assert "blocks_u.0.attn.qkv.weight" in moved
    for name in now:
        torch.testing.assert_close(mean[name], 0.75 * before[name] + 0.25 * now[name])
        assert not torch.equal(mean[name], now[name]) or name not in moved


def test_weights_loaded_into_the_encoder_are_the_teachers_first_and_a_checkpoint_brings_its_own(
    make_objective: Callable[..., Any],
) -> None:
    objective = make_objective("kdc_mae", objective=TAUGHT)
    published = {name: value + 1 for name, value in objective.encoder.state_dict().items()}
    objective.encoder.load_state_dict(published)
    for name, value in objective.teacher.encoder.state_dict().items():
        assert torch.equal(value, published[name])
    saved = {name: value + 2 * name.startswith("teacher.") for name, value in objective.state_dict().items()}
    other = make_objective("kdc_mae", objective=TAUGHT)
    other.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())


def test_a_teacher_that_stands_still_is_not_the_encoder_after_some_steps(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    taught = make_objective("kdc_mae", objective=TAUGHT)
    plain = make_objective("kdc_mae", objective={"self_distillation": {"stop_gradient": "first"}})
    term = "self_distillation"
    # JS is symmetric and at the start the teacher is the encoder: the same value.
    torch.testing.assert_close(taught(batch, rng(), 8).terms[term], plain(batch, rng(), 8).terms[term])
    with torch.no_grad():
        taught.encoder.norm.bias.add_(torch.linspace(-1, 1, 16))
        plain.encoder.norm.bias.add_(torch.linspace(-1, 1, 16))
    assert not torch.allclose(taught(batch, rng(), 8).terms[term], plain(batch, rng(), 8).terms[term])
