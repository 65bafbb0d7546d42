"""Redundant-token masking: exact counts, the odd ones survive, and a clip's mask is its own."""

import pytest
import torch

from kdctool.errors import UsageFault
from kdctool.masking.redundancy import LIKENESS, Policy, drop_redundant, policies, share
from kdctool.recipe import result_keys
from kdctool.recipe.distill import TokenMask

GRID = (14, 14)


def make(floor: int = 0, **options: object) -> Policy:
    mask = TokenMask(**options)  # type: ignore[arg-type]
    return policies.get(mask.policy).cls(mask, floor)


def kept(policy: Policy, tokens: torch.Tensor, depth: int = 12, seed: int = 0) -> torch.Tensor:
    heard = {layer: tokens for layer in policy.guides(depth)}
    found = policy.keep(heard, GRID, len(tokens), torch.Generator().manual_seed(seed), torch.arange(len(tokens)))
    assert found is not None
    return found


def noise(clips: int = 3, tokens: int = 196, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(clips, tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("drop", "steps"), [(0.1, (176, 158, 142)), (0.3, (137, 95, 66)), (0.5, (98, 49, 24))], ids=["10 %", "30 %", "50 %"]
)
def test_counts_are_those_of_the_paper(drop: float, steps: tuple[int, ...]) -> None:
    tokens = 196
    for wanted in steps:
        tokens = share(tokens, 1 - drop)
        assert tokens == wanted
    assert kept(make(policy="redundancy", teacher="m", drop=drop), noise()).shape == (3, steps[-1])


@pytest.mark.parametrize(("policy", "wanted"), [("random", 68), ("direct", 68)])
def test_the_baselines_keep_35_per_cent(policy: str, wanted: int) -> None:
    teacher = {"teacher": "m"} if policy == "direct" else {}
    assert kept(make(policy=policy, keep=0.35, **teacher), noise()).shape == (3, wanted)


def test_none_keeps_all() -> None:
    policy = make(policy="none")
    assert policy.guides(12) == ()
    assert policy.keep({}, GRID, 3, torch.Generator(), torch.arange(3)) is None


@pytest.mark.parametrize(("depth", "blocks"), [(12, (0, 4, 8)), (24, (0, 8, 16)), (6, (0, 2, 4)), (2, (0, 1))])
def test_tokens_fall_after_blocks_0_a_third_and_two_thirds_counted_from_0(depth: int, blocks: tuple[int, ...]) -> None:
    assert make(policy="redundancy", teacher="m").guides(depth) == tuple(block + 1 for block in blocks)
    assert make(policy="redundancy", teacher="m", side="input").guides(depth) == blocks


def test_direct_ranks_at_the_last_block() -> None:
    assert make(policy="direct", teacher="m").guides(24) == (24,)


@pytest.mark.parametrize("policy", ["redundancy", "direct"])
def test_outliers_among_equal_tokens_survive(policy: str) -> None:
    tokens = torch.ones(2, 196, 8) + 0.01 * noise(2)
    places = torch.tensor([[3, 77, 150], [0, 100, 195]])
    for clip, where in enumerate(places):
        tokens[clip, where] = -5 * noise(1, 3, seed=clip)[0].abs()
    for drop in (0.3, 0.5):
        found = kept(make(policy=policy, teacher="m", drop=drop, keep=0.1), tokens)
        for clip, where in enumerate(places):
            assert set(where.tolist()) <= set(found[clip].tolist())


def test_the_length_of_a_token_is_no_redundancy() -> None:
    tokens = noise()
    scaled = tokens * torch.rand(3, 196, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    policy = make(policy="redundancy", teacher="m")
    assert torch.equal(kept(policy, tokens), kept(policy, scaled))


def ranked(likeness: str, rows: list[list[float]], keep: int) -> list[int]:
    tokens = torch.tensor([rows])
    found = drop_redundant(tokens, torch.arange(len(rows))[None], keep, likeness)
    return found[0].tolist()


def test_readings_of_likeness_find_other_tokens_nearest() -> None:
    """Their mean is (2, 0.8), the mean of their directions (0.65, 0.52), that of the third is (0.71, 0.71)."""
    tokens = [[6.0, -0.5], [1.9, 1.0], [0.05, 0.05], [0.05, 2.65]]
    gone = {name: ({0, 1, 2, 3} - set(ranked(name, tokens, 3))).pop() for name in LIKENESS}
    assert gone == {"cosine": 2, "mean_cosine": 1, "product": 0, "distance": 1}


def test_the_distance_is_to_the_mean_in_space() -> None:
    tokens = [[0.0, 0.0], [1.0, 0.0], [4.0, 0.0], [9.0, 0.0]]  # mean 3.5
    assert ranked("distance", tokens, 3) == [0, 1, 3]
    assert ranked("product", tokens, 3) == [0, 1, 2]


@pytest.mark.parametrize("policy", ["redundancy", "direct"])
@pytest.mark.parametrize("likeness", ["mean_cosine", "product", "distance"])
def test_policies_rank_by_the_likeness_of_the_recipe(policy: str, likeness: str) -> None:
    tokens = noise() * torch.rand(3, 196, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    usual, other = (kept(make(policy=policy, teacher="m", **more), tokens) for more in ({}, {"likeness": likeness}))
    assert usual.shape == other.shape
    assert not torch.equal(usual, other)


def test_the_usual_likeness_does_not_change_the_digest_of_a_recipe() -> None:
    assert "likeness" not in result_keys(TokenMask())
    assert result_keys(TokenMask(likeness="product"))["likeness"] == "product"


def test_ranking_is_against_the_mean_of_those_still_kept() -> None:
    """Twelve tokens of one kind, six of another: the first majority thins out until both are as frequent."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    tokens = torch.stack([a] * 12 + [b] * 6)[None]
    everything = torch.arange(18)[None]
    once = drop_redundant(tokens, everything, 12)
    assert (once >= 12).sum() == 6
    twice = drop_redundant(tokens, once, 6)
    assert len(set(twice[0].tolist())) == 6
    assert set(twice[0].tolist()) <= set(once[0].tolist())


def test_places_come_in_natural_order_and_once() -> None:
    for policy in (make(policy="redundancy", teacher="m"), make(policy="random"), make(policy="direct", teacher="m")):
        found = kept(policy, noise())
        assert (found.diff(dim=1) > 0).all()
        assert int(found.min()) >= 0
        assert int(found.max()) < 196


def test_a_mask_is_independent_of_the_rest_of_the_batch() -> None:
    policy, tokens = make(policy="redundancy", teacher="m"), noise(5)
    together = kept(policy, tokens)
    for clip in range(5):
        assert torch.equal(kept(policy, tokens[clip : clip + 1])[0], together[clip])
    assert torch.equal(kept(policy, tokens.flip(0)), together.flip(0))


def test_a_random_mask_follows_from_the_place_in_the_global_batch() -> None:
    policy = make(policy="random", keep=0.25)
    whole = policy.keep({}, GRID, 8, torch.Generator().manual_seed(3), torch.arange(8))
    part = policy.keep({}, GRID, 8, torch.Generator().manual_seed(3), torch.tensor([6, 2]))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[[6, 2]])
    assert whole.shape == (8, 49)


def test_a_floor_holds_at_every_step_and_at_fewer_tokens_than_it_asks_for() -> None:
    assert kept(make(32, policy="redundancy", teacher="m", drop=0.9), noise()).shape == (3, 32)
    assert share(10, 0.3, 32) == 10
    assert share(512, 0.7, 32) == 358


def test_learned_maskings_are_refused() -> None:
    with pytest.raises(UsageFault, match="learns from reconstruction"):
        make(policy="random", of="adaptive")


def test_an_unknown_policy_is_told_with_a_hint() -> None:
    with pytest.raises(UsageFault, match="no mask policy is called 'redundance'") as caught:
        policies.get("redundance")
    assert "redundancy" in caught.value.next_step
