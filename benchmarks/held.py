"""Training batches of clips that are held decoded (data.hold) beside the loader's, which reads them in every epoch.

Clips of AV-Digits' size, made here: ten frames of 112 pixels, 2 s of sound. Variants take turns, medians of the rounds.

    python benchmarks/held.py                     CPU seconds of one thread; wall seconds beside a loader with workers
    python benchmarks/held.py --device cuda       wall seconds between synchronisations, held in main and GPU memory
    python benchmarks/held.py --quick             a fourth of the clips
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import harness

SIZE, SECONDS, FRAMES = 112, 2.0, 10
RECIPE = f"""
name = "held"
[model]
audio_frames = 208
image_size = {SIZE}
audio_patch = 16
video_patch = 8
"""


class Work:
    """One variant: `steps` batches per call, many more than workers read ahead; milliseconds per clip by `clock`."""

    def __init__(
        self, feed: Callable[[], Iterator[Any]], use: Callable[[Any], Any], clock: Callable[[], float], given: Any
    ) -> None:
        self.feed, self.use, self.clock = feed, use, clock
        self.batch, self.steps, self.device = given.batch, given.steps, given.device

    def __call__(self) -> float:
        batches = self.feed()
        self.use(next(batches)[0])  # Workers start, files come into the page cache; not counted.
        seconds = harness.timed(lambda: self._run(batches), self.clock)
        return 1000 * seconds / (self.steps * self.batch)

    def _run(self, batches: Iterator[Any]) -> None:
        import torch

        for micros in islice(batches, self.steps):
            self.use(micros[0])
        if self.device == "cuda":
            torch.cuda.synchronize()


def variants(folder: Path, given: argparse.Namespace) -> tuple[dict[str, Work], list[harness.Result]]:
    """What is compared, and what holding cost: seconds to decode all clips, bytes."""
    import torch
    from shards_for_gpu import make_shards

    from kdctool import recipe as recipes
    from kdctool.data.clips import Clips
    from kdctool.data.device import ToBatch
    from kdctool.data.held import Held
    from kdctool.data.holding import Extent
    from kdctool.data.loader import training_batches
    from kdctool.data.order import Order

    recipe, device = recipes.loads(RECIPE), torch.device(given.device)
    index = make_shards(folder, given.clips, given.workers or 1, SIZE, SECONDS)
    split = index.split("train")
    clips = Clips(index, split, recipe, training=True, with_labels=False)
    order = Order(tuple(split.sizes), given.batch, 0, 1000)
    to_batch = ToBatch(recipe, device, training=True)
    wall = time.perf_counter
    clock = wall if given.device == "cuda" else time.process_time
    found: dict[str, Work] = {}
    results = [harness.result("held", [Extent.of(clips).bytes / 2**20], "MB")]

    def feed(reading: Any, workers: int) -> Callable[[], Iterator[Any]]:
        return lambda: training_batches(clips, order, 0, given.batch, 0, 1, workers, device, reading)

    for place in {"main": torch.device("cpu"), "gpu": device} if given.device == "cuda" else ("main",):
        held = Held(clips, device if place == "gpu" else torch.device("cpu"), device)
        seconds = harness.timed(lambda h=held: h.fill(given.workers))
        results.append(harness.result(f"decoding_into_{place}_memory", [given.clips / seconds], "clips/s"))
        found[f"held_in_{place}_memory"] = Work(feed(held.read, 0), lambda raw: None, clock, given)
        found[f"held_in_{place}_memory_to_batch"] = Work(feed(held.read, 0), to_batch, clock, given)
        found[f"held_in_{place}_memory_wall"] = Work(feed(held.read, 0), lambda raw: None, wall, given)
    found["loader"] = Work(feed(None, 0), lambda raw: None, clock, given)
    found["loader_to_batch"] = Work(feed(None, 0), to_batch, clock, given)
    found["loader_workers_wall"] = Work(feed(None, given.workers), lambda raw: None, wall, given)
    return found, results


def ratios(ms: dict[str, float]) -> dict[str, float]:
    """How many times faster held clips are; above 1 holding wins."""
    found = {}
    for name, value in ms.items():
        if name.startswith("held_in_"):
            other = "loader" + ("_to_batch" if name.endswith("_to_batch") else "")
            other = "loader_workers_wall" if name.endswith("_wall") else other
            found[f"{name}_speedup_over_{other}"] = ms[other] / value
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table on stderr and the JSON line on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the loader beside it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    given = parser.parse_args(arguments)
    given.clips, given.batch, given.steps = (256, 16, 16) if given.quick else (1024, 64, 24)

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kdctool-held-") as folder:
        harness.say(f"making {given.clips} clips")
        works, results = variants(Path(folder), given)
        seen = harness.interleaved(works, given.rounds)
    results += [harness.result(name, values, "ms per clip") for name, values in seen.items()]
    found = ratios({item.name: item.value for item in results})
    for item in results:
        harness.say(f"{item.name:32} {item.value:10.4f} {item.unit:12} +-{item.spread:.0%}")
    for name, value in found.items():
        harness.say(f"{name:64} {value:8.2f}")
    settings = {"clips": given.clips, "batch": given.batch, "workers": given.workers, "rounds": given.rounds}
    packages = ("torch", "torchvision", "soundfile", "numpy")
    about = harness.hardware(given.device)
    harness.finish(harness.report("held", about, packages, results, found, settings=settings), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
