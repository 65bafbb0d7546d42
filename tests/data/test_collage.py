"""Which stored frames are seen in training and in evaluation, and where they land in a collage."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdctool import recipe as recipes
from kdctool.data.clips import Clips, Failed
from kdctool.data.collage import choose, collage
from kdctool.data.order import Request
from kdctool.errors import DataFault
from kdctool.recipe import Data
from kdctool.seeds import fold
from kdctool.shards import index as shard_index


@settings(max_examples=100, deadline=None)
@given(stored=st.integers(4, 40), seed=st.integers(0, 10**6), epoch=st.one_of(st.none(), st.integers(0, 50)))
def test_a_collage_shows_four_different_frames_that_exist(stored: int, seed: int, epoch: int | None) -> None:
    places = choose(Data(tiling=True), stored, epoch, seed, "x")
    assert len(set(places)) == 4
    assert set(places) <= set(range(stored))
    assert places == choose(Data(tiling=True), stored, epoch, seed, "x")


def test_every_frame_has_the_same_chance_in_training_and_evaluation_is_fixed() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[choose(Data(tiling=True), 10, 0, fold(seed, "clip"), "x")] += 1
    assert float((counts / 2000 - 0.4).abs().max()) < 0.05
    assert {tuple(choose(Data(tiling=True), 10, None, seed, "x")) for seed in range(9)} == {(0, 2, 5, 7)}


def test_one_frame_is_the_middle_the_cycle_or_a_random_one() -> None:
    assert choose(Data(), 10, None, 3, "x") == [5]
    assert [choose(Data(frame="cycle"), 10, epoch, 3, "x") for epoch in (0, 7, 12)] == [[0], [7], [2]]
    assert {choose(Data(), 3, 0, seed, "x")[0] for seed in range(50)} == {0, 1, 2}


def test_too_few_frames_for_a_collage_name_the_clip_and_the_way_out() -> None:
    with pytest.raises(DataFault, match=r"shard\.tar: clip a has 3 frames, a collage needs 4") as caught:
        choose(Data(tiling=True), 3, 0, 0, "shard.tar: clip a")
    assert "data.tiling = false" in caught.value.next_step


def test_frames_of_any_size_fill_the_collage_column_by_column() -> None:
    shapes = [(8, 8), (9, 16), (20, 6), (5, 5)]
    frames = [torch.full((3, *shape), 10 * (n + 1), dtype=torch.uint8) for n, shape in enumerate(shapes)]
    found = collage(frames, 12)
    assert found.shape == (3, 12, 12)
    assert [int(found[0, r, c]) for r, c in ((0, 0), (11, 0), (0, 11), (11, 11))] == [10, 20, 30, 40]


def test_clips_with_tiling_give_a_collage_of_the_models_size(
    tiny_shards: Path, tiny_recipe: Callable[..., Path]
) -> None:
    index = shard_index.load(tiny_shards)
    plain, tiled = (recipes.load(tiny_recipe(f"data.tiling={on}")) for on in ("false", "true"))
    requests = [Request(0, 0, 0), Request(1, 0, 1)]
    split = index.split("train")
    one = Clips(index, split, plain, training=True, with_labels=False).__getitems__(requests)
    assert not isinstance(one, Failed)
    assert one["frame"].shape == (2, 3, 32, 32)
    # These shards hold three frames per clip.
    four = Clips(index, split, tiled, training=True, with_labels=False).__getitems__(requests)
    assert isinstance(four, Failed)
    assert "a collage needs 4" in four.error.cause
