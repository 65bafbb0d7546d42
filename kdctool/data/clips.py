"""A split of the shards as a map from requests to decoded clips; what a loader's worker runs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdctool.data import decode
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
(B, C, H, W), clip, row, seed (B,) int64, label (B, classes) when there are any."""


@dataclass
class Failed:
    """An error on its way from a worker to the training process, with its type and exit code intact."""

    error: KdctoolError


class Clips(torch.utils.data.Dataset[Any]):
    """Decodes the clips of one split. `training` chooses random frames; otherwise the middle one is taken."""

    def __init__(self, index: Index, split: Split, recipe: Recipe, *, training: bool, with_labels: bool) -> None:
        self.split, self.recipe, self.training = split, recipe, training
        self.reader = ShardReader(split)
        self.sample_rate = int(index.settings.get("sample_rate", 16000))
        self.labels = {name: place for place, name in enumerate(index.labels)} if with_labels else None
        self.samples = (recipe.model.audio_frames - 1) * WINDOW_SHIFT + WINDOW_SIZE
        if self.sample_rate != 16000:
            raise DataFault(
                f"the shards hold audio at {self.sample_rate} Hz, the filter bank needs 16000 Hz",
                "extract again with --sample-rate 16000",
            )

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, requests: list[Request]) -> Raw | Failed:
        try:
            return self._collate([self._one(request) for request in requests])
        except KdctoolError as error:
            return Failed(error)

    def _one(self, request: Request) -> dict[str, Any]:
        members = self.split.members(request.clip)
        where = f"{self.split.path(request.clip).name}: clip {self.split.key(request.clip)}"
        seed = fold(self.recipe.seed, "augment", request.epoch, self.split.key(request.clip))
        frames = sorted((name for name in members if name.endswith(".jpg")), key=lambda name: int(name.split(".")[0]))
        sounds = [name for name in members if name in ("flac", "wav")]
        if not frames or not sounds:
            raise DataFault(
                f"{where} has {len(frames)} frames and {len(sounds)} audio members", "kdctool verify SHARDS"
            )
        chosen = frames[self._frame(len(frames), request, seed)]
        wanted = ["json", sounds[0], chosen] if self.labels is not None else [sounds[0], chosen]
        data = self.reader.read(request.clip, wanted)
        wave = decode.audio(data[sounds[0]], self.sample_rate, f"{where}.{sounds[0]}")
        if len(wave) < WINDOW_SIZE:
            raise DataFault(f"{where} has {len(wave)} samples of audio, less than one window of {WINDOW_SIZE}")
        item = {
            "clip": request.clip,
            "row": request.row,
            "seed": seed,
            "wave": wave,
            "frame": self._sized(decode.frame(data[chosen], f"{where}.{chosen}")),
        }
        if self.labels is not None:
            item["label"] = self._label(decode.description(data["json"], f"{where}.json"), where)
        return item

    def _frame(self, stored: int, request: Request, seed: int) -> int:
        if not self.training:
            return stored // 2
        return request.epoch % stored if self.recipe.data.frame == "cycle" else fold(seed, "frame") % stored

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

    def _collate(self, items: list[dict[str, Any]]) -> Raw:
        wave = np.zeros((len(items), self.samples), dtype=np.int16)
        for row, item in zip(wave, items, strict=True):
            kept = item["wave"][: self.samples]
            row[: len(kept)] = kept
        raw = {
            "waveform": torch.from_numpy(wave),
            "samples": torch.tensor([min(len(item["wave"]), self.samples) for item in items]),
            "mean": torch.tensor([item["wave"].mean(dtype=np.float64) for item in items], dtype=torch.float32),
            "frame": torch.stack([item["frame"] for item in items]),
        }
        for name in ("clip", "row", "seed"):
            raw[name] = torch.tensor([item[name] for item in items], dtype=torch.int64)
        if self.labels is not None:
            raw["label"] = torch.from_numpy(np.stack([item["label"] for item in items]))
        return raw
