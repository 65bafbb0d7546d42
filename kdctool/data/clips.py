"""A split of the shards as a map from requests to decoded clips; what a loader's worker runs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdctool.data import decode
from kdctool.data.augment import draw_crop, draw_flip, draw_mix
from kdctool.data.collage import choose, collage
from kdctool.data.frames import resize_crop, resized, short_side
from kdctool.data.labels import columns
from kdctool.data.order import Request
from kdctool.data.patches import draw_erasing
from kdctool.data.rand_augment import rand_augment
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
mix_weight (M,) float64 how much of the first clip stays, with cutmix mix_box (M, 4) which part of the picture goes
(empty: they are blended). With erasing erase_row (E,), erase_box (E, 4) and erase_key (E,): which pictures, where, and
of which noise."""


@dataclass
class Failed:
    """An error on its way from a worker to the training process, with its type and exit code intact."""

    error: KdctoolError


class Clips(torch.utils.data.Dataset[Any]):
    """Decodes the clips of one split. `training` chooses random frames; otherwise the choice is fixed.

    `all_frames` adds `frames` uint8 (B, N, C, H, W) and `frame_count` (B,): N is the most that a clip of the batch
    has, places past a clip's own count are zero. `parts` are what is read of 'audio' and 'video'; of the other
    neither member nor tensor is touched. `finetune` says how clips are augmented and mixed with others of the split.
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
        self.finetune = finetune or Finetune()
        self.reader = ShardReader(split)
        self.sample_rate = int(index.settings.get("sample_rate", 16000))
        self.labels = {name: place for place, name in enumerate(index.labels)} if with_labels else None
        self.samples = (recipe.model.audio_frames - 1) * WINDOW_SHIFT + WINDOW_SIZE
        if self.sample_rate != 16000:
            raise DataFault(
                f"the shards hold audio at {self.sample_rate} Hz, the filter bank needs 16000 Hz",
                "extract again with --audio-rate 16000",
            )
        if self.seen:
            _check_size(index, recipe)

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, requests: list[Request]) -> Raw | Failed:
        try:
            return self.batch(requests)
        except KdctoolError as error:
            return Failed(error)

    def batch(self, requests: list[Request], read: Callable[[list["Draw"]], Raw] | None = None) -> Raw:
        """The clips of `requests`, collated. `read` gives those of a list of draws; without it they are decoded."""
        read = read or self._read
        seeds = [self._seed(request) for request in requests]
        draws = [
            Draw(request.clip, request.epoch, seed, self.all_frames)
            for request, seed in zip(requests, seeds, strict=True)
        ]
        raw = read(draws)
        raw["row"] = torch.tensor([request.row for request in requests])
        raw["seed"] = torch.tensor(seeds, dtype=torch.int64)
        raw |= self._erasing(seeds)
        return raw | self._partners(requests, seeds, read) if self.finetune.mixup else raw

    def _seed(self, request: Request) -> int:
        parts = (request.epoch, self.split.key(request.clip))
        # The first draw of an epoch has the seed that it would have if there were no other.
        return fold(self.recipe.seed, "augment", *parts, *((request.again,) if request.again else ()))

    def _partners(self, requests: list[Request], seeds: list[int], read: Callable[[list["Draw"]], Raw]) -> Raw:
        """What some clips of the batch are mixed with, as `mix_*` tensors; `mix_row` says which."""
        options, side = self.finetune, self.recipe.model.image_size
        mixes = [draw_mix(seed, options, len(self.split), side) for seed in seeds]
        rows = [row for row, found in enumerate(mixes) if found is not None]
        chosen = [found for found in mixes if found is not None]
        draws = [
            Draw(found.partner, requests[row].epoch, found.seed, False) for row, found in zip(rows, chosen, strict=True)
        ]
        raw = read(draws)
        raw["row"] = torch.tensor(rows, dtype=torch.int64)
        raw["weight"] = torch.tensor([found.weight for found in chosen], dtype=torch.float64)
        raw |= self._erasing([found.seed for found in chosen])
        if options.cutmix:
            raw["box"] = torch.tensor([found.box for found in chosen], dtype=torch.int64).view(-1, 4)
        return {f"mix_{name}": value for name, value in raw.items()}

    def _erasing(self, seeds: list[int]) -> Raw:
        """Which of the pictures of these seeds lose a rectangle, as `erase_*` tensors."""
        if not (self.finetune.erasing and self.seen):
            return {}
        side = self.recipe.model.image_size
        drawn = [draw_erasing(seed, self.finetune.erasing, side, side) for seed in seeds]
        found = [(row, box, fold(seeds[row], "noise")) for row, box in enumerate(drawn) if box is not None]
        rows, boxes, keys = zip(*found, strict=True) if found else ((), (), ())
        return {
            "erase_row": torch.tensor(rows, dtype=torch.int64),
            "erase_box": torch.tensor(boxes, dtype=torch.int64).view(-1, 4),
            "erase_key": torch.tensor(keys, dtype=torch.int64),
        }

    def _read(self, draws: list["Draw"]) -> Raw:
        """The clips of `draws` as tensors."""
        size = self.recipe.model.image_size
        wave = np.empty((len(draws), self.samples), dtype=np.int16)
        frame = torch.empty((len(draws), size, size, 3), dtype=torch.uint8)  # as JPEG decoders lay pixels out
        label = np.zeros((len(draws), len(self.labels or ())), dtype=np.float32)
        samples, means = [], []
        every: list[Tensor] = []
        for row, draw in enumerate(draws):
            where = self.where(draw.clip)
            suffixes = self.split.suffixes(draw.clip)
            frames, sound = kinds(suffixes)
            if (self.seen and not frames) or (self.heard and not sound):
                raise DataFault(
                    f"{where} has {len(frames)} frames and {int(bool(sound))} audio members", "kdctool verify SHARDS"
                )
            chosen = [frames[place] for place in self.shown(draw, len(frames))] if self.seen else []
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
                decoded = {name: decode.frame(data[name], f"{where}.{name}") for name in read}
                frame[row] = self._picture([decoded[name] for name in chosen], draw.seed).permute(1, 2, 0)
            if draw.all_frames:
                every.append(torch.stack([self._sized(decoded[name]) for name in frames]))
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

    def where(self, clip: int) -> str:
        """Shard and uid of a clip, as errors name it."""
        return f"{self.split.shards[self.split.shard(clip)]}: clip {self.split.key(clip)}"

    def shown(self, draw: "Draw", stored: int) -> list[int]:
        """Places among a clip's `stored` frames that make up its picture: one, or those of a collage."""
        epoch = draw.epoch if self.training else None
        return choose(self.recipe.data, stored, epoch, draw.seed, self.where(draw.clip))

    def mirrors(self, seed: int) -> bool:
        """Whether a draw's picture is mirrored."""
        return self.training and self.recipe.data.flip and draw_flip(seed)

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
        if self.mirrors(seed):
            picture = picture.flip(-1)
        if policy := self.finetune.rand_augment:
            pixels = picture.permute(1, 2, 0).contiguous().numpy()
            picture = torch.from_numpy(rand_augment(pixels, policy, options.image_mean, seed)).permute(2, 0, 1)
        return picture

    def _sized(self, frame: Tensor) -> Tensor:
        size, crop_pct = self.recipe.model.image_size, self.recipe.data.crop_pct
        if frame.shape[1:] == (size, size) and short_side(size, crop_pct) == size:
            return frame
        return torch.from_numpy(resize_crop(frame.permute(1, 2, 0).numpy(), size, crop_pct).copy()).permute(2, 0, 1)


