"""Which patches of an AV-Digits clip count: those that hold what can be told from the other modality.

Audio patches whose middle lies below 4 kHz and inside the spoken digit; video patches that touch either digit.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.shards.extraction import boxes_in_frame
from kdctool.tasks import EvalData
from kdctool.tasks.truth import load

HIGHEST_HZ = 4000.0
"""The recordings were made at 8 kHz: there is noise alone above."""
_FRAME_S = 0.01
_LOWEST_HZ, _NYQUIST_HZ = 20.0, 8000.0


class Regions:
    """The patches that count, by clip."""

    def __init__(self, path: Path, data: EvalData, model: Any) -> None:
        truth = load(path)
        if truth.format != "avdigits":
            raise UsageFault(
                f"{path} ({truth.format}) does not say when a sound begins", "truth = FILE is AV-Digits' truth.jsonl"
            )
        self._rows, _ = truth.find(data.uids, data.abouts)
        self._data, self._model = data, model

    def __contains__(self, clip: int) -> bool:
        told = self._data.abouts[clip]
        known = clip in self._rows and {"onset_s", "duration_s"} <= set(self._rows[clip].about)
        return known and bool(told.get("crop")) and bool(told.get("frame_times"))

    def audio(self, clip: int) -> Tensor:
        """(La,) 1 where a patch counts."""
        rows, columns = self._model.audio_grid
        about, patch = self._rows[clip].about, self._model.audio_patch
        seconds = (torch.arange(columns) + 0.5) * patch * _FRAME_S
        onset = float(about["onset_s"]) - float(self._data.abouts[clip].get("start_s") or 0.0)
        inside = (seconds >= onset) & (seconds < onset + float(about["duration_s"]))
        low, high = (_mel(hz) for hz in (_LOWEST_HZ, _NYQUIST_HZ))
        mel = low + (torch.arange(rows) + 0.5) * patch * (high - low) / (self._model.mel_bins + 1)
        return ((mel < _mel(HIGHEST_HZ))[:, None] & inside).float().flatten()

    def video(self, clip: int) -> Tensor:
        """(Lv,) 1 where a patch counts."""
        rows, columns = self._model.video_grid
        told = self._data.abouts[clip]
        times = told["frame_times"]
        touched = torch.zeros(rows, columns)
        for boxes in self._rows[clip].at(float(times[len(times) // 2])):
            for x0, y0, x1, y1 in boxes_in_frame(boxes, told):
                down, across = slice(int(y0 * rows), _past(y1 * rows)), slice(int(x0 * columns), _past(x1 * columns))
                touched[down, across] = 1.0
        return touched.flatten()


def _past(place: float) -> int:
    """Index behind the last cell that reaches up to `place`; rounding errors do not open a further cell."""
    return int(place + 1 - 1e-4)


def _mel(hz: float) -> float:
    """Kaldi's mel scale."""
    return 1127.0 * float(torch.tensor(1.0 + hz / 700.0, dtype=torch.float64).log())
