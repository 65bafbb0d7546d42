"""Rectangles that cutmix and random erasing replace: timm's, as functions of a clip's seed."""

import math

import numpy as np
import pytest
import torch
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing

from kdctool.data.patches import draw_cut, draw_erasing, erase, inside, paste, standard_normal

HEIGHT, WIDTH = 40, 56


def corners(boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    return np.array(boxes, dtype=float)


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Means within four standard errors and spreads within 6 %, column by column."""
    spread = ours.std(0) + theirs.std(0)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * spread / math.sqrt(len(ours))).all()
    assert (np.abs(ours.std(0) - theirs.std(0)) < 0.06 * spread).all()


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_cuts_are_distributed_as_timms(alpha: float) -> None:
    np.random.seed(0)
    theirs = []
    for _ in range(6000):
        (top, bottom, left, right), weight = cutmix_bbox_and_lam((HEIGHT, WIDTH), np.random.beta(alpha, alpha))
        theirs.append((top, left, bottom - top, right - left, weight))
    ours = [(*box, weight) for box, weight in (draw_cut(seed, alpha, HEIGHT, WIDTH) for seed in range(6000))]
    assert_alike(corners(ours), corners(theirs))


class Told:
    """A generator that gives what it is told: the share, then row and column of the centre."""

    def __init__(self, share: float, centre: tuple[int, int]) -> None:
        self.share, self.centre = share, iter(centre)

    def beta(self, a: float, b: float) -> float:
        return self.share

    def integers(self, most: int) -> int:
        return next(self.centre)


def test_a_cut_is_timms_where_the_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        share, centre = float(rng.random()), (int(rng.integers(HEIGHT)), int(rng.integers(WIDTH)))
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "default_rng", lambda _, told=(share, centre): Told(*told))
            box, weight = draw_cut(0, 1.0, HEIGHT, WIDTH)
        numbers = iter(centre)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *_, numbers=numbers, **__: next(numbers))
            (top, bottom, left, right), expected = cutmix_bbox_and_lam((HEIGHT, WIDTH), share)
        assert box == (top, left, bottom - top, right - left)
        assert weight == pytest.approx(expected)


def test_erased_rectangles_are_distributed_as_timms() -> None:
    torch.manual_seed(0)
    theirs, erasing = [], RandomErasing(1.0, mode="const", device="cpu")
    for _ in range(4000):
        hole = erasing(torch.ones(1, HEIGHT, WIDTH))[0] == 0
        rows, columns = hole.any(dim=1).nonzero(), hole.any(dim=0).nonzero()
        if len(rows):
            top, left = int(rows[0]), int(columns[0])
            theirs.append((top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left))
    ours = [box for seed in range(4000) if (box := draw_erasing(seed, 1.0, HEIGHT, WIDTH)) is not None]
    few = min(len(ours), len(theirs))
    assert few > 3900
    assert_alike(corners(ours[:few]), corners(theirs[:few]))


def test_pictures_are_erased_at_their_rate() -> None:
    found = sum(draw_erasing(seed, 0.25, 224, 224) is not None for seed in range(4000))
    assert found == pytest.approx(1000, abs=5 * math.sqrt(750))
    assert all(draw_erasing(seed, 0.0, 224, 224) is None for seed in range(50))


def test_noise_is_standard_normal_and_finite() -> None:
    noise = standard_normal(torch.arange(40), 30_000)
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(1, abs=0.005)
    assert float((noise.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.003)
    assert 4 < float(noise.abs().max()) < 5.5


def test_the_rarest_numbers_are_no_infinities(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0.0, 1 - 2.0**-24]])
    monkeypatch.setattr("kdctool.data.patches.uniform", lambda keys, count: ends.clone())
    low, high = standard_normal(torch.zeros(1, dtype=torch.int64), 2)[0].tolist()
    assert low == pytest.approx(-high)
    assert 5 < high < 5.5


def test_erasing_changes_the_rectangles_of_its_rows_and_nothing_else() -> None:
    plain = torch.full((5, 3, HEIGHT, WIDTH), 9.0)
    boxes = torch.tensor([[2, 3, 10, 20], [0, 0, 40, 8]])
    frame = plain.clone()
    erase(frame, torch.tensor([4, 1]), boxes, torch.tensor([11, 12]))
    changed = (frame != plain).all(dim=1)
    expected = torch.zeros(5, HEIGHT, WIDTH, dtype=torch.bool)
    expected[4, 2:12, 3:23] = True
    expected[1, :, :8] = True
    assert torch.equal(changed, expected)
    again = plain.clone()
    erase(again, torch.tensor([1, 4]), boxes[[1, 0]], torch.tensor([12, 11]))
    assert torch.equal(frame, again)
    other = plain.clone()
    erase(other, torch.tensor([4]), boxes[:1], torch.tensor([13]))
    assert not torch.equal(other[4], frame[4])
    erase(plain, torch.empty(0, dtype=torch.int64), torch.empty(0, 4, dtype=torch.int64), torch.empty(0))
    assert (plain == 9).all()


def test_many_pictures_are_erased_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [draw_erasing(seed, 1.0, HEIGHT, WIDTH) for seed in range(7)]
    boxes, keys = torch.tensor(drawn), torch.arange(7) + 100
    together, alone = torch.zeros(7, 3, HEIGHT, WIDTH), torch.zeros(7, 3, HEIGHT, WIDTH)
    erase(together, torch.arange(7), boxes, keys)
    monkeypatch.setattr("kdctool.data.patches._AT_ONCE", 2)
    erase(alone, torch.arange(7), boxes, keys)
    assert torch.equal(together, alone)


def test_a_pasted_rectangle_is_the_partners() -> None:
    boxes = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
    first, second = torch.zeros(2, 3, 8, 9), torch.ones(2, 3, 8, 9)
    pasted = paste(first, second, boxes)
    assert pasted[0, :, 1:4, 2:6].eq(1).all()
    assert pasted[0].sum() == 3 * 12
    assert pasted[1].sum() == 0
    assert inside(boxes, 8, 9).sum(dim=(1, 2)).tolist() == [12, 0]
