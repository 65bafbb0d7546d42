"""Reading order: every clip once per epoch, and the same clips in the same rows however a batch is split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdctool.data.order import Order, epoch_order
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
