"""Reading order: every clip once per epoch, and the same clips in the same rows however a batch is split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdctool.data.order import Order, epoch_order, occurrences
from kdctool.errors import DataFault


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_is_a_permutation(sizes: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(sizes, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(sum(sizes)))


def test_epochs_and_seeds_differ() -> None:
    a, b, c = epoch_order([50] * 4, 1, 0), epoch_order([50] * 4, 1, 1), epoch_order([50] * 4, 2, 0)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(("micro", "ranks"), [(8, 1), (2, 1), (4, 2), (1, 4), (2, 4)])
def test_any_split_of_the_global_batch_reads_the_same_rows(micro: int, ranks: int) -> None:
    order = Order((7, 5, 11, 9), global_batch=8, seed=3, epochs=2)
    whole = list(order.micro_batches(0, 8, 0, 1))
    passes = 8 // (micro * ranks)
    parts = [list(order.micro_batches(0, micro, rank, ranks)) for rank in range(ranks)]
    for step, expected in enumerate(whole):
        found = {r.row: r for part in parts for m in part[step * passes : (step + 1) * passes] for r in m}
        assert [found[row] for row in range(8)] == expected


def test_a_later_start_goes_on_with_the_same_clips() -> None:
    order = Order((10, 10), global_batch=4, seed=0, epochs=3)
    assert list(order.micro_batches(7, 4, 0, 1)) == list(order.micro_batches(0, 4, 0, 1))[7:]


def test_no_clip_twice_within_an_epoch() -> None:
    order = Order((10, 13), global_batch=4, seed=0, epochs=1)
    clips = [request.clip for part in order.micro_batches(0, 4, 0, 1) for request in part]
    assert len(clips) == len(set(clips)) == 20


def test_fewer_clips_than_a_batch_is_refused_with_the_fix() -> None:
    with pytest.raises(DataFault, match="3 clips, fewer than one batch of 4"):
        Order((3,), global_batch=4, seed=0, epochs=1)


WEIGHTS = np.repeat([1000 / 6000, 1000 / 600, 1000 / 60], [6000, 600, 60])
SIZES = [1000, 2000, 3000, 600, 60]


def test_balanced_draws_show_every_class_as_often() -> None:
    order = epoch_order(SIZES, 3, 0, WEIGHTS)
    assert len(order) == 6660
    drawn = [int(((order >= first) & (order < end)).sum()) for first, end in ((0, 6000), (6000, 6600), (6600, 6660))]
    assert drawn == pytest.approx([2220] * 3, abs=5 * np.sqrt(6660 * 2 / 9))
    rare = np.bincount(order, minlength=6660)[6600:]
    assert rare.mean() == pytest.approx(37, rel=0.1)
    assert rare.std() == pytest.approx(np.sqrt(37), rel=0.4), "draws are independent, not dealt out"


def test_a_clip_without_weight_is_never_drawn() -> None:
    weights = WEIGHTS.copy()
    weights[6000:6600] = 0
    order = epoch_order(SIZES, 3, 0, weights)
    assert not ((order >= 6000) & (order < 6600)).any()


def test_balanced_draws_are_a_function_of_seed_and_epoch() -> None:
    a, b = epoch_order(SIZES, 3, 1, WEIGHTS), epoch_order(SIZES, 3, 1, WEIGHTS)
    assert np.array_equal(a, b)
    for seed, epoch in ((3, 0), (4, 1)):
        other = epoch_order(SIZES, seed, epoch, WEIGHTS)
        assert not np.array_equal(np.bincount(a, minlength=6660), np.bincount(other, minlength=6660))


def test_occurrences_count_through_each_clips_draws() -> None:
    assert occurrences(np.array([5, 2, 5, 5, 2, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert not occurrences(epoch_order([30, 20], 1, 1)).any()


@pytest.mark.parametrize(("micro", "ranks"), [(2, 1), (4, 2), (1, 4)])
def test_any_split_of_a_balanced_batch_reads_the_same_rows(micro: int, ranks: int) -> None:
    weights = np.array([100.0] * 4 + [1.0] * 28)
    order = Order((7, 5, 11, 9), global_batch=8, seed=3, epochs=2, weights=weights)
    whole = list(order.micro_batches(0, 8, 0, 1))
    assert any(request.again for batch in whole for request in batch)
    assert len({(r.clip, r.epoch, r.again) for batch in whole for r in batch}) == 64, "no draw stands twice"
    passes = 8 // (micro * ranks)
    parts = [list(order.micro_batches(0, micro, rank, ranks)) for rank in range(ranks)]
    for step, expected in enumerate(whole):
        found = {r.row: r for part in parts for m in part[step * passes : (step + 1) * passes] for r in m}
        assert [found[row] for row in range(8)] == expected
    assert list(order.micro_batches(5, micro, 0, ranks)) == parts[0][5 * passes :]
