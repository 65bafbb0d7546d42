"""From what a model filled in to numbers and pictures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdctool.tasks import EvalData, PerClip, Result
from kdctool.tasks.clip_scores import Columns, Scores, metrics
from kdctool.tasks.filling import inputs, pasted
from kdctool.tasks.heatmaps import as_picture, chosen
from kdctool.tasks.metrics import finite
from kdctool.tasks.pictures import log_spectral_distance, psnr, ssim

MODALITIES = ("audio", "video")
MEASURES = ("mse", "lsd", "psnr", "ssim")
SHOWN = 12
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scale:
    """How model input becomes decibels and pictures."""

    normalised: bool
    """Errors are in units of normalised patches: there are no pictures to compare."""
    fbank_std: float
    mean: Tensor
    std: Tensor
    """(C, 1, 1) each."""

    @classmethod
    def of(cls, data: EvalData, *, normalised: bool) -> "Scale":
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (data.input_mean, data.input_std))
        return cls(normalised, data.fbank_std, mean, std)

    def picture(self, frame: Tensor) -> Tensor:
        """Model input (B, C, H, W) to 0-1; what a display could not show is cut off."""
        return (frame * self.std.to(frame) + self.mean.to(frame)).clamp(0, 1)


def masked_error(filled: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Squared error of patches (B, L, E), mean over the elements and the patches where `counted` (B, L) is 1: (B,).

    NaN where no patch counts.
    """
    error = (filled - true).double().square().mean(-1)
    bad = ~torch.isfinite(error)
    if bad.any():
        finite(np.where(bad.cpu().numpy(), np.nan, 0.0), "errors of filled-in patches")
    return (error * counted).sum(1) / counted.double().sum(1)


def likeness(filled: Pair, raw: Pair, keep: Pair, counted_a: Tensor, model: Any, scale: Scale) -> dict[str, Tensor]:
    """Log-spectral distance of the filled filter bank, PSNR and SSIM of the filled frame, with the kept patches
    pasted in: (B,) each."""
    fbank, frame = inputs(pasted(filled[0], raw[0], keep[0]), pasted(filled[1], raw[1], keep[1]), model)
    true_a, true_v = inputs(*raw, model)
    cells = counted_a.unsqueeze(-1).expand_as(raw[0])
    bins, _ = inputs(cells, raw[1], model)
    one, other = scale.picture(frame), scale.picture(true_v)
    distance = log_spectral_distance(fbank * scale.fbank_std, true_a * scale.fbank_std, bins)
    unknown = counted_a.sum(1) == 0
    return {
        "audio_lsd": distance.masked_fill(unknown, torch.nan),
        "video_psnr": psnr(one, other),
        "video_ssim": ssim(one, other),
    }


class Pictures:
    """The clips that the report draws."""

    def __init__(self, model: Any, data: EvalData, clips: list[int]) -> None:
        self._model, self._data = model, data
        self.clips = chosen(clips, data.uids, "inpainting", SHOWN)
        self._held: dict[int, dict[str, NDArray[Any]]] = {}

    def add(self, clips: list[int], given: Pair, raw: Pair, filled: Pair, keep: Pair) -> None:
        """given: model input, raw: its patches, filled: patches in the same units."""
        for row, clip in enumerate(clips):
            if clip in self.clips:
                one = [(a[row : row + 1], v[row : row + 1]) for a, v in (given, raw, filled, keep)]
                self._held[clip] = self._drawn(*one)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The assets."""
        uids = np.array([self._data.uids[clip] for clip in self.clips])
        names = [name for name in next(iter(self._held.values()), {})]
        stacked = {name: np.stack([self._held[clip][name] for clip in self.clips]) for name in names}
        return {"audio.uids": uids, "video.uids": uids, **stacked}

    def _drawn(self, given: Pair, raw: Pair, filled: Pair, keep: Pair) -> dict[str, NDArray[Any]]:
        mean, std = self._data.input_mean, self._data.input_std
        sound_filled, frame_filled = inputs(
            pasted(filled[0], raw[0], keep[0]), pasted(filled[1], raw[1], keep[1]), self._model
        )
        gone = inputs(_all_but(keep[0], raw[0]), _all_but(keep[1], raw[1]), self._model)
        bins, removed = gone[0][0].bool().cpu(), gone[1][0, 0].bool().cpu().numpy()  # (T, F), (H, W)
        shown = as_picture(given[1], mean, std)[0]
        sound = given[0][0].float().cpu()
        return {
            "audio.original": _half(sound),
            "audio.masked": _half(sound.masked_fill(bins, torch.nan)),
            "audio.filled": _half(sound_filled[0].cpu()),
            "video.original": shown,
            "video.masked": np.where(removed[..., None], np.uint8(128), shown),
            "video.filled": as_picture(frame_filled, mean, std)[0],
            "video.removed": removed,
        }


def summarised(
    protocol: str,
    data: EvalData,
    clips: list[int],
    skipped: int,
    scores: Scores,
    pictures: Pictures,
    notes: tuple[str, ...],
) -> Result:
    """The result: every score beside what the mean of the visible patches scores, and the gains."""
    columns = _in_order(scores.columns(clips))
    sources = [data.sources[clip] for clip in clips]
    missing = dict(data.missing)
    if skipped:
        missing["not_annotated"] = missing.get("not_annotated", 0) + skipped
    found = metrics(columns, sources, {name: _chance(name, columns) for name in columns})
    per_clip = PerClip(tuple(data.uids[clip] for clip in clips), tuple(sources), columns)
    return Result(
        "inpainting", protocol, found, len(clips), data.n_total, missing, notes, {}, per_clip, pictures.arrays()
    )


def _in_order(columns: Columns) -> Columns:
    """Audio before video, and the gains behind what they are made of."""
    found: Columns = {}
    for modality in MODALITIES:
        own = {name: values for name, values in columns.items() if name.startswith(modality)}
        error = f"{modality}_mse"
        found.update(sorted(own.items(), key=lambda item: MEASURES.index(item[0].split("_")[1])))
        found[f"{modality}_gain"] = own[f"{error}_alone"] - own[error]
        if f"{error}_shuffled" in own:
            found[f"{modality}_gain_shuffled"] = own[f"{error}_alone"] - own[f"{error}_shuffled"]
    return found


def _chance(name: str, columns: Columns) -> float:
    """What the mean of the visible patches scores, where nothing is visible that of all data; 0 for a gain."""
    modality, measure, *rest = name.split("_")
    if measure == "gain":
        return 0.0
    guess = f"{modality}_{measure}_" + ("cross_mean" if rest[:1] == ["cross"] else "mean")
    return float(np.nanmean(columns[guess]))


def _all_but(keep: Tensor, like: Tensor) -> Tensor:
    """1 in every patch (B, L, E) but those at `keep` (B, K)."""
    return torch.ones_like(like).scatter(1, keep.unsqueeze(-1).expand(-1, -1, like.shape[-1]), 0.0)


def _half(values: Tensor) -> NDArray[np.float16]:
    return values.numpy().astype(np.float16)
