"""One media file to model input, by the way that extract, shard and eval take: the same numbers."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdctool.data import decode
from kdctool.data.clips import WINDOW_SHIFT, WINDOW_SIZE
from kdctool.data.device import ToBatch
from kdctool.data.frames import normalise, resize_crop, short_side
from kdctool.errors import DataFault, UsageFault
from kdctool.media import binary, engine
from kdctool.media.messages import Task
from kdctool.media.rows import Row
from kdctool.media.settings import Item, Lacking, Settings, Tools
from kdctool.recipe import Recipe


@dataclass(frozen=True)
class Window:
    """What the model is given of one window of a file. A modality that the file lacks is None."""

    start_s: float
    duration_s: float
    fbank: Tensor | None
    """(1, T, F)."""
    frames: Tensor | None
    """(N, C, H, W), normalised."""

    def heard(self) -> Tensor:
        """The filter bank; UsageFault where the file has no sound."""
        if self.fbank is None:
            raise UsageFault("the file has no sound, and this needs it")
        return self.fbank

    def middle(self) -> Tensor:
        """Frame N // 2, (1, C, H, W); UsageFault where the file has no picture."""
        if self.frames is None:
            raise UsageFault("the file has no picture, and this needs it")
        return self.frames[len(self.frames) // 2 :][:1]


def settings_for(recipe: Recipe, clip: dict[str, Any]) -> Settings:
    """How the clips were extracted that a model was trained on; `clip` is the record of its shards, {} if unknown.

    Without a record: windows as long as the filter bank, 10 s at most, and frames as large as the model needs them.
    """
    known = {field.name: clip[field.name] for field in fields(Settings) if clip.get(field.name) is not None}
    known.setdefault("window_s", min(10.0, recipe.model.audio_frames / 100))
    known.setdefault("size", short_side(recipe.model.image_size, recipe.data.crop_pct))
    return Settings(**known)


def read(path: Path, recipe: Recipe, settings: Settings, lacking: Lacking = "none") -> list[Window]:
    """The windows of a media file: the first, or all with `settings.stride_s`.

    Decoding happens in a worker process under the limits of `kdctool extract`. DataFault says why a file cannot be
    used; `lacking` names the modality that it may do without.
    """
    if not path.is_file():
        raise UsageFault(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    wanted = Settings(**{**vars(settings), "allow_missing": lacking})
    wanted.check()
    with _extracted(path, wanted) as (folder, rows):
        return [_window(folder, row, recipe, wanted, path) for row in rows]


@contextmanager
def _extracted(path: Path, settings: Settings) -> Iterator[tuple[Path, list[Row]]]:
    ffmpeg = "" if settings.decoder == "pyav" else binary.find()
    tools = Tools(ffmpeg, binary.version(ffmpeg) if ffmpeg else "", 60.0 + 6 * settings.window_s)
    with tempfile.TemporaryDirectory(prefix="kdctool-") as name:
        folder = Path(name)
        item = Item(os.path.abspath(path), path.name)
        with engine.open_pool("local", "", 1, folder, settings, tools) as pool:
            rows = [row for _, row in pool.run([Task(item)]) if row is not None]
        for row in rows:
            if row["status"] == "quarantined":
                raise DataFault(f"{path}: {row['reason']}", "docs/data.md explains the reasons")
        yield folder, sorted(rows, key=lambda row: float(row["start_s"]))


def _window(folder: Path, row: Row, recipe: Recipe, settings: Settings, path: Path) -> Window:
    fbank = frames = None
    if row["audio"]:
        data = (folder / row["audio"]).read_bytes()
        fbank = audio_input(decode.audio(data, settings.sample_rate, str(path)), recipe, str(path))
    if row["frames"]:
        stored = [decode.frame((folder / name).read_bytes(), str(path)) for name in row["frames"]]
        frames = torch.stack([_sized(frame, recipe) for frame in stored])
        frames = normalise(frames, recipe.data.image_mean, recipe.data.image_std)
    return Window(float(row["start_s"]), float(row["duration_s"]), fbank, frames)


def audio_input(samples: np.ndarray, recipe: Recipe, where: str) -> Tensor:
    """Int16 samples (S,) at 16 kHz as the model is given them, (1, T, F); DataFault when they fill no window."""
    if len(samples) < WINDOW_SIZE:
        raise DataFault(f"{where} has {len(samples)} samples of audio, less than one window of {WINDOW_SIZE}")
    to_batch = ToBatch(recipe, torch.device("cpu"), training=False)
    most = (recipe.model.audio_frames - 1) * WINDOW_SHIFT + WINDOW_SIZE
    wave = np.zeros((1, most), dtype=np.int16)
    wave[0, : min(len(samples), most)] = samples[:most]
    mean = torch.tensor([samples.mean(dtype=np.float64)], dtype=torch.float32)
    return to_batch.fbank(torch.from_numpy(wave), torch.tensor([min(len(samples), most)]), mean)


def _sized(frame: Tensor, recipe: Recipe) -> Tensor:
    size, crop_pct = recipe.model.image_size, recipe.data.crop_pct
    if frame.shape[1:] == (size, size) and short_side(size, crop_pct) == size:
        return frame
    return torch.from_numpy(resize_crop(frame.permute(1, 2, 0).numpy(), size, crop_pct).copy()).permute(2, 0, 1)
