"""The pieces of gpu_all.py that read data: filter banks on the device, and training from real shards."""

import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_measure import seconds_per_step, synchronize
from gpu_sizes import COMPILED, objective_of, recipe_for
from gpu_worker import Row, Settings
from harness import result
from training_step import synthetic, trainer_of


def filter_bank(s: Settings) -> Iterator[Row]:
    """Waveforms to filter banks and frames to floats on the device: cost per clip, difference from the CPU."""
    from kdctool.data.device import ToBatch

    recipe, clips = recipe_for(s, "kdc_mae"), s.pick(256, 4)
    rng = np.random.default_rng(0)
    size = recipe.model.image_size
    samples = (recipe.model.audio_frames - 1) * 160 + 400
    raw = {
        "waveform": torch.from_numpy(rng.normal(0, 3000, (clips, samples)).astype(np.int16)),
        "samples": torch.full((clips,), samples),
        "mean": torch.zeros(clips),
        "frame": torch.from_numpy(rng.integers(0, 255, (clips, 3, size, size), dtype=np.uint8)),
    } | {name: torch.arange(clips) for name in ("clip", "row", "seed")}
    for name, training in (("with_noise", True), ("plain", False)):
        to_batch = ToBatch(recipe, torch.device(s.device), training=training)
        own = {key: value.to(s.device) for key, value in raw.items()}
        seconds_per_step(lambda t=to_batch, r=own: t(r), 2)
        seconds = seconds_per_step(lambda t=to_batch, r=own: t(r), 5)
        yield result(name, [1e6 * seconds / clips], "microseconds per clip").as_dict()
    there = ToBatch(recipe, torch.device(s.device), training=False)(raw)["fbank"].cpu()
    here = ToBatch(recipe, torch.device("cpu"), training=False)(raw)["fbank"]
    yield result("apart_from_cpu", [float((there - here).abs().max())], "largest difference, normalised").as_dict()


def end_to_end(s: Settings) -> Iterator[Row]:
    """Training from shards made here, looped from the page cache, beside the same step on one batch that stays."""
    from shards_for_gpu import make_shards

    from kdctool.data.clips import Clips
    from kdctool.data.device import ToBatch
    from kdctool.data.loader import training_batches
    from kdctool.data.order import Order
    from kdctool.train.step import train_step

    clips, batch, steps = s.pick(4096, 16), s.pick(128, 4), s.pick(30, 2)
    workers = s.pick(min(16, len(os.sched_getaffinity(0))), 0)
    recipe, device = recipe_for(s, "kdc_mae"), torch.device(s.device)
    trainer = trainer_of(objective_of(s, "kdc_mae"), recipe, batch, device, "bf16", COMPILED)
    fixed = synthetic(recipe, batch, device)
    seconds_per_step(lambda: train_step(trainer, [fixed], 0), s.pick(4, 1))
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        index = make_shards(Path(place), clips, s.pick(16, 1), recipe.model.image_size, s.pick(10.0, 1.0))
        yield result("making_shards", [time.perf_counter() - start], "s").as_dict() | {"clips": clips}
        split = index.split("train")
        reading = Clips(index, split, recipe, training=True, with_labels=False)
        order = Order(tuple(split.sizes), batch, 0, 1000)
        to_batch = ToBatch(recipe, device, training=True)

        def batches() -> Iterator[Any]:
            return training_batches(reading, order, 0, batch, 0, 1, workers, device)

        feed = batches()
        list(islice(feed, s.pick(8, 1)))  # workers start, files come into the page cache
        start = time.perf_counter()
        list(islice(feed, steps))
        rate = steps * batch / (time.perf_counter() - start)
        yield result("reading_alone", [rate], "clips/s").as_dict() | {"workers": workers, "batch": batch}
        del feed
        rates: dict[str, list[float]] = {"synthetic": [], "from_shards": []}
        feed = batches()
        list(islice(feed, s.pick(8, 1)))
        waiting = 0.0
        for _ in range(s.pick(3, 1)):
            rates["synthetic"].append(batch / seconds_per_step(lambda: train_step(trainer, [fixed], 0), s.pick(10, 1)))
            # While the fixed batch trains, workers fill their queues: these steps empty them again.
            for raw in islice(feed, 2 * workers):
                train_step(trainer, [to_batch(raw[0])], 0)
            synchronize()
            start = time.perf_counter()
            for step in range(steps):
                asked = time.perf_counter()
                raw = next(feed)
                waiting += time.perf_counter() - asked
                train_step(trainer, [to_batch(raw[0])], step)
            synchronize()
            rates["from_shards"].append(steps * batch / (time.perf_counter() - start))
        spent = sum(steps * batch / rate for rate in rates["from_shards"])
        yield result("synthetic", rates["synthetic"], "clips/s").as_dict()
        yield result("from_shards", rates["from_shards"], "clips/s").as_dict() | {
            "workers": workers, "batch": batch, "clips": clips, "waiting_for_data": round(waiting / spent, 4),
            "note": "shards looped from the page cache",
        }  # fmt: skip
