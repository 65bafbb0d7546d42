"""How good is it: one file per task, found by name. A task scores a model on clips that were really read.

`needs` says which parts of a clip a task looks at, `wants` which part of a model it scores.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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


class Task(Protocol):
    """A measurement. Constructed with its options section; `run` leaves the model as it found it."""

    protocol: str
    """Versioned id: numbers are comparable only under equal ids."""
    needs: tuple[str, ...]
    """Of 'audio', 'video', 'label'."""
    wants: Literal["encoder", "classifier"]

    def run(self, model: Any, data: EvalData) -> Result: ...
