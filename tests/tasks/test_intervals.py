"""Bootstrap intervals: clustered, repeatable, and equal to resampling by hand."""

import numpy as np
import pytest

from kdctool.tasks.intervals import bootstrap, known_mean, moved, resampled, weighted_mean, weighted_median


def test_weighted_mean_and_median_equal_those_of_repeated_values():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, size=20).astype(float)
    weights = rng.integers(0, 4, size=(30, 20)).astype(float)
    weights[:, 0] += 1
    for row, weight in enumerate(weights):
        repeated = np.repeat(values, weight.astype(int))
        assert weighted_mean(values, weights)[row] == pytest.approx(repeated.mean())
        assert weighted_median(values, weights)[row] == np.median(repeated)


def test_the_interval_of_a_mean_is_close_to_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    low, high = bootstrap(values, [str(i) for i in range(400)], weighted_mean)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_clips_of_one_video_are_drawn_together_so_the_interval_is_wider():
    videos = np.random.default_rng(2).normal(size=40)
    values = np.repeat(videos, 10)
    alone = bootstrap(values, [str(i) for i in range(400)], weighted_mean)
    together = bootstrap(values, [str(i // 10) for i in range(400)], weighted_mean)
    widths = [float(high - low) for low, high in (alone, together)]
    assert widths[1] / widths[0] == pytest.approx(10**0.5, rel=0.15)


def test_every_resample_draws_whole_videos_and_as_many_as_there_are():
    seen = []

    def keep(values, weights):
        seen.append(weights)
        return weighted_mean(values, weights)

    clusters = ["a"] * 3 + ["b"] + ["c"] * 2
    bootstrap(np.arange(6.0), clusters, keep, n=500)
    weights = np.concatenate(seen)
    assert weights.shape == (500, 6)
    assert (weights[:, :3] == weights[:, :1]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 3] + weights[:, 4] == 3).all()


def test_an_interval_repeats_from_its_seed_and_follows_it():
    values = np.random.default_rng(3).random(50)
    names = [str(i) for i in range(50)]
    first, again, other = (bootstrap(values, names, weighted_mean, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_several_statistics_at_once_have_the_bounds_of_each_alone():
    values = np.random.default_rng(4).random((30, 2))
    names = [str(i) for i in range(30)]
    low, high = bootstrap(values, names, weighted_mean)
    for column in range(2):
        alone = bootstrap(values[:, column], names, weighted_mean)
        assert (low[column], high[column]) == pytest.approx([float(bound) for bound in alone])


def test_one_video_says_nothing_about_spread():
    low, high = bootstrap(np.arange(5.0), ["a"] * 5, weighted_mean)
    assert np.isnan(low)
    assert np.isnan(high)


def test_resamples_without_a_value_are_left_out():
    def sometimes(values, weights):
        return np.where(weights[:, 0] > 0, weighted_mean(values, weights), np.nan)

    low, high = bootstrap(np.arange(4.0), list("abcd"), sometimes, n=200)
    assert 0 <= low < high <= 3


def test_an_interval_of_a_biased_statistic_is_moved_onto_its_value():
    def raised(values, weights):
        return weighted_mean(values, weights) + (weights.max(1) > 1) * 5.0

    values = np.random.default_rng(5).random(30)
    names = [str(i) for i in range(30)]
    low, high = bootstrap(values, names, raised)
    assert low > values.mean()
    low, high = bootstrap(values, names, raised, centre=np.asarray(values.mean()))
    assert low < values.mean() < high


def test_the_mean_of_known_values_leaves_nan_out_of_every_resample():
    values = np.array([1.0, np.nan, 3.0, 8.0])
    weights = np.array([[1.0, 1, 1, 1], [2, 5, 1, 0], [0, 3, 0, 0]])
    assert known_mean(values, weights)[:2] == pytest.approx([4.0, 5 / 3])
    assert np.isnan(known_mean(values, weights)[2])


def test_two_statistics_see_the_same_resamples():
    names = [str(i // 2) for i in range(20)]
    one, two = np.random.default_rng(6).random((2, 20))
    apart = resampled(two, names, weighted_mean, n=300) - resampled(one, names, weighted_mean, n=300)
    assert apart == pytest.approx(resampled(two - one, names, weighted_mean, n=300))
    assert np.isnan(resampled(one, ["v"] * 20, weighted_mean, n=5)).all()


def test_moved_results_have_the_wanted_mean_and_keep_their_gaps():
    results = np.array([[1.0, np.nan], [3.0, 2.0], [5.0, 4.0]])
    there = moved(results, np.array([0.0, 10.0]))
    assert there[:, 0].tolist() == [-2.0, 0.0, 2.0]
    assert np.isnan(there[0, 1])
    assert there[1:, 1].tolist() == [9.0, 11.0]
