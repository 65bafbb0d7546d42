"""Numbers of attention maps and representations: published fixtures, properties, agreement with slow definitions."""

import math

import pytest
import torch
from torch import nn

from kdctool.models.layers import Attention
from kdctool.tasks import attention as maps
from kdctool.tasks.representation import cka, cka_interval, cka_matrix, spectrum

GRID, PATCH = (14, 14), 16.0
TOKENS = GRID[0] * GRID[1]
DISTANCE = maps.token_distance(GRID, PATCH, PATCH)
IDENTITY = torch.eye(TOKENS, dtype=torch.float64)
UNIFORM = torch.full((TOKENS, TOKENS), 1 / TOKENS, dtype=torch.float64)


def gaussian(sigma):
    return (-((DISTANCE / PATCH) ** 2) / (2 * sigma**2)).softmax(-1)


def to_first():
    found = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    found[:, 0] = 1
    return found


def halves():
    found = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    half = TOKENS // 2
    found[:half, :half] = found[half:, half:] = 1 / half
    return found


FIXTURES = {
    "identity": (IDENTITY, 0.0, 0.99999),
    "uniform": (UNIFORM, 116.4922, 0.0),
    "half of each": ((IDENTITY + UNIFORM) / 2, 58.2461, 0.371710),
    "every query to token 0": (to_first(), 161.0302, 0.0),
    "gaussian 1": (gaussian(1), 18.4314, 0.499325),
    "gaussian 2": (gaussian(2), 36.6797, 0.275232),
    "gaussian 4": (gaussian(4), 67.1561, 0.090522),
}


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_head_distance_and_mutual_information_have_the_numbers_of_known_maps(name, kind):
    attention, distance, information = FIXTURES[name]
    attention = attention.to(kind)
    assert float(maps.head_distance(attention, DISTANCE.to(kind))) == pytest.approx(distance, abs=1e-3)
    assert float(maps.normalised_mutual_information(attention)) == pytest.approx(information, abs=1e-5)


def test_two_separate_halves_share_one_bit_of_all_that_there_are():
    found = float(maps.normalised_mutual_information(halves()))
    assert found == pytest.approx(math.log(2) / math.log(196), abs=5e-6)
    exact = float(maps.normalised_mutual_information(halves(), epsilon=1e-14))
    assert exact == pytest.approx(0.131325, abs=1e-6)


def test_the_farthest_tokens_lie_a_diagonal_apart():
    assert float(DISTANCE.max()) == pytest.approx(294.1564, abs=1e-4)


def test_a_rectangular_grid_measures_time_and_frequency_apart():
    rows, columns = 3, 5
    time = maps.token_distance((rows, columns), 0.0, 160.0)
    frequency = maps.token_distance((rows, columns), 16.0, 0.0)
    both = maps.token_distance((rows, columns), 16.0, 16.0)
    a, b = 1 * columns + 4, 2 * columns + 1  # (row 1, column 4) and (row 2, column 1)
    assert time[a, b] == 3 * 160
    assert frequency[a, b] == 16
    assert both[a, b] == pytest.approx(16 * math.hypot(1, 3))


def test_a_collapsed_map_tells_nothing_whatever_its_row():
    row = torch.rand(TOKENS).softmax(-1)
    assert float(maps.normalised_mutual_information(row.expand(4, TOKENS, TOKENS)).max()) < 1e-5


def test_mutual_information_does_not_depend_on_the_order_of_tokens():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, 12, 12, generator=generator).mul(4).softmax(-1)
    order = torch.randperm(12, generator=generator)
    shuffled = attention[..., order, :][..., torch.randperm(12, generator=generator)]
    assert torch.allclose(
        maps.normalised_mutual_information(attention), maps.normalised_mutual_information(shuffled), atol=1e-6
    )


def test_mutual_information_of_a_mean_map_is_not_the_mean_so_it_is_taken_per_clip():
    each = torch.stack([torch.eye(4), torch.eye(4)[[1, 0, 3, 2]]])
    assert float(maps.normalised_mutual_information(each).mean()) > 0.99
    assert float(maps.normalised_mutual_information(each.mean(0))) < 0.6


def test_a_nan_map_stays_nan_instead_of_looking_collapsed():
    assert math.isnan(float(maps.normalised_mutual_information(torch.full((4, 4), math.nan))))


def test_entropy_is_one_for_uniform_and_zero_for_a_single_key():
    assert float(maps.entropy_share(UNIFORM)) == pytest.approx(1.0)
    assert float(maps.entropy_share(IDENTITY)) == pytest.approx(0.0)
    assert float(maps.entropy_share(halves())) == pytest.approx(math.log(98) / math.log(196))


def test_prefix_tokens_are_dropped_and_rows_sum_to_one_again():
    attention = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(1)).softmax(-1)
    kept = maps.without_prefix(attention, 2)
    assert kept.shape == (2, 3, 5, 5)
    assert torch.allclose(kept.sum(-1), torch.ones(2, 3, 5))
    raw = maps.without_prefix(attention, 2, renormalise=False)
    assert torch.equal(raw, attention[..., 2:, 2:])
    assert torch.equal(maps.without_prefix(attention, 0), attention)


def test_masses_of_the_four_blocks_add_up_per_query_side():
    attention = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(2)).softmax(-1)
    blocks = maps.modality_blocks(attention, 4)
    assert blocks["av"].shape == (2, 3, 4, 6)
    for query in "av":
        total = maps.block_mass(blocks[f"{query}a"]) + maps.block_mass(blocks[f"{query}v"])
        assert torch.allclose(total, torch.ones(2, 3))
    uniform = maps.modality_blocks(torch.full((10, 10), 0.1), 4)
    assert float(maps.block_mass(uniform["av"])) == pytest.approx(0.6)
    assert float(maps.block_mass(uniform["va"])) == pytest.approx(0.4)


