"""The definitions of localization on maps and boxes whose scores are known."""

import itertools
import math

import numpy as np
import pytest

from kdctool.errors import VerificationFault
from kdctool.tasks.maps import (
    FLAT,
    RULES,
    SIDE,
    centre_map,
    marked,
    overlap,
    pointing,
    stretched,
    success,
    success_area,
    to_unit_range,
    truth_map,
    two_choice,
)

HALF = [[0.0, 0.0, 0.5, 1.0]]


def truth(*boxes, agreement="union"):
    return truth_map(boxes, agreement)[None]


def test_boxes_become_whole_pixels_as_published():
    found = truth_map([[0.1, 0.25, 0.5, 0.75]])
    assert found[56:168, 22:112].all()
    assert found.sum() == (168 - 56) * (112 - 22)
    assert truth_map([[-0.5, -0.5, 1.5, 2.0]]).all()
    assert not truth_map([[0.3, 0.3, 0.3, 0.9]]).any()


def test_a_union_counts_any_box_and_a_consensus_two_of_them():
    boxes = [[0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 1.0], [0.25, 0.0, 0.5, 1.0]]
    union, consensus = truth_map(boxes), truth_map(boxes, "consensus")
    assert set(np.unique(union)) == {0.0, 1.0}
    assert consensus[0, :: SIDE // 8].tolist() == [0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    assert truth_map([*boxes, *boxes], "consensus").max() == 1.0


def test_overlap_is_that_of_the_published_code():
    rng = np.random.default_rng(0)
    marks, boxes = rng.random((5, SIDE, SIDE)) > 0.7, rng.choice([0.0, 0.5, 1.0], (5, SIDE, SIDE))
    for mark, box, ours in zip(marks, boxes, overlap(marks, boxes), strict=True):
        inside = sum_of = outside = 0.0
        for is_marked, value in zip(mark.ravel(), box.ravel(), strict=True):
            inside += value * is_marked
            sum_of += value
            outside += bool(is_marked) and value == 0
        assert ours == pytest.approx(inside / (sum_of + outside))


def test_a_perfect_map_scores_one_under_the_rule_of_its_size():
    found = truth(*HALF)
    assert overlap(marked(to_unit_range(found), "fixed"), found).tolist() == [1.0]
    assert overlap(marked(to_unit_range(found), "top50"), found).tolist() == [1.0]
    assert success([1.0]).tolist() == [1.0]
    assert success_area([1.0]).tolist() == [pytest.approx(1.0)]
    assert pointing(found, found).tolist() == [1.0]


@pytest.mark.parametrize("box", [[0.0, 0.0, 0.5, 1.0], [0.1, 0.2, 0.7, 0.9], [0.4, 0.4, 0.6, 0.6]])
def test_everything_marked_overlaps_by_the_area_of_the_box(box):
    found = truth(box)
    flat = np.full((1, SIDE, SIDE), 0.3)
    for rule in RULES:
        assert overlap(marked(to_unit_range(flat), rule), found)[0] == pytest.approx(found.mean())
    assert pointing(flat, found)[0] == pytest.approx(found.mean())


def test_a_map_of_rounding_errors_is_flat():
    rng = np.random.default_rng(1)
    noise = 0.3 + rng.random((2, SIDE, SIDE)) * FLAT * 0.9
    assert (to_unit_range(noise) == 1.0).all()
    real = 0.3 + rng.random((2, SIDE, SIDE)) * FLAT * 1e3
    assert to_unit_range(real).min() == 0.0


def test_rules_mark_their_share_of_the_picture():
    unit = to_unit_range(np.random.default_rng(2).random((3, SIDE, SIDE)))
    assert marked(unit, "top50").mean((1, 2)) == pytest.approx([0.5] * 3, abs=1e-4)
    assert marked(unit, "top10").mean((1, 2)) == pytest.approx([0.1] * 3, abs=1e-4)
    assert (marked(unit, "fixed") == (unit >= 0.5)).all()


def test_the_published_threshold_is_the_pixel_in_the_middle_of_the_order():
    unit = to_unit_range(np.random.default_rng(3).random((1, SIDE, SIDE)))
    published = unit >= np.sort(unit.ravel())[int(SIDE * SIDE * 0.5)]
    assert (marked(unit, "top50") == published).all()


def test_success_needs_half_and_the_area_is_the_trapezoid_over_21_thresholds():
    assert success([0.4999, 0.5, 0.9]).tolist() == [0.0, 1.0, 1.0]
    iou = np.random.default_rng(4).random(300)
    rates = [(iou >= 0.05 * i).mean() for i in range(21)]
    published = sum((a + b) / 2 * 0.05 for a, b in itertools.pairwise(rates))
    assert success_area(iou).mean() == pytest.approx(published)


def test_the_centre_floor_is_a_disc_of_half_the_picture():
    disc = marked(to_unit_range(centre_map()), "top50")[0]
    assert disc.mean() == pytest.approx(0.5, abs=1e-3)
    radius = np.hypot(*(np.indices(disc.shape) + 0.5 - SIDE / 2))
    assert np.array_equal(disc, radius <= radius[disc].max() + 1e-9)
    assert radius[disc].max() == pytest.approx(SIDE * math.sqrt(0.5 / math.pi), abs=0.5)
    assert (disc == disc[::-1]).all()
    assert (disc == disc.T).all()


def test_the_centre_floor_succeeds_where_geometry_says_so():
    disc, area = marked(to_unit_range(centre_map()), "top50"), 0.5
    whole, middle = truth([0.0, 0.0, 1.0, 1.0]), truth([0.25, 0.25, 0.75, 0.75])
    corner = truth([0.0, 0.0, 0.3, 0.3])
    assert overlap(disc, whole)[0] == pytest.approx(area, abs=1e-3)
    assert overlap(disc, middle)[0] == pytest.approx(0.25 / area, abs=2e-3)  # The square lies inside the disc.
    assert success(overlap(disc, corner)).tolist() == [0.0]
    assert pointing(centre_map(), middle).tolist() == [1.0]
    assert pointing(centre_map(), corner).tolist() == [0.0]


def test_stretching_keeps_a_token_in_its_place():
    tokens = np.zeros((1, 4, 4))
    tokens[0, 1, 2] = 1.0
    full = stretched(tokens)
    top, left = np.unravel_index(full[0].argmax(), full[0].shape)
    assert abs(top + 0.5 - 1.5 * SIDE / 4) <= 1
    assert abs(left + 0.5 - 2.5 * SIDE / 4) <= 1
    with pytest.raises(VerificationFault, match="NaN"):
        stretched(np.full((1, 2, 2), np.nan))


def test_the_choice_of_two_is_one_nothing_or_a_tie():
    left, right = truth(*HALF), truth([0.5, 0.0, 1.0, 1.0])
    ramp = np.linspace(1, 0, SIDE)[None, None].repeat(SIDE, 1)
    flat = np.full_like(ramp, 0.2)
    assert two_choice(ramp, left, right).tolist() == [1.0]
    assert two_choice(ramp, right, left).tolist() == [0.0]
    assert two_choice(flat, left, right).tolist() == [0.5]
    assert np.isnan(two_choice(ramp, left, np.zeros_like(left))).all()
