"""Scores against scikit-learn, the golden values, and the properties that make them trustworthy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, top_k_accuracy_score

from kdctool.errors import VerificationFault
from kdctool.tasks.classes import accuracy, details, ranking
from kdctool.tasks.classification import auc, average_precision, d_prime
from kdctool.tasks.metrics import ClassCurves, mean_over_classes, places, top_k
from kdctool.tasks.retrieval import cosine_places, ranks, recall_at

HERE = Path(__file__).resolve()
GOLDEN = HERE.parents[1] / "golden"
if not (GOLDEN / "metrics_retrieval.json").exists():
    GOLDEN = HERE.parents[3] / "shared" / "golden"
golden = pytest.mark.skipif(
    not (GOLDEN / "metrics_retrieval.json").exists(),
    reason="the golden values are neither in tests/golden nor in ../shared",
)
seeds = st.integers(0, 2**32 - 1)


def golden_case(name):
    scalars = json.loads((GOLDEN / f"{name}.json").read_text())["scalars"]
    return load_file(GOLDEN / f"{name}.safetensors"), {key: entry["value"] for key, entry in scalars.items()}


def coarse_problem(seed, clips=60, classes=5, levels=6):
    """Scores with many ties, and targets of which every class has both kinds."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, classes)) < 0.3).astype(float)
    targets[0], targets[1] = 1, 0
    return rng.integers(levels, size=(clips, classes)) / 7.0, targets


@golden
@pytest.mark.parametrize("way", ["a2v", "v2a"])
def test_ranks_and_recalls_are_the_golden_ones(way):
    tensors, scalars = golden_case("metrics_retrieval")
    similarity = tensors[f"sim_{way}"]
    rank = ranks(similarity)
    assert np.array_equal(rank, tensors[f"rank_{way}"])
    for k in (1, 5, 10):
        assert recall_at(similarity, k) == pytest.approx(scalars[f"{way}.R{k}"], abs=1e-9)
    assert np.median(rank) == scalars[f"{way}.MR"]
    assert rank.mean() == pytest.approx(scalars[f"{way}.mean_rank"], abs=1e-9)


@golden
def test_embeddings_give_the_golden_ranks():
    tensors, _ = golden_case("metrics_retrieval")
    a, v = tensors["emb_a"].astype(float), tensors["emb_v"].astype(float)
    assert np.array_equal(cosine_places(a, v).rank(), tensors["rank_a2v"])
    assert np.array_equal(cosine_places(v, a).rank(), tensors["rank_v2a"])


@golden
def test_best_and_worst_ties_are_the_golden_bounds_and_mid_lies_between():
    tensors, scalars = golden_case("metrics_retrieval")
    tied = tensors["ties.sim"]
    best, worst = np.mean(ranks(tied, "best") <= 1), np.mean(ranks(tied, "worst") <= 1)
    assert best == pytest.approx(scalars["ties.R1_optimistic"], abs=1e-9)
    assert worst == pytest.approx(scalars["ties.R1_pessimistic"], abs=1e-9)
    assert worst < recall_at(tied, 1) < best


@golden
@pytest.mark.parametrize("prefix", ["", "single.", "single_tied."])
def test_class_scores_are_the_golden_ones(prefix):
    tensors, scalars = golden_case("metrics_classification")
    logits = tensors[f"{prefix}logits"]
    targets = tensors["targets" if not prefix else "single.targets"]
    precision, area = average_precision(logits, targets), auc(logits, targets)
    assert np.abs(precision - tensors[f"{prefix}ap"]).max() < 1e-12
    assert np.abs(area - tensors[f"{prefix}auc"]).max() < 1e-12
    assert precision.mean() == pytest.approx(scalars[f"{prefix}mAP"], abs=1e-9)
    assert top_k(logits, targets.argmax(1), 1, ties="first").mean() == pytest.approx(scalars[f"{prefix}acc"], abs=1e-9)
    if not prefix:
        assert area.mean() == pytest.approx(scalars["mAUC"], abs=1e-9)
        assert d_prime(area.mean()) == pytest.approx(scalars["d_prime"], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 12))