def _check_size(index: Index, recipe: Recipe) -> None:
    """DataFault where data.crop_pct asks for larger frames than kdctool was told to store.

    A single picture may be smaller, as it came so, and is enlarged. What others stored is not known: it is resized.
    """
    size, crop_pct = recipe.model.image_size, recipe.data.crop_pct
    wanted, stored = short_side(size, crop_pct), index.settings.get("size")
    if wanted > size and "fit" in index.settings and stored and stored < wanted:
        raise DataFault(
            f"data.crop_pct = {crop_pct:g} shows the centre {size} of {wanted} pixels, {index.folder} was stored with "
            f"{stored} at most: frames would be enlarged first",
            f"extract again with --size {wanted} or more (--images keeps 512), or set data.crop_pct = 1.0",
        )


@dataclass(frozen=True)
class Draw:
    """A clip to read; `seed` decides what is random about it."""

    clip: int
    epoch: int
    seed: int
    all_frames: bool


@lru_cache(maxsize=1024)
def kinds(suffixes: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Frames in order of time, and the audio member (empty when there is none)."""
    frames = sorted((name for name in suffixes if name.endswith(".jpg")), key=lambda name: int(name.split(".")[0]))
    return tuple(frames), next((name for name in suffixes if name in decode.AUDIO), "")


def _mean(samples: np.ndarray) -> float:
    """Exact mean of int16 samples. Blocks of 4096 fit into int32, which sums twice as fast as wider types."""
    whole = len(samples) // 4096 * 4096
    blocks = np.add.reduce(samples[:whole].reshape(-1, 4096), axis=1, dtype=np.int32)
    return (int(blocks.sum(dtype=np.int64)) + int(samples[whole:].sum(dtype=np.int64))) / len(samples)
