"""Clips held in main memory or on the GPU give the batches of the loader there, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdctool import recipe as recipes
from kdctool.data import holding
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.held import Held
from kdctool.data.loader import training_batches
from kdctool.data.order import Order
from kdctool.recipe import Finetune
from kdctool.shards import index

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


@pytest.mark.parametrize("hold", ["memory", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_held_batches_are_the_loaders(
    tiny_recipe: Callable[..., Path], tiny_shards: Path, hold: str, workers: int
) -> None:
    recipe, device = recipes.load(tiny_recipe(f"data.hold={hold}", "data.flip=true")), torch.device("cuda", 0)
    shards, options = index.load(tiny_shards), Finetune(mixup=0.5, time_mask=16)
    split = shards.split("train")
    clips = Clips(shards, split, recipe, training=True, with_labels=True, finetune=options)
    found = holding.choose(clips, device, 1)
    assert found is not None
    assert found.where == (device if hold == "device" else torch.device("cpu"))
    held = Held(clips, found.where, device)
    held.fill(workers)
    assert held.frames.device == found.where
    order, to_batch = Order(tuple(split.sizes), 8, 0, 2), ToBatch(recipe, device, training=True, finetune=options)
    both = [training_batches(clips, order, 1, 4, 0, 1, workers, device, reading) for reading in (held.read, None)]
    steps = list(zip(*both, strict=True))
    assert len(steps) == order.total_steps - 1
    for ours, theirs in steps:
        for one, two in zip(ours, theirs, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name].cpu(), two[name].cpu()) for name in two)
            assert all(value.is_cuda or value.is_pinned() for value in one.values())
            mine, other = to_batch(one), to_batch(two)
            assert all(torch.equal(mine[name], other[name]) for name in other)
