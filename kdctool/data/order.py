"""Which clip is read when: a pure function of (seed, epoch), so there is no reader state to save or lose.

With weights clips are drawn with replacement: some several times in an epoch, some never.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kdctool.errors import DataFault
from kdctool.seeds import fold

BLOCK_SHARDS = 16
"""Shards that are mixed with each other: a reader touches few files at a time, and 16 x 1000 clips mix well."""


def epoch_order(sizes: list[int], seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The clips of an epoch, (sum(sizes),) int64: shards permuted, clips shuffled within blocks.

    Each clip once; with `weights` (sum(sizes),) as many draws with replacement, in proportion to them.
    """
    rng = np.random.default_rng(fold(seed, "order", epoch))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shards = rng.permutation(len(sizes))
    times = None if weights is None else _times_drawn(weights, seed, epoch)
    blocks = []
    for first in range(0, len(shards), BLOCK_SHARDS):
        members = shards[first : first + BLOCK_SHARDS]
        clips = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in members])
        blocks.append(rng.permutation(clips if times is None else np.repeat(clips, times[clips])))
    return np.concatenate(blocks).astype(np.int64)


def _times_drawn(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """How often each clip comes up in as many weighted draws as there are clips, (N,)."""
    rng = np.random.default_rng(fold(seed, "balanced", epoch))
    drawn = rng.choice(len(weights), size=len(weights), p=weights / weights.sum())
    return np.bincount(drawn, minlength=len(weights))


def occurrences(order: np.ndarray) -> np.ndarray:
    """For each place of an order, how often its clip stood there before: (N,) -> (N,), all 0 in a permutation."""
    places = np.argsort(order, kind="stable")
    first = np.concatenate([[True], np.diff(order[places]) != 0])
    run = np.flatnonzero(first)
    found = np.empty(len(order), dtype=np.int64)
    found[places] = np.arange(len(order)) - np.repeat(run, np.diff([*run, len(order)]))
    return found


@dataclass(frozen=True)
class Request:
    """One clip to read: its place in the split, the epoch (for augmentation) and its row in the global batch."""

    clip: int
    epoch: int
    row: int
    again: int = 0
    """How often this epoch has drawn the clip before; each draw is augmented differently."""


@dataclass(frozen=True)
class Order:
    """The whole training run's reading order for any number of ranks and micro batches."""

    sizes: tuple[int, ...]
    """Clips per shard."""
    global_batch: int
    seed: int
    epochs: int
    weights: np.ndarray | None = field(default=None, compare=False)
    """How likely each clip is to be drawn, (sum(sizes),); None reads every clip once per epoch."""

    def __post_init__(self) -> None:
        if sum(self.sizes) < self.global_batch:
            raise DataFault(
                f"the split has {sum(self.sizes)} clips, fewer than one batch of {self.global_batch}",
                f"--set training.global_batch={max(1, sum(self.sizes) // 2)} or add clips",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the tail that fills no global batch is dropped."""
        return sum(self.sizes) // self.global_batch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def micro_batches(self, start_step: int, micro_batch: int, rank: int, ranks: int) -> Iterator[list[Request]]:
        """What this rank reads from `start_step` on, one list per forward pass.

        Micro batch m of rank r holds rows m * R * b + r * b ... of the global batch, so every split of the
        same global batch sees the same clips in the same rows.
        """
        passes = self.global_batch // (micro_batch * ranks)
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        again = order
        for step in range(start_step, self.total_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(list(self.sizes), self.seed, epoch, self.weights), epoch
                again = occurrences(order) if self.weights is not None else np.zeros_like(order)
            for index in range(passes):
                first = (index * ranks + rank) * micro_batch
                places = slice(place * self.global_batch + first, place * self.global_batch + first + micro_batch)
                drawn = zip(order[places].tolist(), again[places].tolist(), strict=True)
                yield [Request(clip, epoch, first + i, times) for i, (clip, times) in enumerate(drawn)]