def test_information_within_a_block_ignores_how_much_attention_goes_there():
    attention = torch.zeros(8, 8)
    attention[:4, :4] = torch.eye(4) * 0.9
    attention[:4, 4:] = torch.eye(4) * 0.1
    blocks = maps.modality_blocks(attention, 4)
    assert float(maps.block_information(blocks["av"])) == pytest.approx(float(maps.block_information(blocks["aa"])))
    assert float(maps.block_information(blocks["vv"])) == 0.0, "queries that give the block nothing tell nothing"


def test_the_map_that_is_measured_is_the_one_that_the_layer_applies():
    torch.manual_seed(0)
    layer = Attention(12, 3)
    x = torch.randn(2, 5, 12)
    qkv = layer.qkv(x)
    value = qkv.reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)[2]
    by_hand = layer.proj((maps.weights_of(qkv, layer) @ value).transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(by_hand, layer(x), atol=1e-6)


def test_the_map_of_timm_attention_passes_its_query_and_key_norms():
    from timm.models.vision_transformer import Attention as Theirs

    torch.manual_seed(0)
    layer = Theirs(12, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)
    nn.init.normal_(layer.q_norm.weight)
    x = torch.randn(2, 5, 12)
    qkv = layer.qkv(x)
    value = qkv.reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)[2]
    by_hand = layer.proj((maps.weights_of(qkv, layer) @ value).transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(by_hand, layer(x), atol=1e-6)


def features(clips, width, seed):
    return torch.randn(clips, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_one_under_rotation_scale_and_shift():
    x = features(40, 8, 0)
    rotation = torch.linalg.qr(features(8, 8, 1))[0]
    assert cka(x, x) == pytest.approx(1.0, abs=1e-9)
    assert cka(x, 3.7 * x @ rotation + 5.0) == pytest.approx(1.0, abs=1e-9)
    assert cka(x, x @ torch.diag(torch.tensor([30.0] + [1.0] * 7, dtype=torch.float64))) < 0.7


def test_cka_of_independent_features_is_about_zero_even_when_they_are_wider_than_the_clips_are_many():
    found = [cka(features(60, 200, seed), features(60, 200, 100 + seed)) for seed in range(20)]
    assert abs(sum(found) / len(found)) < 0.02
    assert max(map(abs, found)) < 0.1


def test_cka_does_not_depend_on_the_order_of_clips_and_is_symmetric():
    x, y = features(30, 6, 0), features(30, 9, 1) + features(30, 6, 0) @ features(6, 9, 2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    assert cka(x[order], y[order]) == pytest.approx(cka(x, y), abs=1e-9)
    assert cka(y, x) == pytest.approx(cka(x, y), abs=1e-9)
    assert 0.2 < cka(x, y) < 1.0


def test_cka_is_the_published_unbiased_estimate():
    x, y = features(12, 5, 0), features(12, 3, 1) + features(12, 5, 0)[:, :3]

    def hsic(k, m):
        n = len(k)
        k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
        cross = (k @ m).sum()
        return ((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    assert cka(x, y) == pytest.approx(float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()), abs=1e-9)


def test_cka_with_nothing_to_compare_is_unknown():
    assert math.isnan(cka(features(3, 5, 0), features(3, 5, 1)))
    same = torch.full((20, 6), 0.1)
    assert math.isnan(cka(same, features(20, 6, 0)))
    matrix = cka_matrix([features(20, 6, 0), same], [features(20, 6, 0), same])
    assert matrix[0, 0] == pytest.approx(1.0)
    assert math.isnan(matrix[0, 1])


def test_the_interval_of_cka_is_wider_when_clips_share_videos_and_unknown_with_one_video():
    x = features(40, 6, 0)
    y = x + features(40, 6, 1)
    single = cka_interval(x, y, [str(i) for i in range(40)])
    assert single[0] < cka(x, y) < single[1]
    twice_x, twice_y = x.repeat(2, 1), y.repeat(2, 1)
    apart = cka_interval(twice_x, twice_y, [str(i) for i in range(80)])
    together = cka_interval(twice_x, twice_y, [str(i % 40) for i in range(80)])
    assert together[1] - together[0] > 1.2 * (apart[1] - apart[0])
    assert all(math.isnan(bound) for bound in cka_interval(x, y, ["one"] * 40))


def test_the_spectrum_of_equal_tokens_has_one_direction_and_of_orthogonal_ones_all():
    same = torch.randn(1, 1, 16).expand(2, 9, 16)
    top, rank = spectrum(same)
    assert torch.allclose(top, torch.ones(2, 5, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(rank, torch.ones(2, dtype=torch.float64), atol=1e-6)
    top, rank = spectrum(torch.eye(8)[None] * torch.arange(1, 9)[:, None])
    assert torch.allclose(rank, torch.tensor([8.0], dtype=torch.float64))
    assert torch.allclose(top[0], torch.arange(1, 6, dtype=torch.float64) / 8)


@pytest.mark.parametrize("shape", [(2, 9, 16), (2, 16, 9), (1, 3, 2)])
def test_the_spectrum_is_that_of_the_normalised_tokens(shape):
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    top, rank = spectrum(tokens)
    single = torch.linalg.svdvals(nn.functional.normalize(tokens.double(), dim=-1))
    share = single / single.sum(-1, keepdim=True)
    known = min(5, share.shape[1])
    assert torch.allclose(top[:, :known], share.cumsum(-1)[:, :known], atol=1e-7)
    assert torch.allclose(rank, (-(share * share.log()).sum(-1)).exp(), atol=1e-6)
