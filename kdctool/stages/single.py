"""A model to use from Python: single media files in, arrays out, with the numbers of the commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdctool.errors import UsageFault, VerificationFault, quoted
from kdctool.media.settings import Settings
from kdctool.models.image_classifier import patch_tokens
from kdctool.stages import media_file
from kdctool.stages.inpaint_file import Filled, inpainted
from kdctool.stages.load import Opened, open_model
from kdctool.stages.media_file import Window
from kdctool.tasks.localization import similarity_map
from kdctool.tasks.retrieval import unit_embedding

Floats = npt.NDArray[np.float32]
Source = str | PathLike[str]


class Embedded(NamedTuple):
    """Unit vectors of one window; None where the file lacks the modality."""

    audio: Floats | None
    """(D,), comparable with `video` by its inner product."""
    video: Floats | None
    """(D,), of the middle frame."""
    joint: Floats | None
    """(D,), both modalities together; what a classifier on both reads."""


@dataclass(frozen=True)
class Model(Opened):
    """An opened run or export with methods for single files; `encoder` and the rest of `Opened` are there too.

    A model that was trained on pictures takes files of pictures; what needs sound is a UsageFault for it.
    """

    def settings(self, **changes: Any) -> Settings:
        """How files are cut into clips: as the shards were that the model learned from, with `changes`."""
        return replace(media_file.settings_for(self.recipe, self.clip), **changes)

    def embed(self, path: Source) -> Embedded:
        """Embeddings of the first window of a media file; a file may lack one modality."""
        return self._embedded(self._first(path, "both"))

    def embed_windows(self, path: Source, stride_s: float | None = None) -> list[tuple[float, Embedded]]:
        """(start in seconds, embeddings) of every window of a file; `stride_s` defaults to the window's length."""
        settings = self.settings()
        settings = replace(settings, stride_s=stride_s or settings.window_s)
        found = media_file.read(Path(path), self.recipe, settings, "both")
        return [(window.start_s, self._embedded(window)) for window in found]

    def embed_audio(self, path: Source) -> Floats:
        """(D,) unit vector of a file's sound; the file needs no picture."""
        self._hears()
        with _inference():
            return _vector(self.encoder.embed_audio(self._first(path, "video").heard()))

    def embed_video(self, path: Source) -> Floats:
        """(D,) unit vector of a file's middle frame; the file needs no sound."""
        with _inference():
            return _vector(self._tokens(self._first(path, "audio").middle()))

    def similarity(self, audio: Source, video: Source) -> float:
        """Cosine of one file's sound and another's (or the same) picture, in [-1, 1]."""
        return float(self.embed_audio(audio) @ self.embed_video(video))

    def classify(self, path: Source) -> dict[str, float]:
        """Probability of every label, highest first; UsageFault where the model has no classifier."""
        if self.classifier is None:
            raise UsageFault(f"{self.path} has no classifier", f"kdctool finetune {quoted(self.path)} makes one")
        uses = self.classifier.modality
        window = self._first(path, "none" if uses == "both" else "video" if uses == "audio" else "audio")
        batch = {}
        if uses != "video":
            batch["fbank"] = window.heard()
        if uses != "audio":
            batch["frame"] = window.middle()
        with _inference():
            logits = self.classifier(batch).float()[0]
        odds = _finite(logits.sigmoid() if self.multi_label else logits.softmax(0))
        return dict(sorted(zip(self.labels, odds.tolist(), strict=True), key=lambda pair: -pair[1]))

    def localize(self, path: Source) -> Floats:
        """Where the sound comes from: cosine of the sound and each place of each frame, (N, rows, columns)."""
        self._hears()
        window = self._first(path, "none")
        assert window.frames is not None
        with _inference():
            heard = window.heard().expand(len(window.frames), -1, -1)
            return _finite(similarity_map(self.encoder, heard, window.frames))

    def inpaint(
        self,
        path: Source,
        remove: Literal["audio", "video"] = "audio",
        ratio: float = 0.75,
        masking: str = "random",
        statistics: Literal["own", "target"] = "own",
    ) -> Filled:
        """Remove a part of one modality and fill it in from the rest of it and from the other modality.

        `ratio` is the share of its tokens that goes, drawn by the recipe's seed and the file's name; 1 leaves the
        other modality alone. UsageFault where the model was saved without its decoder, or predicts normalised
        patches and `statistics` is not "target" (then mean and spread of each patch are taken from the answer).
        """
        self._hears()
        window = self._first(path, "none")
        return inpainted(self, window, remove, ratio, masking, statistics, Path(path).name)

    def _first(self, path: Source, lacking: Any) -> Window:
        return media_file.read(Path(path), self.recipe, self.settings(stride_s=None), lacking)[0]

    def _hears(self) -> None:
        if self.is_image:
            raise UsageFault(f"{self.path} is an image model: it hears nothing", "embed_video or classify")

    def _tokens(self, frame: Tensor) -> Tensor:
        tokens: Tensor = patch_tokens(self.encoder, frame) if self.is_image else self.encoder.embed_video(frame)
        return tokens

    def _embedded(self, window: Window) -> Embedded:
        audio = video = joint = None
        with _inference():
            if window.fbank is not None and not self.is_image:
                audio = _vector(self.encoder.embed_audio(window.fbank))
            if window.frames is not None:
                video = _vector(self._tokens(window.middle()))
            if audio is not None and window.frames is not None:
                both = self.encoder(window.fbank, window.middle(), single=False).joint
                assert both is not None
                joint = _vector(both)
        return Embedded(audio, video, joint)


def open_for_use(path: Path) -> Model:
    """Open a run or an export as a `Model`."""
    opened = open_model(path, images=True)
    return Model(**{field.name: getattr(opened, field.name) for field in fields(Opened)})


@contextmanager
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _vector(tokens: Tensor) -> Floats:
    return _finite(unit_embedding(tokens)[0])


def _finite(values: Tensor) -> Floats:
    if not torch.isfinite(values).all():
        raise VerificationFault("the model gave values that are not finite", "kdctool verify checks its files")
    return values.float().cpu().numpy()
