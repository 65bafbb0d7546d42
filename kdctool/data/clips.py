"""A split of the shards as a map from requests to decoded clips; what a loader's worker runs."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdctool.data import decode
from kdctool.data.augment import draw_crop, draw_flip, draw_mix
from kdctool.data.collage import choose, collage
from kdctool.data.frames import resize_crop, resized
from kdctool.data.labels import columns
from kdctool.data.order import Request
from kdctool.data.whole import BOTH
from kdctool.errors import DataFault, KdctoolError
from kdctool.recipe import Finetune, Recipe
from kdctool.seeds import fold
from kdctool.shards.about import MEMBERS, about
from kdctool.shards.index import Index, Split
from kdctool.shards.read import ShardReader

WINDOW_SHIFT = 160
WINDOW_SIZE = 400
"""Kaldi's 10 ms shift and 25 ms window at 16 kHz, in samples."""

Raw = dict[str, Tensor]
"""Collated clips as they travel to the device: waveform int16 (B, S), samples (B,), mean (B,), frame uint8
(B, C, H, W) in any memory layout, clip, row, seed (B,) int64, label (B, classes) when there are any. Without what
is not read of sound and frames. With mixup the same with the prefix mix_ of M partners: mix_row (M,) says whose,
mix_weight (M,) float64 how much of the first clip stays."""


@dataclass
class Failed:
    """An error on its way from a worker to the training process, with its type and exit code intact."""

    error: KdctoolError


