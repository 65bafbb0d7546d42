"""How good is it: one file per task, found by name. A task scores a model on clips that were really read.

`needs` says which parts of a clip a task looks at, `wants` which part of a model it scores.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdctool.batch import Batch
from kdctool.registry import Registry

tasks = Registry("task", __name__)


@dataclass(frozen=True)
class Metric:
    """A number with its 95 % interval (clustered by source video) and what guessing would score.

    Bounds are NaN where there is only one source video: nothing is known about the spread then.
    """

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class PerClip:
    """Numbers of single clips, in the order in which they were scored: what `kdctool compare` pairs."""

    uids: tuple[str, ...]
    sources: tuple[str, ...]
    columns: dict[str, npt.NDArray[np.float64]]
    """Metric -> (N,) values whose mean is the metric, or (N, classes) scores and targets of a ranking."""


@dataclass(frozen=True)
class Result:
    """What a task found: `n_scored` plus the counts in `missing` is `n_total`."""

    task: str
    protocol: str
    metrics: dict[str, Metric]
    n_scored: int
    n_total: int
    missing: dict[str, int]
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers, for example classes that could not be scored."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further numbers as JSON: a confusion matrix, per-class scores, curves."""
    per_clip: PerClip | None = field(default=None, compare=False)
    assets: dict[str, npt.NDArray[Any]] = field(default_factory=dict, compare=False)
    """Arrays that the report draws: pictures, maps, spectrograms of a few clips."""


@dataclass(frozen=True)
class EvalData:
    """The clips of one evaluation. `batches` can be read once; its `clip` entries index `uids` and `sources`."""

    batches: Iterable[Batch]
    uids: list[str]
    sources: list[str]
    """Source video of each clip: clips of one video are resampled together."""
    n_total: int
    missing: dict[str, int] = field(default_factory=dict)
    """Reason -> clips that never reach `batches`."""
    labels: tuple[str, ...] = ()
    """Names of the label columns."""
    multi_label: bool = False
    abouts: list[dict[str, Any]] = field(default_factory=list)
    """The JSON member of each clip: crop, size, rotation, frame times, labels. Empty where a task reads none."""
    train: "EvalData | None" = None
    """The training split's clips, for a task whose `needs` has 'train'."""
    input_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from the frames' channels in 0-1; with `input_std` it turns model input back into pictures."""
    input_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fbank_mean: float = -5.081
    """Subtracted from the log-mel filter bank; with `fbank_std` it turns model input back into logarithms of power."""
    fbank_std: float = 4.4849
    collages: bool = False
    """batch["frame"] shows four frames of the clip at once (data.tiling)."""
    notes: tuple[str, ...] = ()
    """What is to be said about these clips beside the numbers; the stage puts it before the result's own notes."""
    open_encoder: Callable[[str], Any] | None = None
    """Opens the encoder of another run or export, for a task that compares two; None where nobody can."""


@dataclass(frozen=True)
class Choice:
    """The clips of a split that a task scores, where it does not take all."""

    keep: npt.NDArray[np.bool_]
    """(clips,) whether the clip is one of them."""
    missing: dict[str, int] = field(default_factory=dict)
    """Reason -> clips that were asked for and are not in the split; they count in `n_total`."""
    notes: tuple[str, ...] = ()


class Task(Protocol):
    """A measurement. Constructed with its options section; `run` leaves the model as it found it."""

    protocol: str
    """Versioned id: numbers are comparable only under equal ids."""
    needs: tuple[str, ...]
    """Of 'audio', 'video', 'label', 'about' (the clips' descriptions), 'train' (the training split too)."""
    wants: Literal["encoder", "classifier", "objective"]
    """objective: encoder and decoder as pre-training built them."""
    frames: Literal["mid", "all"]
    """mid: batch["frame"] (B, C, H, W), frame N // 2. all: also batch["frames"] (B, N, C, H, W), of which the first
    batch["frame_count"] (B,) are the clip's; the rest is zero."""

    def run(self, model: Any, data: EvalData) -> Result: ...


@runtime_checkable
class Chooses(Protocol):
    """A task that scores a part of the split. Only that part is read."""

    def choose(self, uids: list[str], sources: list[str], abouts: list[dict[str, Any]]) -> Choice:
        """Of all clips of the split, also those that lack a modality: which are scored."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A task whose demands depend on the model; asked before any clip is read."""

    def prepare(self, model: Any) -> None:
        """Refuse a model that cannot be scored with these options (UsageFault), and set `needs` to what it reads."""
        ...
