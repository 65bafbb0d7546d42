"""The clips a page shows: their picture, sound and labels, read from the shards by uid, or why they cannot be."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdctool.data import decode
from kdctool.data.fbank import centre, log_mel
from kdctool.errors import DataFault, KdctoolError
from kdctool.report.pictures import levels, picture, sound, spectrogram
from kdctool.shards import index as shard_index
from kdctool.shards.read import ShardReader

MEL_BINS = 96
"""Of the spectrograms in a gallery: enough to be looked at."""


@dataclass(frozen=True)
class Clip:
    """A clip as it lies in the shards. `problem` says what of it cannot be shown, and why."""

    uid: str
    about: dict[str, Any] = field(default_factory=dict)
    frame: npt.NDArray[np.uint8] | None = None
    """The middle one, (H, W, 3): the frame that the tasks look at."""
    sound: npt.NDArray[np.int16] | None = None
    sample_rate: int = 16_000
    problem: str = ""

    @property
    def name(self) -> str:
        return str(self.about.get("source") or self.uid)

    @property
    def labels(self) -> list[str]:
        found = self.about.get("labels")
        return [str(label) for label in found] if isinstance(found, list) else []

    @property
    def seconds(self) -> float:
        return 0.0 if self.sound is None else len(self.sound) / self.sample_rate

    def thumbnail(self, edge: int) -> str:
        assert self.frame is not None
        return picture(self.frame, edge)

    def spectrogram(self, edge: int) -> str:
        assert self.sound is not None
        fbank = log_mel(centre(torch.from_numpy(self.sound.copy()))[None], self.sample_rate, MEL_BINS)[0].numpy()
        return spectrogram(fbank, *levels(fbank), edge)

    def played(self, edge: int) -> str:
        assert self.sound is not None
        return sound(self.sound, self.sample_rate)


class Clips:
    """The clips of one split. Where the shards cannot be read, `problem` says why and every clip is only a name."""

    def __init__(self, folder: Path, split: str, digest: str = "") -> None:
        """`digest`: of the data that was scored; other data would show pictures of other clips."""
        self.folder, self.split = folder, split
        self.problem = ""
        self._places: dict[str, int] = {}
        self._known: dict[str, Clip] = {}
        try:
            index = shard_index.load(folder, index_foreign=False)
            if digest and index.digest != digest:
                raise DataFault(f"{folder} now holds other data ({index.digest[:12]}) than was scored ({digest[:12]})")
            found = index.split(split)
        except KdctoolError as error:
            self.problem = error.cause
            return
        self._rate = int(index.settings.get("sample_rate") or 16_000)
        self._reader = ShardReader(found)
        self._places = {found.key(i): i for i in range(len(found))}

    def get(self, uid: str) -> Clip:
        """The clip `uid`; with a problem instead of pictures where it is not there or damaged."""
        if uid not in self._known:
            self._known[uid] = self._read(uid)
        return self._known[uid]

    def _read(self, uid: str) -> Clip:
        if self.problem:
            return Clip(uid, problem="shards cannot be read")
        if uid not in self._places:
            return Clip(uid, problem="not in the shards")
        i = self._places[uid]
        names = self._reader.split.suffixes(i)
        frames = sorted((name for name in names if name.endswith(".jpg")), key=lambda name: int(name.split(".")[0]))
        audio = next((name for name in names if name in decode.AUDIO), None)
        wanted = [name for name in ("json", audio, frames[len(frames) // 2] if frames else None) if name in names]
        where = f"{self._reader.split.path(i).name}: {uid}"
        try:
            found = self._reader.read(i, [name for name in wanted if name])
            return Clip(
                uid,
                decode.description(found["json"], where) if "json" in found else {},
                _frame(found, where),
                decode.audio(found[audio], self._rate, where) if audio else None,
                self._rate,
                "" if audio and frames else "no sound" if frames else "no picture",
            )
        except DataFault as fault:
            return Clip(uid, problem=fault.cause)


def _frame(found: dict[str, bytes], where: str) -> npt.NDArray[np.uint8] | None:
    for name, data in found.items():
        if name.endswith(".jpg"):
            pixels: npt.NDArray[np.uint8] = decode.frame(data, where).permute(1, 2, 0).numpy()
            return pixels
    return None
