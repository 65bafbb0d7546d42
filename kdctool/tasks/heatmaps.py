"""The few clips of a localization that the report draws: frame, map, boxes."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdctool.seeds import fold
from kdctool.tasks import EvalData
from kdctool.tasks.annotated import Annotated, Corners
from kdctool.tasks.maps import to_unit_range
from kdctool.tasks.metrics import Floats

SHOWN = 24


def chosen(clips: list[int], uids: list[str], purpose: str, count: int = SHOWN) -> list[int]:
    """At most `count` of the clips, by a hash of their uids: the same whatever else is scored and in which order."""
    return sorted(clips, key=lambda clip: (fold(0, purpose, uids[clip]), uids[clip]))[:count]


def as_picture(frame: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.uint8]:
    """Model input (B, C, H, W) as uint8 (B, H, W, C)."""
    shape = (-1, 1, 1)
    scaled = frame.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


class Heatmaps:
    """Keeps what is drawn of the chosen clips as they come by."""

    def __init__(self, truth: Annotated, data: EvalData) -> None:
        self._truth, self._data = truth, data
        self.clips = chosen(list(truth.clips), data.uids, "localization")
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._maps: dict[int, NDArray[np.float16]] = {}

    def add(self, clips: list[int], frame: Tensor, maps: Tensor) -> None:
        """frame: (B, C, H, W) model input, maps: (B, rows, columns) cosines."""
        for row, clip in enumerate(clips):
            if clip not in self.clips:
                continue
            self._frames[clip] = as_picture(frame[row : row + 1], self._data.input_mean, self._data.input_std)[0]
            size = frame.shape[-2:]
            full = F.interpolate(maps[row].double()[None, None].cpu(), size=size, mode="bilinear", align_corners=False)
            self._maps[clip] = to_unit_range(full[0].numpy())[0].astype(np.float16)

    def arrays(self, score: dict[int, float]) -> dict[str, NDArray[Any]]:
        """The assets; `score` is each clip's overlap."""
        held = [self._truth.clips[clip] for clip in self.clips]
        return {
            "uids": np.array([self._data.uids[clip] for clip in self.clips]),
            "frame": np.stack([self._frames[clip] for clip in self.clips]),
            "map": np.stack([self._maps[clip] for clip in self.clips]),
            "boxes": _padded([places.sounding for places in held]),
            "silent": _padded([places.silent for places in held]),
            "score": np.array([score[clip] for clip in self.clips]),
        }


def _padded(boxes: list[Corners]) -> Floats:
    """(Q, most boxes, 4), NaN where a clip has fewer."""
    full = np.full((len(boxes), max(map(len, boxes)), 4), np.nan)
    for row, held in enumerate(boxes):
        full[row, : len(held)] = np.array(held).reshape(-1, 4)
    return full
