"""Statistics of a study, against scipy and against values worked out by hand."""

import math

import numpy as np
import pytest

from kdctool.errors import UsageFault
from kdctool.tasks import contrasts


@pytest.mark.parametrize("df", [1, 2, 4, 7, 30])
def test_students_t_agrees_with_scipy(df: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (-40.0, -2.5, -0.3, 0.0, 0.7, 2.1, 12.0):
        assert contrasts.t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), abs=1e-12)
    for p in (0.001, 0.05, 0.5, 0.95, 0.975, 0.9995):
        assert contrasts.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


def test_the_quantile_of_five_seeds_is_the_tables() -> None:
    assert contrasts.t_quantile(0.975, 4) == pytest.approx(2.776445, abs=1e-6)
    assert contrasts.t_quantile(0.95, 4) == pytest.approx(2.131847, abs=1e-6)


def test_a_paired_contrast_is_the_paired_t_test() -> None:
    a, b = {0: 0.50, 1: 0.53, 2: 0.49, 3: 0.55, 4: 0.52}, {0: 0.48, 1: 0.50, 2: 0.49, 3: 0.51, 4: 0.51}
    found = contrasts.paired(a, b)
    # Differences 0.02 0.03 0.00 0.04 0.01: mean 0.02, sd 0.0158114, standard error 0.0070711, t = 2.828427.
    assert found.mean == pytest.approx(0.02)
    assert (found.low, found.high) == pytest.approx(
        (0.02 - 2.776445 * 0.0070711, 0.02 + 2.776445 * 0.0070711), abs=1e-6
    )
    assert found.p == pytest.approx(0.047421, abs=1e-5)
    assert found.low < found.low90 < found.mean < found.high90 < found.high
    stats = pytest.importorskip("scipy.stats")
    assert found.p == pytest.approx(stats.ttest_rel(list(a.values()), list(b.values())).pvalue, abs=1e-10)


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    found = contrasts.paired({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.5, 0: 0.0, 7: 3.0})
    assert (found.seeds, found.n) == ((0, 1), 2)
    assert found.differences == (1.0, 0.5)


def test_arms_without_a_common_seed_cannot_be_compared() -> None:
    with pytest.raises(UsageFault, match="no seed in common"):
        contrasts.paired({0: 1.0}, {1: 1.0})


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    found = contrasts.paired({3: 0.6}, {3: 0.5})
    assert found.mean == pytest.approx(0.1)
    assert all(math.isnan(x) for x in (found.low, found.high, found.low90, found.high90, found.p))
    assert found.verdict(0.01) == "one seed"


def test_no_effect_is_said_only_when_the_90_percent_interval_lies_inside_the_margin() -> None:
    near = contrasts.paired(
        {s: 0.5 + d for s, d in enumerate((0.001, -0.001, 0.002, 0.0, -0.002))}, dict.fromkeys(range(5), 0.5)
    )
    assert near.verdict(0.01) == "no effect"
    assert near.verdict(0.001) == "undecided"
    wide = contrasts.paired(
        {s: 0.5 + d for s, d in enumerate((0.03, -0.03, 0.02, -0.01, 0.0))}, dict.fromkeys(range(5), 0.5)
    )
    assert wide.verdict(0.01) == "undecided"
    up = contrasts.paired({s: 0.6 + s / 1000 for s in range(5)}, dict.fromkeys(range(5), 0.5))
    assert up.verdict(0.01) == "higher"
    assert up.verdict(0.01, p=0.2) == "undecided"


def test_equal_differences_need_no_spread() -> None:
    assert contrasts.paired({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}).p == 1.0
    assert contrasts.paired({0: 0.75, 1: 0.75}, {0: 0.5, 1: 0.5}).p == 0.0


def test_holm_adjusts_as_in_the_textbook() -> None:
    assert contrasts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert contrasts.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert contrasts.holm([]) == []


def test_holm_leaves_contrasts_of_one_seed_out() -> None:
    found = contrasts.holm([math.nan, 0.02, 0.03])
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.04, 0.04])


def test_holm_agrees_with_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    values = [0.001, 0.2, 0.04, 0.04, 0.7]
    assert contrasts.holm(values) == pytest.approx(list(multitest.multipletests(values, method="holm")[1]))


def test_the_interval_over_clips_resamples_whole_clusters() -> None:
    rng = np.random.default_rng(0)
    of_cluster = np.repeat(rng.normal(0.1, 0.3, 40), 10)
    clusters = [f"recording {i // 10}" for i in range(400)]
    low, high = contrasts.over_clips(of_cluster, clusters)
    alone = contrasts.over_clips(of_cluster, [str(i) for i in range(400)])
    assert low < of_cluster.mean() < high
    assert high - low > 2 * (alone[1] - alone[0])


def test_wilsons_interval_is_the_textbooks() -> None:
    assert contrasts.wilson(50, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert contrasts.wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert contrasts.wilson(10, 10)[1] == 1.0


def test_a_mean_has_the_interval_of_its_seeds() -> None:
    mean, low, high = contrasts.mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert math.isnan(contrasts.mean_interval([1.0])[1])
