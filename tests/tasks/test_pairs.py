"""Partners: another video's clip for each, whatever the order, and few of them held at a time."""

import random

import pytest

from kdctool.tasks.pairs import WINDOW, Pairing, partners


def names(count):
    return [f"clip-{i}" for i in range(count)], [f"video-{i // 3}" for i in range(count)]


@pytest.mark.parametrize("count", [4, 7, 50])
def test_a_partner_is_of_another_video_and_follows_from_the_uid(count):
    uids, sources = names(count)
    found = partners(uids, sources, 0)
    assert all(sources[i] != sources[other] for i, other in enumerate(found))
    assert len(set(found)) > count // 3
    order = random.Random(1).sample(range(count), count)
    turned = partners([uids[i] for i in order], [sources[i] for i in order], 0)
    assert {uids[i]: uids[other] for i, other in enumerate(found)} == {
        uids[order[i]]: uids[order[other]] for i, other in enumerate(turned)
    }
    assert count < 10 or partners(uids, sources, 1) != found


def test_clips_of_one_video_have_no_partner():
    assert partners(["a", "b"], ["x", "x"], 0) is None
    assert partners(["a"], ["x"], 0) is None


@pytest.mark.parametrize("seed", range(3))
def test_every_clip_meets_its_partner_once_in_any_order_and_nothing_is_left(seed):
    uids, sources = names(30)
    partner = dict(enumerate(partners(uids, sources, 0)))
    pairing = Pairing(partner)
    met = [pair for clip in random.Random(seed).sample(range(30), 30) for pair in pairing.add(clip, f"item {clip}")]
    assert sorted(met) == [(i, f"item {i}", f"item {other}") for i, other in sorted(partner.items())]
    assert len(pairing) == 0


def test_a_long_split_is_held_in_part():
    uids = [str(i) for i in range(5 * WINDOW)]
    pairing, most = Pairing(dict(enumerate(partners(uids, uids, 0)))), 0
    for clip in range(len(uids)):
        list(pairing.add(clip, clip))
        most = max(most, len(pairing))
    assert most <= 2 * WINDOW


def test_a_window_of_one_video_borrows_from_the_rest():
    uids = [str(i) for i in range(2 * WINDOW)]
    sources = ["one"] * WINDOW + uids[WINDOW:]
    found = partners(uids, sources, 0)
    assert all(sources[other] != "one" for other in found[:WINDOW])
