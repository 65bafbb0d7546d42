"""What a page is made from, as the stage read it: the run, its curves, its evaluations, and what was not evaluated."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdctool.report.clips import Clip, Clips

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Expected:
    """A published number of the recipe."""

    task: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class RunFacts:
    """The run, in words and digests."""

    name: str
    path: str
    kind: str
    state: str
    note: str = ""
    step: int | None = None
    next_step: str = ""
    recipe: str = ""
    """The text of recipe.toml."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Dotted keys that differ from the defaults."""
    facts: dict[str, str] = field(default_factory=dict)
    """Digests and versions, by what they are of."""
    checkpoints: tuple[tuple[str, int, bool], ...] = ()
    """Name, bytes, whether it is complete."""
    problems: tuple[str, ...] = ()
    expected: tuple[Expected, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A folder below RUN/eval. `problem` says why its numbers, `assets_problem` why its pictures cannot be read."""

    folder: str
    results: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """The whole of details.json: notes, options, details, model, data, versions."""
    assets: Arrays = field(default_factory=dict)
    problem: str = ""
    assets_problem: str = ""
    clips: Clips | None = None

    @property
    def task(self) -> str:
        return str(self.results.get("task") or self.folder)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        found = self.results.get("metrics")
        return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}

    @property
    def found(self) -> dict[str, Any]:
        """What the task itself wrote into details.json."""
        found = self.details.get("details")
        return found if isinstance(found, dict) else {}

    def clip(self, uid: str) -> Clip:
        if self.clips is None:
            return Clip(uid, problem="the shards that were scored are not known")
        return self.clips.get(uid)


@dataclass(frozen=True)
class NotDone:
    """A task that this run was not scored on: the command that does it, or what stands against it."""

    task: str
    command: str
    reason: str = ""


@dataclass(frozen=True)
class Inputs:
    """Everything a page shows."""

    title: str
    run: RunFacts
    rows: list[dict[str, Any]]
    """Rows of metrics.jsonl in order."""
    evaluations: list[Evaluation]
    not_done: list[NotDone]
    version: str


def strings(found: Arrays, name: str) -> list[Any]:
    """An array of uids as a list of str, nested as it is."""
    listed: list[Any] = np.asarray(found[name]).astype(str).tolist()
    return listed
