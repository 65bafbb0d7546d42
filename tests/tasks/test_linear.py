"""Learning on frozen features: logistic regression, nearest neighbours, label draws."""

import itertools
import math

import numpy as np
import pytest
import torch

from kdctool.data.labels import ClipLabels
from kdctool.errors import UsageFault
from kdctool.tasks.label_draws import Budget, budgets
from kdctool.tasks.linear import DECAYS, Standard, choose_decay, fit, fit_chosen, held_out
from kdctool.tasks.neighbours import votes


def blobs(clips=120, classes=4, width=6, spread=1.0, seed=0):
    """Classes around their own centres; features, one-hot targets."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(clips) % classes
    centre = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * 2
    return centre[kind] + spread * torch.randn(clips, width, generator=generator), torch.eye(classes)[kind]


def accuracy(model, x, y):
    return float((model(x).argmax(1) == y.argmax(1)).double().mean())


@pytest.mark.parametrize("decay", [1.0, 0.01, 1e-4])
def test_one_label_per_clip_agrees_with_scikit_learn(decay):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(spread=2.0)
    x = Standard.of(x)(x)
    theirs = linear_model.LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10_000)
    theirs.fit(x.numpy(), y.argmax(1).numpy())
    ours = fit(x, y, decay, several=False)
    assert ours.converged
    probability = ours(x).softmax(1).numpy()
    assert np.abs(probability - theirs.predict_proba(x.numpy())).max() < 1e-3
    assert np.abs(ours.weight.numpy().T - theirs.coef_).max() < 1e-3 * max(1.0, np.abs(theirs.coef_).max())


def test_several_labels_agree_with_scikit_learn_class_by_class():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(spread=2.0)
    x = Standard.of(x)(x)
    y = ((y + y.roll(1, 0)) > 0).float()
    ours = fit(x, y, 0.01, several=True)(x).sigmoid().numpy()
    for column in range(y.shape[1]):
        theirs = linear_model.LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=10_000)
        theirs.fit(x.numpy(), y[:, column].numpy())
        assert np.abs(ours[:, column] - theirs.predict_proba(x.numpy())[:, 1]).max() < 1e-3


def test_a_start_elsewhere_ends_at_the_same_optimum():
    x, y = blobs(spread=2.0)
    cold, warm = fit(x, y, 0.01, several=False), fit(x, y, 0.01, several=False, start=fit(x, y, 1.0, several=False))
    assert torch.allclose(cold(x).softmax(1), warm(x).softmax(1), atol=1e-5)


def test_separable_classes_are_separated_and_the_decay_is_weak():
    x, y = blobs(spread=0.05)
    x = Standard.of(x)(x)
    sources = [str(i) for i in range(len(x))]
    model, decay = fit_chosen(x, y, sources, several=False)
    assert accuracy(model, x, y) == 1.0
    assert decay < 0.01


def test_features_that_tell_nothing_choose_a_strong_decay():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 100, generator=generator, dtype=torch.float64)
    y = torch.eye(4)[torch.arange(200) % 4]
    assert choose_decay(x, y, [str(i) for i in range(200)], several=False) >= 0.3


def test_a_class_that_every_clip_has_does_not_run_away():
    x, y = blobs()
    model = fit(x, torch.cat([y, torch.ones(len(y), 1)], dim=1), 0.01, several=True)
    assert torch.isfinite(model.bias).all()
    assert float(model(x)[:, -1].min()) > 3


def test_standardising_gives_unit_spread_and_zeroes_what_does_not_vary():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.01]) + 7.0
    x = torch.cat([x, torch.full((50, 1), 0.1) + torch.rand(50, 1) * 1e-9], dim=1)
    found = Standard.of(x)(x)
    assert torch.allclose(found[:, :3].std(0, correction=0), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(found.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-6)
    assert float(found[:, 3].abs().max()) == 0.0


def test_clips_of_one_video_are_held_out_together_and_every_class_keeps_most():
    hits = np.eye(3, dtype=bool)[np.arange(60) % 3]
    sources = [f"video-{i // 6}-{i % 3}" for i in range(60)]  # Ten videos of two clips per class.
    apart = held_out(hits, sources)
    for source in set(sources):
        assert len({bool(apart[i]) for i in range(60) if sources[i] == source}) == 1
    assert [int(apart[hits[:, column]].sum()) for column in range(3)] == [4, 4, 4]


def test_what_is_held_out_depends_on_names_and_not_on_order():
    hits = np.eye(3, dtype=bool)[np.arange(60) % 3]
    sources = [str(i) for i in range(60)]
    order = np.random.default_rng(0).permutation(60)
    first = {sources[i] for i in np.flatnonzero(held_out(hits, sources))}
    shuffled = [sources[i] for i in order]
    assert first == {shuffled[i] for i in np.flatnonzero(held_out(hits[order], shuffled))}


def test_too_few_videos_choose_no_decay_and_one_over_the_clips_is_taken():
    x, y = blobs(clips=12)
    assert not held_out(y.numpy() > 0, [str(i) for i in range(12)]).any()
    assert fit_chosen(x, y, [str(i) for i in range(12)], several=False)[1] == 1 / 12
    assert list(DECAYS) == sorted(DECAYS, reverse=True)


def test_neighbours_find_classes_that_lie_apart():
    x, y = blobs(spread=0.05)
    found = votes(x[:40], x[40:], y[40:], 5)
    assert torch.equal(found.argmax(1), y[:40].argmax(1))
    assert torch.allclose(found.sum(1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [None, 0.07])
@pytest.mark.parametrize("k", [1, 5, 20, 1000])
def test_votes_are_those_of_a_slow_loop(temperature, k):
    x, y = blobs(clips=60, spread=2.0)
    queries, memory, target = x[:10], x[10:], y[10:]
    found = votes(queries, memory, target, k, temperature=temperature)
    cosine = torch.nn.functional.cosine_similarity(queries.double()[:, None], memory.double()[None], dim=-1)
    for row in range(10):
        best = cosine[row].argsort(descending=True)[:k]
        weight = torch.ones(len(best), dtype=torch.float64)
        if temperature is not None:
            weight = (cosine[row, best] / temperature).exp()
        assert torch.allclose(found[row], weight @ target[best].double() / weight.sum())


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_equal_clips_share_the_votes_so_a_constant_embedding_knows_no_class(temperature):
    y = torch.eye(4)[torch.arange(40) % 4]
    found = votes(torch.full((3, 8), 0.3), torch.full((40, 8), 0.3), y, 5, temperature=temperature)
    assert torch.allclose(found, torch.full((3, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_votes_do_not_depend_on_the_order_of_the_memory_even_with_ties(temperature):
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(6, 4, generator=generator).repeat(5, 1)
    y = torch.eye(3)[torch.randint(3, (30,), generator=generator)]
    queries = torch.randn(7, 4, generator=generator)
    order = torch.randperm(30, generator=generator)
    one, other = (votes(queries, m, t, 7, temperature=temperature) for m, t in ((memory, y), (memory[order], y[order])))
    assert torch.allclose(one, other, atol=1e-9)


def test_a_clip_of_the_memory_does_not_vote_for_itself():
    x, y = torch.eye(6), torch.eye(6)
    found = votes(x, x, y, 1, is_same=True)
    assert torch.equal(found.diagonal(), torch.zeros(6, dtype=torch.float64))
    assert votes(x[:1], x[:1].repeat(2, 1), y[:2], 5, is_same=True).tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]


def test_label_budgets_are_read_and_anything_else_is_refused():
    assert [budget.name for budget in budgets("k1, k10,0.01,all")] == ["k1", "k10", "share0.01", "all"]
    assert [budget.name for budget in budgets("1.0,all")] == ["all"]
    for wrong in ("k0", "ten", "0", "1.5", "k10,,all", ""):
        with pytest.raises(UsageFault, match="is no number of labels"):
            budgets(wrong)


def drawn(budget, hits, uids, draw=0):
    return {uids[i] for i in budgets(budget)[0].draw(hits, uids, draw)}


def test_draws_take_k_of_each_class_and_a_class_with_fewer_gives_all():
    hits = np.eye(3, dtype=bool)[[0] * 20 + [1] * 20 + [2] * 2]
    uids = [f"clip-{i}" for i in range(42)]
    places = Budget("k5", per_class=5).draw(hits, uids, 0)
    assert hits[places].sum(0).tolist() == [5, 5, 2]
    assert places.tolist() == sorted(set(places.tolist()))
    share = Budget("share0.1", share=0.1).draw(hits, uids, 0)
    assert hits[share].sum(0).tolist() == [2, 2, 1]


def test_draws_differ_repeat_and_depend_on_names_and_not_on_order():
    hits = np.eye(2, dtype=bool)[np.arange(40) % 2]
    uids = [f"clip-{i}" for i in range(40)]
    order = np.random.default_rng(1).permutation(40)
    first = drawn("k5", hits, uids)
    assert first == drawn("k5", hits, uids)
    assert first != drawn("k5", hits, uids, draw=1)
    assert first == drawn("k5", hits[order], [uids[i] for i in order])


def test_larger_budgets_of_a_draw_hold_the_smaller_ones():
    hits = np.eye(2, dtype=bool)[np.arange(40) % 2]
    uids = [f"clip-{i}" for i in range(40)]
    for chain in (("k1", "k5", "all"), ("0.01", "0.1", "0.5", "1.0")):
        for less, more in itertools.pairwise(chain):
            assert drawn(less, hits, uids) < drawn(more, hits, uids)


@pytest.mark.parametrize(("budget", "few"), [("k3", {"per_class": 3}), ("0.07", {"share": 0.07})])
def test_a_draw_is_what_finetuning_with_that_seed_learns_from(budget, few):
    """Otherwise a curve of probes and one of finetunings would be about different labels."""
    hits = np.random.default_rng(0).random((60, 4)) < 0.4
    uids = [f"clip-{i}" for i in range(60)]
    clip, label = np.nonzero(hits)
    for seed in (0, 5):
        keep = ClipLabels(clip, label, 60, 4).few(uids, seed, **few)
        assert budgets(budget)[0].draw(hits, uids, seed).tolist() == np.flatnonzero(keep).tolist()


def test_no_share_is_lost_to_rounding():
    assert math.isclose(budgets("0.25")[0].share, 0.25)
    assert budgets("0.001")[0].draw(np.ones((10, 1), bool), [str(i) for i in range(10)], 0).shape == (1,)
