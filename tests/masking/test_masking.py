"""Every masking: a permutation, equal counts, a function of its generator; every kind of view: what it promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdctool.errors import UsageFault
from kdctool.masking import Masking, build, maskings
from kdctool.masking.views import draw, share_of_removed, views_from_noise

GRIDS = [(8, 64), (2, 3), (7, 5), (1, 9), (14, 14)]
GRID = st.tuples(st.integers(1, 9), st.integers(1, 12))
RATIO = st.floats(0.05, 0.95)


def make(name: str) -> Masking:
    """The masking with its own defaults; a learned one for tokens of width 16."""
    torch.manual_seed(0)
    return build(name, {}, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", maskings.names())
@settings(max_examples=60, deadline=None)
@given(grid=GRID, ratio=RATIO, num=st.integers(1, 3), learned=st.booleans(), seed=st.integers(0, 1000))
def test_every_masking_is_a_permutation_with_equal_counts_at_any_size(
    name: str, grid: tuple[int, int], ratio: float, num: int, learned: bool, seed: int
) -> None:
    """Nothing is lost: every token is seen or removed in every view, and every view can be put back in order."""
    tokens, clips = grid[0] * grid[1], 3
    kept = int(tokens * (1 - ratio))
    odds = torch.randn(clips, tokens, generator=generator(seed)) if learned else None
    views = draw(make(name), clips, grid, ratio, num, num * kept <= tokens, generator(seed), log_prob=odds)
    assert views.ids_keep.shape == (num, clips, kept)
    assert torch.equal(views.ids_restore.sort(dim=2).values, torch.arange(tokens).expand(num, clips, -1))
    assert torch.equal((1 - views.mask).sum(dim=2), torch.full((num, clips), float(kept)))
    seen = torch.zeros(num, clips, tokens).scatter(2, views.ids_keep, 1.0)
    assert torch.equal(seen, 1 - views.mask)


@pytest.mark.parametrize("name", maskings.names())
@pytest.mark.parametrize("complementary", [True, False])
def test_a_masking_repeats_from_its_seed_and_clips_differ(name: str, complementary: bool) -> None:
    first, again, other = (
        draw(make(name), 6, (8, 16), 0.75, 2, complementary, generator(seed)).mask for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first[0].unique(dim=0)) > 1


@pytest.mark.parametrize("name", maskings.names())
def test_global_random_state_is_neither_read_nor_moved(name: str) -> None:
    masking = make(name)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(masking, 4, (8, 16), 0.5, 2, True, generator()).mask
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(masking, 4, (8, 16), 0.5, 2, True, generator()).mask, first)


@pytest.mark.parametrize("name", maskings.names())
@pytest.mark.parametrize("complementary", [True, False])
def test_a_clips_masks_follow_from_its_place_in_the_global_batch(name: str, complementary: bool) -> None:
    whole = draw(make(name), 8, (4, 8), 0.75, 3, complementary, generator())
    rows = torch.tensor([5, 0, 7])
    part = draw(make(name), 8, (4, 8), 0.75, 3, complementary, generator(), rows)
    assert torch.equal(part.ids_keep, whole.ids_keep[:, rows])
    assert torch.equal(part.ids_restore, whole.ids_restore[:, rows])
    assert torch.equal(part.mask, whole.mask[:, rows])


@pytest.mark.parametrize("name", maskings.names())
@settings(max_examples=40, deadline=None)
@given(grid=GRID, views=st.integers(2, 3), more=st.floats(0, 0.3), seed=st.integers(0, 1000))
def test_complementary_views_are_disjoint_and_leave_the_rest_to_nobody(
    name: str, grid: tuple[int, int], views: int, more: float, seed: int
) -> None:
    tokens, ratio = grid[0] * grid[1], 1 - 1 / views + more
    kept = int(tokens * (1 - ratio))
    found = draw(make(name), 2, grid, ratio, views, True, generator(seed))
    seen = (1 - found.mask).sum(dim=0)  # (B, L)
    assert float(seen.max()) <= 1
    assert torch.equal(seen.sum(dim=1), torch.full((2,), float(views * kept)))


@settings(max_examples=60, deadline=None)
@given(grid=GRID, ratio=RATIO, num=st.integers(1, 3), share=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_a_share_of_the_removed_is_removed_distinct_and_of_equal_count(
    grid: tuple[int, int], ratio: float, num: int, share: float, seed: int
) -> None:
    rng, tokens, clips = generator(seed), grid[0] * grid[1], 3
    views = draw(make("random"), clips, grid, ratio, num, False, rng)
    asked = share_of_removed(views, share, clips, rng)
    removed = tokens - int(tokens * (1 - ratio))
    assert asked.shape == (num, clips, max(1, int(share * removed)))
    assert float(views.mask.gather(2, asked).min()) == 1.0
    assert (asked.sort(dim=2).values.diff(dim=2) > 0).all()


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
        views = draw(make(name), 20, (8, 16), 0.75, 2, True, generator())
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
    noise = make(name).noise(3, grid, 0.75, generator())
    assert noise.shape == (3, grid[0] * grid[1])
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("of", ["random", "time"])
def test_a_pool_has_so_many_masks_and_they_are_the_same_in_every_run(of: str) -> None:
    options = {"size": 3, "of": of}
    drawn = [draw(build("pool", options), 200, (8, 16), 0.75, 2, True, generator(seed)) for seed in (1, 2)]
    pools = [{tuple(row) for row in views.ids_keep[0].tolist()} for views in drawn]
    assert pools[0] == pools[1]
    assert len(pools[0]) == 3
    assert not torch.equal(drawn[0].ids_keep, drawn[1].ids_keep)  # which clip gets which does follow the step
    if of == "time":
        assert drawn[0].mask.reshape(2, 200, 8, 16).bool().all(dim=2).sum(dim=2).eq(12).all()


def test_another_seed_or_grid_is_another_pool() -> None:
    plain = build("pool", {}).noise(9, (4, 4), 0.5, generator())
    assert torch.equal(build("pool", {"seed": 0}).noise(9, (4, 4), 0.5, generator()), plain)
    assert not torch.equal(build("pool", {"seed": 1}).noise(9, (4, 4), 0.5, generator()), plain)
    assert not torch.equal(build("pool", {}).noise(9, (2, 8), 0.5, generator()), plain)


@pytest.mark.parametrize("of", ["adaptive", "pool"])
def test_a_pool_of_what_cannot_be_drawn_once_is_refused(of: str) -> None:
    with pytest.raises(UsageFault, match=f"of = '{of}'") as caught:
        build("pool", {"of": of})
    assert "random" in caught.value.next_step


def test_a_pool_of_nothing_known_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageFault, match="no masking is called 'tme'"):
        build("pool", {"of": "tme"})


def test_a_pool_of_no_masks_is_refused() -> None:
    with pytest.raises(UsageFault, match="'pool', option size"):
        build("pool", {"size": 0})
