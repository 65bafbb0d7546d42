"""Worker processes around `Clips`: batches for training from any step on, and all clips in order for evaluation."""

from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from kdctool.batch import Batch
from kdctool.data.clips import Clips, Failed, Raw
from kdctool.data.device import ToBatch
from kdctool.data.order import Order, Request
from kdctool.data.whole import BOTH
from kdctool.recipe import Recipe
from kdctool.shards.index import Index, Split

Reading = Callable[[Iterable[list[Request]]], Iterator[Raw]]
"""Gives the clips of lists of requests, in their order."""


class _Lists(Sampler[list[Request]]):
    def __init__(self, lists: Iterable[list[Request]]) -> None:
        self.lists = lists

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.lists)


def _as_is(data: Any) -> Any:
    return data


def read(clips: Clips, lists: Iterable[list[Request]], workers: int, device: torch.device) -> Iterator[Raw]:
    """Decode lists of requests in their order; errors of a worker are raised here as what they were."""
    loader: DataLoader[Raw | Failed] = DataLoader(
        clips,
        batch_sampler=_Lists(lists),
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_one_thread if workers else None,
        multiprocessing_context=_beside_a_gpu() if workers and device.type == "cuda" else None,
    )
    for data in loader:
        if isinstance(data, Failed):
            raise data.error
        yield data


def _beside_a_gpu() -> BaseContext:
    """How workers start that must not inherit a GPU's context: from a server that has imported what they need."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    return context


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def training_batches(
    clips: Clips,
    order: Order,
    start_step: int,
    micro_batch: int,
    rank: int,
    ranks: int,
    workers: int,
    device: torch.device,
    reading: Reading | None = None,
) -> Iterator[list[Raw]]:
    """Per optimiser step from `start_step` on: the micro batches of this rank, by `reading` where they are held."""
    passes = order.global_batch // (micro_batch * ranks)
    lists = order.micro_batches(start_step, micro_batch, rank, ranks)
    raw = read(clips, lists, workers, device) if reading is None else reading(lists)
    for _ in range(start_step, order.total_steps):
        yield [next(raw) for _ in range(passes)]


def eval_batches(
    index: Index,
    split: Split,
    recipe: Recipe,
    device: torch.device,
    batch_size: int,
    workers: int,
    *,
    labels: bool,
    all_frames: bool = False,
    parts: Collection[str] = BOTH,
) -> Iterator[Batch]:
    """Every clip of the split once, in order, without augmentation: the middle frame, and `frames` when asked.

    Clips need only have the `parts` of 'audio' and 'video' that are read.
    """
    clips = Clips(index, split, recipe, training=False, with_labels=labels, all_frames=all_frames, parts=parts)
    places = range(len(split))
    lists = [[Request(i, 0, i) for i in places[first : first + batch_size]] for first in places[::batch_size]]
    to_batch = ToBatch(recipe, device, training=False)
    for raw in read(clips, lists, workers, device):
        yield to_batch(raw)
