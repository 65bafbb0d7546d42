"""Every clip of a split decoded once and kept, so that a training batch is looked up instead of read.

What is drawn for a batch `Clips` decides here as in the loader: the two give equal tensors, and the first batch is
compared before it is used.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kdctool.data.clips import Clips, Draw, Raw
from kdctool.data.collage import arranged
from kdctool.data.frames import squeezed
from kdctool.data.holding import Extent
from kdctool.data.loader import read
from kdctool.data.order import Request
from kdctool.errors import VerificationFault
from kdctool.progress import bar
from kdctool.recipe import Finetune

CHUNK_BYTES = 8 << 20
"""Of decoded clips that travel from a worker at a time: containers have 64 MB of shared memory by default."""
COMPARED = 8
"""Clips of the first batch that are also read from the shards."""
T = TypeVar("T")


class Held:
    """The clips of a split as tensors on `where`; `read` gives training batches for `device`.

    frames uint8 (all frames of all clips, 3, side, side), sound int16 (clips, S) padded with zeros.
    """

    def __init__(self, clips: Clips, where: torch.device, device: torch.device) -> None:
        self.clips, self.where, self.device = clips, where, device
        extent = Extent.of(clips)
        self.counts = extent.counts
        self.first = np.concatenate([[0], np.cumsum(self.counts)]).tolist()
        num, side = extent.clips, extent.side
        self.frames = torch.empty((self.first[-1], 3, side, side), dtype=torch.uint8, device=where)
        self.waveform = torch.empty((num, extent.samples), dtype=torch.int16, device=where)
        self.samples = torch.empty(num, dtype=torch.int64, device=where)
        self.mean = torch.empty(num, dtype=torch.float32, device=where)
        self.label = torch.empty((num, extent.classes), dtype=torch.uint8, device=where)
        self.is_compared = False

    def fill(self, workers: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Decode all clips, until `is_over`. A damaged clip is an error here, as it is in training."""
        chunk = max(1, min(64, CHUNK_BYTES // max(1, Extent.of(self.clips).bytes // len(self.clips))))
        places = range(len(self.clips))
        lists = [[Request(i, 0, i) for i in places[first : first + chunk]] for first in places[::chunk]]
        with bar("decode", len(places), "clips") as progress:
            for raw in read(_Whole(self.clips), lists, workers, self.device):
                self._keep(raw)
                progress.advance(len(raw["clip"]))
                if is_over():
                    return

    def read(self, lists: Iterable[list[Request]]) -> Iterator[Raw]:
        """The clips of lists of requests, in their order; on a GPU the next batch is put together meanwhile."""
        batches = map(self._batch, lists)
        return ahead(batches, self.device) if self.device.type == "cuda" else batches

    def _batch(self, requests: list[Request]) -> Raw:
        if not self.is_compared:
            self._compare(requests[:COMPARED])
            self.is_compared = True
        raw = self.clips.batch(requests, self._look_up)
        if self.device.type != "cuda":
            return raw
        # What is not pinned the device would wait for.
        return {name: value if value.is_cuda else value.pin_memory() for name, value in raw.items()}

    def _keep(self, raw: Raw) -> None:
        """Put decoded clips, which follow each other in the split, in their places."""
        begin = int(raw["clip"][0])
        rows = slice(begin, begin + len(raw["clip"]))
        if self.clips.heard:
            self.waveform[rows].copy_(raw["waveform"], non_blocking=True)
            self.samples[rows].copy_(raw["samples"], non_blocking=True)
            self.mean[rows].copy_(raw["mean"], non_blocking=True)
        if "label" in raw:
            self.label[rows].copy_(raw["label"], non_blocking=True)
        if self.clips.seen:
            for frames, clip in zip(raw["frames"], range(begin, rows.stop), strict=True):
                count = self.counts[clip]
                self.frames[self.first[clip] : self.first[clip] + count].copy_(frames[:count], non_blocking=True)

    def _look_up(self, draws: list[Draw]) -> Raw:
        """What `Clips` would decode."""
        clips = torch.tensor([draw.clip for draw in draws], dtype=torch.int64)
        raw, places = {"clip": clips}, self._sent(clips)
        if self.clips.heard:
            raw["waveform"] = self.waveform.index_select(0, places)
            raw["samples"], raw["mean"] = self.samples[places], self.mean[places]
        if self.clips.seen:
            raw["frame"] = self._pictures(draws)
        if self.clips.labels is not None:
            raw["label"] = self.label[places].float()
        return raw

    def _pictures(self, draws: list[Draw]) -> Tensor:
        chosen = [
            self.first[draw.clip] + place for draw in draws for place in self.clips.shown(draw, self.counts[draw.clip])
        ]
        pictures = self.frames.index_select(0, self._sent(torch.tensor(chosen, dtype=torch.int64)))
        if self.clips.recipe.data.tiling:
            pictures = arranged(pictures)
        mirrored = [row for row, draw in enumerate(draws) if self.clips.mirrors(draw.seed)]
        if mirrored:
            rows = self._sent(torch.tensor(mirrored))
            pictures.index_copy_(0, rows, pictures.index_select(0, rows).flip(-1))
        return pictures

    def _sent(self, places: Tensor) -> Tensor:
        return places if self.where.type == "cpu" else places.pin_memory().to(self.where, non_blocking=True)

    def _compare(self, requests: list[Request]) -> None:
        """VerificationFault where the held clips give another batch than their shards."""
        ours, theirs = self.clips.batch(requests, self._look_up), self.clips.batch(requests)
        for name in ours.keys() | theirs.keys():
            one, two = ours.get(name), theirs.get(name)
            if one is None or two is None or one.dtype != two.dtype or not torch.equal(one.cpu(), two):
                raise VerificationFault(
                    f"the held clips do not give the batch that their shards give: '{name}' differs",
                    "--set data.hold=none trains without holding them; kdctool verify SHARDS looks for damage",
                )


class _Whole(Clips):
    """The same clips with all of their frames, at the size that is held, neither augmented nor mixed."""

    def __init__(self, clips: Clips) -> None:
        vars(self).update(vars(clips), all_frames=clips.seen, finetune=Finetune())

    def _sized(self, frame: Tensor) -> Tensor:
        if not self.recipe.data.tiling:
            return super()._sized(frame)
        small = squeezed(frame.permute(1, 2, 0).numpy(), self.recipe.model.image_size // 2)
        return torch.from_numpy(small).permute(2, 0, 1)


def ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """The same items, the next one made by a thread while the one before is in use."""
    start = (lambda: torch.cuda.set_device(device)) if device.type == "cuda" else None
    with ThreadPoolExecutor(1, "ahead", initializer=start) as pool:
        end = object()
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # The end is no item, and it was left above.