def test_average_precision_and_auc_equal_scikit_learn_with_ties(seed, levels):
    scores, targets = coarse_problem(seed, levels=levels)
    for column in range(scores.shape[1]):
        ours, theirs = (
            average_precision(scores[:, column], targets[:, column]),
            average_precision_score(targets[:, column], scores[:, column]),
        )
        assert abs(ours - theirs) < 1e-12
        assert (
            abs(auc(scores[:, column], targets[:, column]) - roc_auc_score(targets[:, column], scores[:, column]))
            < 1e-12
        )


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_accuracies_recalls_and_confusion_equal_scikit_learn_without_ties(seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=(50, 7)), rng.integers(7, size=50)
    targets = np.eye(7)[truth] > 0
    for k in (1, 5):
        theirs = top_k_accuracy_score(truth, scores, k=k, labels=range(7))
        assert top_k(scores, truth, k).mean() == pytest.approx(theirs, abs=1e-12)
    found, areas = {}, (np.zeros(7), np.zeros(7))
    accuracy(scores, targets, [str(i) for i in range(50)], found, {})
    told = details(scores, targets, areas, True, tuple("abcdefg"))
    theirs = confusion_matrix(truth, scores.argmax(1), labels=range(7))
    assert np.array_equal(told["confusion"]["counts"], theirs)
    for place, row in enumerate(told["per_class"]):
        positives = theirs[place].sum()
        assert row["recall"] == (theirs[place, place] / positives if positives else None)
    assert found["top1"].value == pytest.approx(np.trace(theirs) / 50)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_recall_of_a_retrieval_is_scikit_learns_top_k_accuracy(seed):
    similarity = np.random.default_rng(seed).normal(size=(30, 30))
    for k in (1, 5, 10):
        theirs = top_k_accuracy_score(np.arange(30), similarity, k=k, labels=range(30))
        assert recall_at(similarity, k) == pytest.approx(theirs, abs=1e-12)


def test_macro_scores_of_all_classes_equal_scikit_learn_and_leave_out_absent_ones():
    scores, targets = coarse_problem(7)
    names = [str(i) for i in range(60)]
    found, notes, _ = ranking(scores, targets > 0, names, tuple("abcde"))
    assert found["map"].value == pytest.approx(average_precision_score(targets, scores, average="macro"), abs=1e-12)
    assert found["auc"].value == pytest.approx(roc_auc_score(targets, scores, average="macro"), abs=1e-12)
    assert notes == ()
    targets[:, 1] = 0
    found, notes, areas = ranking(scores, targets > 0, names, tuple("abcde"))
    others = [0, 2, 3, 4]
    theirs = average_precision_score(targets[:, others], scores[:, others], average="macro")
    assert found["map"].value == pytest.approx(theirs, abs=1e-12)
    assert np.isnan(areas[0][1])
    assert "4 of 5 classes; 1 without a positive clip left out: b" in notes[0]


