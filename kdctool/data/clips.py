"""A split of the shards as a map from requests to decoded clips; what a loader's worker runs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdctool.data import decode
from kdctool.data.collage import choose, collage
from kdctool.data.frames import resize_crop
from kdctool.data.order import Request
from kdctool.errors import DataFault, KdctoolError
from kdctool.recipe import Recipe
from kdctool.seeds import fold
from kdctool.shards.index import Index, Split
from kdctool.shards.read import ShardReader

WINDOW_SHIFT = 160
WINDOW_SIZE = 400
"""Kaldi's 10 ms shift and 25 ms window at 16 kHz, in samples."""

Raw = dict[str, Tensor]
"""Collated clips as they travel to the device: waveform int16 (B, S), samples (B,), mean (B,), frame uint8
(B, C, H, W) in any memory layout, clip, row, seed (B,) int64, label (B, classes) when there are any."""


@dataclass
class Failed:
    """An error on its way from a worker to the training process, with its type and exit code intact."""

    error: KdctoolError


class Clips(torch.utils.data.Dataset[Any]):
    """Decodes the clips of one split. `training` chooses random frames; otherwise the choice is fixed.

    `all_frames` adds `frames` uint8 (B, N, C, H, W) and `frame_count` (B,): N is the most that a clip of the batch
    has, places past a clip's own count are zero.
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
    ) -> None:
        self.split, self.recipe, self.training = split, recipe, training
        self.all_frames = all_frames
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
        size = self.recipe.model.image_size
        wave = np.empty((len(requests), self.samples), dtype=np.int16)
        frame = torch.empty((len(requests), size, size, 3), dtype=torch.uint8)  # as JPEG decoders lay pixels out
        label = np.zeros((len(requests), len(self.labels or ())), dtype=np.float32)
        samples, means, seeds = [], [], []
        every: list[Tensor] = []
        for row, request in enumerate(requests):
            key = self.split.key(request.clip)
            where = f"{self.split.shards[self.split.shard(request.clip)]}: clip {key}"
            seed = fold(self.recipe.seed, "augment", request.epoch, key)
            frames, sound = _kinds(self.split.suffixes(request.clip))
            if not frames or not sound:
                raise DataFault(
                    f"{where} has {len(frames)} frames and {int(bool(sound))} audio members", "kdctool verify SHARDS"
                )
            epoch = request.epoch if self.training else None
            chosen = [frames[place] for place in choose(self.recipe.data, len(frames), epoch, seed, where)]
            read = frames if self.all_frames else chosen
            wanted = ("json", sound, *read) if self.labels is not None else (sound, *read)
            data = self.reader.read(request.clip, wanted)
            heard = decode.audio(data[sound], self.sample_rate, f"{where}.{sound}", out=wave[row])
            if len(heard) < WINDOW_SIZE:
                raise DataFault(f"{where} has {len(heard)} samples of audio, less than one window of {WINDOW_SIZE}")
            if len(heard) > self.samples:
                wave[row] = heard[: self.samples]
            wave[row, len(heard) :] = 0
            samples.append(min(len(heard), self.samples))
            means.append(_mean(heard))
            seeds.append(seed)
            frame[row] = self._picture([decode.frame(data[name], f"{where}.{name}") for name in chosen]).permute(
                1, 2, 0
            )
            if self.all_frames:
                every.append(torch.stack([self._sized(decode.frame(data[n], f"{where}.{n}")) for n in frames]))
            if self.labels is not None:
                label[row] = self._label(decode.description(data["json"], f"{where}.json"), where)
        raw = {
            "waveform": torch.from_numpy(wave),
            "samples": torch.tensor(samples),
            "mean": torch.tensor(means, dtype=torch.float32),
            "frame": frame.permute(0, 3, 1, 2),
            "clip": torch.tensor([request.clip for request in requests]),
            "row": torch.tensor([request.row for request in requests]),
            "seed": torch.tensor(seeds, dtype=torch.int64),
        }
        if self.all_frames:
            raw["frames"] = torch.nn.utils.rnn.pad_sequence(every, batch_first=True)
            raw["frame_count"] = torch.tensor([len(one) for one in every])
        if self.labels is not None:
            raw["label"] = torch.from_numpy(label)
        return raw

    def _picture(self, frames: list[Tensor]) -> Tensor:
        return self._sized(frames[0]) if len(frames) == 1 else collage(frames, self.recipe.model.image_size)

    def _sized(self, frame: Tensor) -> Tensor:
        size = self.recipe.model.image_size
        if frame.shape[1:] == (size, size):
            return frame
        return torch.from_numpy(resize_crop(frame.permute(1, 2, 0).numpy(), size).copy()).permute(2, 0, 1)

    def _label(self, about: dict[str, Any], where: str) -> np.ndarray:
        assert self.labels is not None
        target = np.zeros(len(self.labels), dtype=np.float32)
        for name in about.get("labels", []):
            if name not in self.labels:
                raise DataFault(f"{where} has label '{name}', which is not in the label list of the shards' index")
            target[self.labels[name]] = 1
        return target


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
