"""Every masking: a permutation, equal counts, a function of its generator; every kind of view: what it promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdctool.errors import UsageFault
from kdctool.masking import build, maskings
from kdctool.masking.views import draw, views_from_noise

GRIDS = [(8, 64), (2, 3), (7, 5), (1, 9), (14, 14)]
GRID = st.tuples(st.integers(1, 9), st.integers(1, 12))
RATIO = st.floats(0.05, 0.95)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", maskings.names())
@settings(max_examples=60, deadline=None)
@given(grid=GRID, ratio=RATIO, seed=st.integers(0, 1000))
def test_every_masking_is_a_permutation_with_equal_counts(
    name: str, grid: tuple[int, int], ratio: float, seed: int
) -> None:
    tokens, clips = grid[0] * grid[1], 3
    kept = int(tokens * (1 - ratio))
    views = draw(build(name, {}), clips, grid, ratio, 1, True, generator(seed))
    assert views.ids_keep.shape == (1, clips, kept)
    assert torch.equal(views.ids_restore.sort(dim=2).values, torch.arange(tokens).expand(1, clips, -1))
    assert torch.equal((1 - views.mask).sum(dim=2), torch.full((1, clips), float(kept)))
    seen = torch.zeros(1, clips, tokens).scatter(2, views.ids_keep, 1.0)
    assert torch.equal(seen, 1 - views.mask)


@pytest.mark.parametrize("name", maskings.names())
@pytest.mark.parametrize("complementary", [True, False])
def test_a_masking_repeats_from_its_seed_and_clips_differ(name: str, complementary: bool) -> None:
    first, again, other = (
        draw(build(name, {}), 6, (8, 16), 0.75, 2, complementary, generator(seed)).mask for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first[0].unique(dim=0)) > 1


@pytest.mark.parametrize("name", maskings.names())
def test_global_random_state_is_neither_read_nor_moved(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(build(name, {}), 4, (8, 16), 0.5, 2, True, generator()).mask
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(build(name, {}), 4, (8, 16), 0.5, 2, True, generator()).mask, first)


@pytest.mark.parametrize("name", maskings.names())
@pytest.mark.parametrize("complementary", [True, False])
def test_a_clips_masks_follow_from_its_place_in_the_global_batch(name: str, complementary: bool) -> None:
    whole = draw(build(name, {}), 8, (4, 8), 0.75, 3, complementary, generator())
    rows = torch.tensor([5, 0, 7])
    part = draw(build(name, {}), 8, (4, 8), 0.75, 3, complementary, generator(), rows)
    assert torch.equal(part.ids_keep, whole.ids_keep[:, rows])
    assert torch.equal(part.ids_restore, whole.ids_restore[:, rows])
    assert torch.equal(part.mask, whole.mask[:, rows])


@pytest.mark.parametrize("name", maskings.names())
@settings(max_examples=40, deadline=None)
@given(grid=GRID, views=st.integers(2, 3), seed=st.integers(0, 1000))
def test_complementary_views_are_disjoint_and_leave_the_rest_to_nobody(
    name: str, grid: tuple[int, int], views: int, seed: int
) -> None:
    tokens, ratio = grid[0] * grid[1], 1 - 1 / views
    kept = int(tokens * (1 - ratio))
    found = draw(build(name, {}), 2, grid, ratio, views, True, generator(seed))
    seen = (1 - found.mask).sum(dim=0)  # (B, L)
    assert float(seen.max()) <= 1
    assert torch.equal(seen.sum(dim=1), torch.full((2,), float(views * kept)))


def test_half_masked_views_are_exact_complements() -> None:
    views = draw(build("random", {}), 4, (4, 8), 0.5, 2, True, generator())
    assert torch.equal(views.mask[0], 1 - views.mask[1])


def test_independent_views_overlap_as_chance_says() -> None:
    views = draw(build("random", {}), 400, (8, 8), 0.75, 2, False, generator())
    both = ((1 - views.mask[0]) * (1 - views.mask[1])).sum(dim=1).mean()
    assert abs(float(both) - 16 * 0.25) < 0.5


@pytest.mark.parametrize("complementary", [True, False])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_token_tagged_with_its_index_comes_home_in_every_view(views: int, complementary: bool) -> None:
    found = draw(build("random", {}), 5, (4, 6), 0.7, views, complementary, generator())
    tags = torch.cat((found.ids_keep, torch.full((views, 5, 24 - found.ids_keep.shape[2]), -1)), dim=2)
    home = tags.gather(2, found.ids_restore)
    natural = torch.arange(24).expand(views, 5, -1)
    assert torch.equal(home, torch.where(found.mask.bool(), -1, natural))


def test_views_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageFault, match="3 complementary views of 4 tokens each do not fit into 10") as caught:
        views_from_noise(torch.rand(2, 10), 4, views=3)
    assert "masking.complementary = false" in caught.value.next_step


@pytest.mark.parametrize("view", [0, 1])
def test_time_and_freq_masking_remove_whole_lines_in_every_complementary_view(view: int) -> None:
    for name, axis, lines in (("time", 1, 16), ("freq", 2, 8)):
        views = draw(build(name, {}), 20, (8, 16), 0.75, 2, True, generator())
        mask = views.mask[view].reshape(20, 8, 16)
        whole_removed, whole_kept = mask.bool().all(dim=axis), (~mask.bool()).all(dim=axis)
        assert torch.equal(whole_removed.sum(dim=1), torch.full((20,), lines * 3 // 4)), name
        assert torch.equal(whole_kept.sum(dim=1), torch.full((20,), lines // 4)), name


def test_tf_masking_fills_up_from_the_removed_region_when_too_little_is_left() -> None:
    noise = build("tf", {}).noise(50, (8, 64), 0.75, generator())
    removed = (noise >= 1.1).reshape(50, 8, 64)
    assert torch.equal(removed.all(dim=1).sum(dim=1), torch.full((50,), 33))
    assert torch.equal(removed.all(dim=2).sum(dim=1), torch.full((50,), 4))
    seen = 1 - views_from_noise(noise, 128).mask[0]
    assert torch.equal((seen * removed.flatten(1)).sum(dim=1), torch.full((50,), 4.0))


def test_an_unknown_option_of_a_masking_is_refused() -> None:
    with pytest.raises(UsageFault, match="'time', option width"):
        build("time", {"width": 3})


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", maskings.names())
def test_scores_are_finite_and_fit_the_grid(name: str, grid: tuple[int, int]) -> None:
    noise = build(name, {}).noise(3, grid, 0.75, generator())
    assert noise.shape == (3, grid[0] * grid[1])
    assert torch.isfinite(noise).all()