class Clips(torch.utils.data.Dataset[Any]):
    """Decodes the clips of one split. `training` chooses random frames; otherwise the choice is fixed.

    `all_frames` adds `frames` uint8 (B, N, C, H, W) and `frame_count` (B,): N is the most that a clip of the batch
    has, places past a clip's own count are zero. `parts` are what is read of 'audio' and 'video'; of the other
    neither member nor tensor is touched. `finetune` says whether clips are mixed with others of the split.
    """

    def __init__(
        self,
        index: Index,
        split: Split,
        recipe: Recipe,
        *,
        training: bool,
        with_labels: bool,
        all_frames: bool = False,
        parts: Collection[str] = BOTH,
        finetune: Finetune | None = None,
    ) -> None:
        self.split, self.recipe, self.training = split, recipe, training
        self.heard, self.seen = "audio" in parts, "video" in parts
        self.all_frames = all_frames and self.seen
        self.mixup, self.mixup_alpha = (finetune.mixup, finetune.mixup_alpha) if finetune else (0.0, 1.0)
        self.reader = ShardReader(split)
        self.sample_rate = int(index.settings.get("sample_rate", 16000))
        self.labels = {name: place for place, name in enumerate(index.labels)} if with_labels else None
        self.samples = (recipe.model.audio_frames - 1) * WINDOW_SHIFT + WINDOW_SIZE
        if self.sample_rate != 16000:
            raise DataFault(
                f"the shards hold audio at {self.sample_rate} Hz, the filter bank needs 16000 Hz",
                "extract again with --audio-rate 16000",
            )

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, requests: list[Request]) -> Raw | Failed:
        try:
            return self._batch(requests)
        except KdctoolError as error:
            return Failed(error)

    def _batch(self, requests: list[Request]) -> Raw:
        seeds = [self._seed(request) for request in requests]
        draws = [
            _Draw(request.clip, request.epoch, seed, self.all_frames)
            for request, seed in zip(requests, seeds, strict=True)
        ]
        raw = self._read(draws)
        raw["row"] = torch.tensor([request.row for request in requests])
        raw["seed"] = torch.tensor(seeds, dtype=torch.int64)
        return raw | self._partners(requests, seeds) if self.mixup else raw

    def _seed(self, request: Request) -> int:
        parts = (request.epoch, self.split.key(request.clip))
        # The first draw of an epoch has the seed that it would have if there were no other.
        return fold(self.recipe.seed, "augment", *parts, *((request.again,) if request.again else ()))

    def _partners(self, requests: list[Request], seeds: list[int]) -> Raw:
        """What some clips of the batch are mixed with, as `mix_*` tensors; `mix_row` says which."""
        mixes = [draw_mix(seed, self.mixup, self.mixup_alpha, len(self.split)) for seed in seeds]
        rows = [row for row, found in enumerate(mixes) if found is not None]
        chosen = [found for found in mixes if found is not None]
        draws = [
            _Draw(found.partner, requests[row].epoch, found.seed, False)
            for row, found in zip(rows, chosen, strict=True)
        ]
        raw = self._read(draws)
        raw["row"] = torch.tensor(rows, dtype=torch.int64)
        raw["weight"] = torch.tensor([found.weight for found in chosen], dtype=torch.float64)
        return {f"mix_{name}": value for name, value in raw.items()}

    def _read(self, draws: list["_Draw"]) -> Raw:
        """The clips of `draws` as tensors."""
        size = self.recipe.model.image_size
        wave = np.empty((len(draws), self.samples), dtype=np.int16)
        frame = torch.empty((len(draws), size, size, 3), dtype=torch.uint8)  # as JPEG decoders lay pixels out
        label = np.zeros((len(draws), len(self.labels or ())), dtype=np.float32)
        samples, means = [], []
        every: list[Tensor] = []
        for row, draw in enumerate(draws):
            where = f"{self.split.shards[self.split.shard(draw.clip)]}: clip {self.split.key(draw.clip)}"
            suffixes = self.split.suffixes(draw.clip)
            frames, sound = _kinds(suffixes)
            if (self.seen and not frames) or (self.heard and not sound):
                raise DataFault(
                    f"{where} has {len(frames)} frames and {int(bool(sound))} audio members", "kdctool verify SHARDS"
                )
            epoch = draw.epoch if self.training else None
            places = choose(self.recipe.data, len(frames), epoch, draw.seed, where) if self.seen else ()
            chosen = [frames[place] for place in places]
            read = frames if draw.all_frames else chosen
            described = [name for name in MEMBERS if name in suffixes] if self.labels is not None else []
            data = self.reader.read(draw.clip, (*described, *((sound,) if self.heard else ()), *read))
            if self.heard:
                heard = decode.audio(data[sound], self.sample_rate, f"{where}.{sound}", out=wave[row])
                if len(heard) < WINDOW_SIZE:
                    raise DataFault(f"{where} has {len(heard)} samples of audio, less than one window of {WINDOW_SIZE}")
                if len(heard) > self.samples:
                    wave[row] = heard[: self.samples]
                wave[row, len(heard) :] = 0
                samples.append(min(len(heard), self.samples))
                means.append(_mean(heard))
            if self.seen:
                picture = self._picture([decode.frame(data[name], f"{where}.{name}") for name in chosen], draw.seed)
                frame[row] = picture.permute(1, 2, 0)
            if draw.all_frames:
                every.append(torch.stack([self._sized(decode.frame(data[n], f"{where}.{n}")) for n in frames]))
            if self.labels is not None:
                label[row, columns(about(data, where), self.labels, where)] = 1
        raw = {"clip": torch.tensor([draw.clip for draw in draws], dtype=torch.int64)}
        if self.heard:
            raw["waveform"], raw["samples"] = torch.from_numpy(wave), torch.tensor(samples, dtype=torch.int64)
            raw["mean"] = torch.tensor(means, dtype=torch.float32)
        if self.seen:
            raw["frame"] = frame.permute(0, 3, 1, 2)
        if every:
            raw["frames"] = torch.nn.utils.rnn.pad_sequence(every, batch_first=True)
            raw["frame_count"] = torch.tensor([len(one) for one in every])
        if self.labels is not None:
            raw["label"] = torch.from_numpy(label)
        return raw

    def _picture(self, frames: list[Tensor], seed: int) -> Tensor:
        """What the model sees of the chosen frames, uint8 (3, size, size)."""
        size, options = self.recipe.model.image_size, self.recipe.data
        if len(frames) > 1:
            picture = collage(frames, size)
        elif self.training and options.crop == "random":
            frame = frames[0].permute(1, 2, 0).numpy()
            height, width = frame.shape[:2]
            part = resized(frame, draw_crop(seed, height, width, options.crop_scale), size)
            picture = torch.from_numpy(part).permute(2, 0, 1)
        else:
            picture = self._sized(frames[0])
        return picture.flip(-1) if self.training and options.flip and draw_flip(seed) else picture

    def _sized(self, frame: Tensor) -> Tensor:
        size = self.recipe.model.image_size
        if frame.shape[1:] == (size, size):
            return frame
        return torch.from_numpy(resize_crop(frame.permute(1, 2, 0).numpy(), size).copy()).permute(2, 0, 1)


@dataclass(frozen=True)
class _Draw:
    """A clip to read; `seed` decides what is random about it."""

    clip: int
    epoch: int
    seed: int
    all_frames: bool


@lru_cache(maxsize=1024)
def _kinds(suffixes: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Frames in order of time, and the audio member (empty when there is none)."""
    frames = sorted((name for name in suffixes if name.endswith(".jpg")), key=lambda name: int(name.split(".")[0]))
    return tuple(frames), next((name for name in suffixes if name in decode.AUDIO), "")


def _mean(samples: np.ndarray) -> float:
    """Exact mean of int16 samples. Blocks of 4096 fit into int32, which sums twice as fast as wider types."""
    whole = len(samples) // 4096 * 4096
    blocks = np.add.reduce(samples[:whole].reshape(-1, 4096), axis=1, dtype=np.int32)
    return (int(blocks.sum(dtype=np.int64)) + int(samples[whole:].sum(dtype=np.int64))) / len(samples)
