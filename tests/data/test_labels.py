"""What is known of a whole split's labels: sampling weights as CAV-MAE writes them, and few-shot choices that nest."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks

from kdctool.data.labels import ClipLabels, read_labels
from kdctool.shards import index

COUNTS = (60, 20, 5, 0)


def single() -> ClipLabels:
    label = np.repeat(np.arange(4), COUNTS)
    return ClipLabels(np.arange(len(label)), label, len(label), 4)


def several() -> ClipLabels:
    """Every clip has label 0, every second also 1, every tenth also 2; the last clip has none."""
    pairs = [(clip, c) for clip in range(40) for c, every in ((0, 1), (1, 2), (2, 10)) if clip % every == 0]
    clip, label = np.array(pairs).T
    return ClipLabels(clip, label, 41, 3)


def keys(count: int) -> list[str]:
    return [f"clip-{place}" for place in range(count)]


def test_weights_are_those_of_the_references_weight_file() -> None:
    weights = several().balancing()
    of_class = [1000.0 / (count + 0.01) for count in (40, 20, 4)]
    assert weights[1] == pytest.approx(of_class[0])
    assert weights[2] == pytest.approx(of_class[0] + of_class[1])
    assert weights[10] == pytest.approx(sum(of_class))
    assert weights[40] == 0


@pytest.mark.parametrize("per_class", [1, 3, 8, 100])
def test_a_few_of_each_class_are_exactly_so_many(per_class: int) -> None:
    labels = single()
    keep = labels.few(keys(85), seed=1, per_class=per_class)
    found = np.bincount(labels.label[keep], minlength=4)
    assert found.tolist() == [min(per_class, count) for count in COUNTS]


@pytest.mark.parametrize("labels", [single(), several()], ids=["one", "several"])
def test_more_clips_contain_fewer_and_seeds_choose_others(labels: ClipLabels) -> None:
    names = keys(labels.num_clips)
    chain = [labels.few(names, 7, share=share) for share in (0.01, 0.1, 0.5, 1.0)]
    chain_k = [labels.few(names, 7, per_class=k) for k in (1, 2, 4, 16)]
    for sets in (chain, chain_k):
        for less, more in itertools.pairwise(sets):
            assert (less <= more).all()
            assert less.sum() < more.sum()
    assert not np.array_equal(labels.few(names, 8, per_class=2), chain_k[1])
    assert chain[-1].sum() == len(set(labels.clip.tolist()))


def test_a_choice_depends_on_keys_and_not_on_their_order() -> None:
    labels, names = single(), keys(85)
    backwards = ClipLabels(84 - labels.clip[::-1], labels.label[::-1], 85, 4)
    chosen = {names[i] for i in np.flatnonzero(labels.few(names, 3, per_class=4))}
    turned = names[::-1]
    assert {turned[i] for i in np.flatnonzero(backwards.few(turned, 3, per_class=4))} == chosen


def test_shares_round_up_and_take_one_at_least() -> None:
    labels = single()
    found = labels.few(keys(85), seed=1, share=0.07)
    assert np.bincount(labels.label[found], minlength=4).tolist() == [5, 2, 1, 0]
    exact = ClipLabels(np.arange(100), np.zeros(100, dtype=np.int64), 100, 1).few(keys(100), 1, share=0.07)
    assert exact.sum() == 7


def test_a_subset_counts_its_clips_anew() -> None:
    labels = several()
    keep = np.arange(41) % 10 == 0
    part = labels.subset(keep)
    assert part.num_clips == 5
    assert part.counts().tolist() == [4, 4, 4]
    assert part.clip.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_labels_are_read_from_the_shards(tiny_shards: Path) -> None:
    made = index.load(tiny_shards)
    split = made.split("train")
    labels = read_labels(made, split)
    assert labels.num_clips == len(split)
    assert labels.clip.tolist() == list(range(len(split)))
    for place in range(len(split)):
        number = int(split.key(place).split("-")[1])
        assert made.labels[labels.label[place]] == ("blue", "green", "red")[number % 3]


WORKER = """
import sys
from pathlib import Path
import numpy as np
import torch
from kdctool import dist
from kdctool.data.labels import read_labels
from kdctool.shards import index, read
dist.init(torch.device("cpu"))
reads, original = [], read.ShardReader.read
read.ShardReader.read = lambda self, place, suffixes: reads.append(place) or original(self, place, suffixes)
made = index.load(Path(sys.argv[1]))
labels = read_labels(made, made.split("train"))
np.savez(Path(sys.argv[2]) / f"{dist.world()[0]}.npz", clip=labels.clip, label=labels.label, reads=reads)
dist.shutdown()
"""


@pytest.mark.dist
def test_ranks_share_the_reading_and_each_has_all_labels(tiny_shards: Path, tmp_path: Path) -> None:
    made = index.load(tiny_shards)
    alone = read_labels(made, made.split("train"))
    run_ranks(5, "-c", WORKER, str(tiny_shards), str(tmp_path))  # 24 clips: not all ranks read equally many.
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(5)]
    for rank in found:
        assert np.array_equal(rank["clip"], alone.clip)
        assert np.array_equal(rank["label"], alone.label)
    assert np.concatenate([rank["reads"] for rank in found]).tolist() == list(range(24))
