"""Numbers that tell a living embedding from a dead one, and the one warning that comes of them."""

import math

import pytest
import torch

from kdctool.objectives import collapse


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_the_rank_of_equally_used_directions_is_their_number(directions: int) -> None:
    basis = torch.linalg.qr(torch.randn(32, directions, generator=rng()))[0]
    x = torch.eye(directions).repeat(24 // directions, 1) @ basis.T
    assert collapse.rank(x) == pytest.approx(directions, rel=1e-3)


def test_a_point_has_rank_one_and_uniformity_zero_and_noise_has_neither() -> None:
    point, noise = torch.ones(20, 16), torch.randn(20, 16, generator=rng())
    assert collapse.rank(point) == pytest.approx(1, abs=1e-3)
    assert collapse.uniformity(point) == pytest.approx(0, abs=1e-5)
    assert collapse.rank(noise) > 10
    assert collapse.uniformity(noise) < -2
    assert collapse.rank(torch.zeros(20, 16)) == 1.0


def test_alignment_is_the_squared_distance_on_the_sphere() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert collapse.alignment(x, 5 * x) == pytest.approx(0, abs=1e-6)
    assert collapse.alignment(x, x.flip(0)) == pytest.approx(2)
    assert collapse.alignment(x, -x) == pytest.approx(4)


def test_measure_names_what_it_measures_and_needs_two_clips() -> None:
    x = {name: torch.randn(2, 6, 8, generator=rng()) for name in ("audio", "joint", "video")}
    assert set(collapse.measure(x)) == {
        f"{kind}/{name}" for kind in ("rank", "uniformity") for name in x
    } | {f"alignment/{name}_views" for name in x} | {"alignment/audio_video"}  # fmt: skip
    assert all(math.isfinite(value) for value in collapse.measure(x).values())
    assert collapse.measure({name: value[:, :1] for name, value in x.items()}) == {}
    assert collapse.measure({}) == {}


def said_at(rows: list[dict[str, float]]) -> list[tuple[int, str]]:
    watch = collapse.Watch()
    return [(number, said.split(" has")[0]) for number, row in enumerate(rows) for said in watch.look(row)]


def test_a_dead_term_is_told_once_after_a_hundred_rows_on_end() -> None:
    dead = {"loss": 2.0, "weighted/a": 2.0, "weighted/b": 1e-5}
    alive = {**dead, "weighted/b": 1e-3}
    assert said_at([dead] * 400) == [(99, "term b")]
    assert said_at([*[dead] * 99, alive, *[dead] * 99]) == []
    assert said_at([{**dead, "weighted/a": 0.0}] * 100) == [(99, "term a"), (99, "term b")]


def test_a_collapsed_embedding_is_told_after_ten_measurements_with_rows_between_them() -> None:
    rows: list[dict[str, float]] = []
    for value in [9.0] * 3 + [1.2] * 12:
        rows += [{"loss": 1.0, "rank/joint": value, "rank/audio": 30.0}, {"loss": 1.0}]
    assert said_at(rows) == [(2 * (3 + 9), "the joint embedding")]


def test_a_warning_says_what_and_what_to_do() -> None:
    watch = collapse.Watch()
    (said,) = [said for _ in range(100) for said in watch.look({"loss": 4.0, "weighted/self_distillation": 1e-5})]
    assert "self_distillation" in said
    assert "1e-05 of 4" in said
    assert "Raise its weight" in said