def test_excluded_candidates_do_not_count_and_the_target_always_does():
    similarity = np.array([[0.5, 0.9, 0.5, 0.1]])
    excluded = np.array([[False, True, True, False]])
    found = places(similarity, [0], excluded=excluded)
    assert (found.greater.tolist(), found.equal.tolist()) == ([0], [0])
    assert places(similarity, [0]).rank().tolist() == [2.5]


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_weights_score_like_repeated_clips(seed):
    scores, targets = coarse_problem(seed, clips=25)
    weights = np.random.default_rng(seed + 1).integers(0, 4, size=(3, 25))
    precision, area = ClassCurves(scores, targets)(weights.astype(float))
    for row, weight in enumerate(weights):
        again = ClassCurves(np.repeat(scores, weight, axis=0), np.repeat(targets, weight, axis=0))
        expected_precision, expected_area = again.once()
        np.testing.assert_allclose(precision[row], expected_precision, atol=1e-12)
        np.testing.assert_allclose(area[row], expected_area, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_no_score_depends_on_the_order_of_clips_or_candidates(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(4, size=(9, 9)) / 3.0
    order = rng.permutation(9)
    assert np.array_equal(ranks(similarity)[order], ranks(similarity[np.ix_(order, order)]))
    scores, targets = coarse_problem(seed)
    order = rng.permutation(len(scores))
    assert np.array_equal(average_precision(scores, targets), average_precision(scores[order], targets[order]))
    assert np.array_equal(auc(scores, targets), auc(scores[order], targets[order]))


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_mid_rank_is_the_mean_over_random_tie_breaks_and_recall_their_share(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(3, size=(4, 6)).astype(float)
    draws = [similarity + 1e-6 * rng.random(similarity.shape) for _ in range(400)]
    assert np.mean([ranks(d) for d in draws], axis=0) == pytest.approx(ranks(similarity), abs=0.6)
    assert np.mean([recall_at(d, 2) for d in draws]) == pytest.approx(recall_at(similarity, 2), abs=0.08)


@pytest.mark.parametrize("candidates", [1, 2, 7, 40])
def test_a_constant_model_scores_exactly_chance(candidates):
    same = np.full((candidates, candidates), 0.3)
    assert np.array_equal(ranks(same), np.full(candidates, (candidates + 1) / 2))
    for k in (1, 5, 10):
        assert recall_at(same, k) == pytest.approx(min(k, candidates) / candidates, abs=1e-15)
    collapsed = np.tile(np.random.default_rng(0).normal(size=48), (candidates, 1))
    collapsed /= np.linalg.norm(collapsed, axis=1, keepdims=True)
    assert np.array_equal(cosine_places(collapsed, collapsed).rank(), np.full(candidates, (candidates + 1) / 2))


def test_a_constant_classifier_scores_exactly_chance():
    _, targets = coarse_problem(0)
    scores = np.full(targets.shape, 2.5)
    assert average_precision(scores, targets) == pytest.approx(targets.mean(0), abs=1e-15)
    assert np.array_equal(auc(scores, targets), np.full(targets.shape[1], 0.5))
    assert d_prime(0.5) == 0.0
    assert np.array_equal(top_k(scores, np.arange(60) % 5, 1), np.full(60, 0.2))


def test_perfect_scores_are_one_and_their_ranks_too():
    assert np.array_equal(ranks(np.eye(6)), np.ones(6))
    assert recall_at(np.eye(6), 1) == 1.0
    _, targets = coarse_problem(3)
    assert np.array_equal(average_precision(targets, targets), np.ones(5))
    assert np.array_equal(auc(targets, targets), np.ones(5))
    assert d_prime(1.0) == math.inf
    assert d_prime(0.0) == -math.inf


def test_one_clip_has_rank_one_and_no_auc():
    assert ranks(np.array([[0.1]])).tolist() == [1.0]
    assert recall_at(np.array([[0.1]]), 5) == 1.0
    assert average_precision(np.array([0.4]), np.array([1.0])) == 1.0
    assert math.isnan(auc(np.array([0.4]), np.array([1.0])))
    assert math.isnan(d_prime(math.nan))


def test_a_class_without_positives_has_no_value_and_leaves_the_mean_alone():
    scores, targets = coarse_problem(5)
    without = targets.copy()
    without[:, 2] = 0
    precision = average_precision(scores, without)
    assert np.isnan(precision[2])
    assert np.isnan(auc(scores, without)[2])
    others = [0, 1, 3, 4]
    assert mean_over_classes(precision[None])[0] == pytest.approx(average_precision(scores, targets)[others].mean())
    assert math.isnan(mean_over_classes(np.full((1, 3), np.nan))[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_stops_with_exit_code_5(bad):
    similarity = np.eye(4)
    similarity[2, 1] = bad
    scores, targets = coarse_problem(1)
    scores[3, 3] = bad
    for compute in (
        lambda: ranks(similarity),
        lambda: recall_at(similarity, 1),
        lambda: average_precision(scores, targets),
        lambda: auc(scores, targets),
        lambda: top_k(scores, targets.argmax(1), 1),
    ):
        with pytest.raises(VerificationFault, match="NaN or infinite") as caught:
            compute()
        assert caught.value.exit_code == 5


def test_shapes_that_do_not_fit_and_soft_targets_are_refused():
    scores, targets = coarse_problem(1)
    with pytest.raises(ValueError, match="not both"):
        ClassCurves(scores, targets[:-1])
    with pytest.raises(ValueError, match="0 or 1"):
        ClassCurves(scores, targets * 0.5)
    with pytest.raises(ValueError, match="0-1"):
        d_prime(1.2)
