"""The tables of a study file: arms, measurements, comparisons, references, curves. Torch-free."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from kdctool.recipe.kinds import Names, Positive, PositiveFloat, Ratio
from kdctool.registry import Section


def _pairs(value: Any) -> Any:
    return (
        tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value) if isinstance(value, list) else value
    )


Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]


class Arm(Section):
    """One way to train; its cells differ by their seeds alone."""

    name: str
    """Short name; part of folder names."""
    title: str = ""
    """What it is, for tables."""
    recipe: str = ""
    """Recipe of this arm, relative to the study file; empty: the study's, or with `best_of` that of the best arm."""
    set: dict[str, Any] = {}
    """Keys that differ from the recipe: { "objective.self_distillation.weight" = 0.0 }."""
    best_of: str = ""
    """A study file: take over its best arm (recipe, what it sets, length), once that study has results."""
    training: Literal["pretrain", "none", "supervised"] = "pretrain"
    """none: the encoder as it is initialised. supervised: trained from scratch by finetuning on all training labels;
    keys under `finetune.` are for that alone. Both are references, not candidates: out of the comparison of FLOPs."""
    length: PositiveFloat = 1.0
    """Steps over those of the study."""
    flops_of: str = ""
    """An arm: train for as many steps as cost what that arm costs; `length` is then not read."""

    @property
    def is_reference(self) -> bool:
        """Whether it is there to be compared with, not to be chosen."""
        return self.training != "pretrain"

    @property
    def has_length(self) -> bool:
        """Whether it says itself how long it trains."""
        return bool(self.flops_of) or "length" in self.model_fields_set

    @model_validator(mode="after")
    def _reference_has_no_length(self) -> "Arm":
        if self.is_reference and self.has_length:
            key = "flops_of" if self.flops_of else "length"
            raise ValueError(f"arm {self.name}: {key} is of pre-training, but training = '{self.training}'")
        return self


class Evaluation(Section):
    """A measurement at the end of every cell."""

    task: str
    """Name of a task, for example retrieval. A task that scores a classifier is preceded by finetuning."""
    split: str = "test"
    """Split of the shards that is scored."""
    name: str = ""
    """Name of the measurement; empty: TASK-SPLIT."""
    set: dict[str, Any] = {}
    """Keys of the recipe that differ for the finetuning before it."""
    options: dict[str, Any] = {}
    """Options of the task; {shards} in a text stands for the folder of shards."""
    batch_size: Positive = 64
    """Clips at a time; no result depends on it."""

    @property
    def key(self) -> str:
        return self.name or f"{self.task}-{self.split}"

    def options_on(self, shards: Path) -> dict[str, Any]:
        """The options with the folder of shards put in."""
        return {
            name: value.replace("{shards}", str(shards)) if isinstance(value, str) else value
            for name, value in self.options.items()
        }


class Primary(Section):
    """The one number that decides, and the comparisons made with it. They are not adjusted for being several."""

    endpoint: str
    """EVALUATION/METRIC, for example retrieval-test/a2v_r1; gallery_*/a2v_r1 is the mean over these evaluations."""
    contrasts: Pairs = ()
    """Pairs of arms: the first minus the second."""
    goal: Literal["max", "min"] = "max"
    """Which end of it is good; says which arm is best."""


class Secondary(Section):
    """Everything else that is compared; Holm's adjustment counts all of it together."""

    endpoints: Names = ()
    """More EVALUATION/METRIC."""
    contrasts: Pairs = ()
    """More pairs of arms. Every endpoint is read with every pair, those of the primary endpoint included."""


class Clusters(Section):
    """Which clips are not independent, where that is more than clips of one video."""

    file: str
    """JSON lines with a row per clip, relative to the folder of shards."""
    key: str
    """Clips with the same value of it are resampled together."""
    clip: str = "file"
    """What names the clip: the path of its video below the folder that was extracted, or its uid."""


class References(Section):
    """Between which two encoders the others lie, and which endpoints can therefore tell arms apart."""

    low: str
    """The arm at the bottom, for example a random encoder."""
    high: str
    """The arm at the top, for example a supervised encoder."""
    plain: str
    """The arm whose share of the gap between them decides."""
    least: Ratio = 0.25
    """An endpoint whose gap `plain` closes by less than this is uninformative: it hardly moves."""
    most: Ratio = 0.95
    """An endpoint whose gap `plain` closes by more than this is uninformative: there is no room above."""

    @model_validator(mode="after")
    def _keys_agree(self) -> "References":
        if len({self.low, self.high, self.plain}) < 3:
            raise ValueError("low, high and plain are three different arms")
        if self.least >= self.most:
            raise ValueError(f"least = {self.least:g} is not below most = {self.most:g}")
        return self


class Curve(Section):
    """The same number at several sizes of something, for example labels per class: a table and a panel of a plot."""

    name: str
    """Title of its table and panel."""
    x: str
    """What the points differ in, for example labels per class."""
    points: Pairs
    """[what stands at the axis, EVALUATION/METRIC], from left to right. Nothing is tested here: Holm does not count
    them."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(endpoint for _, endpoint in self.points)

    @model_validator(mode="after")
    def _points_differ(self) -> "Curve":
        labels = [label for label, _ in self.points]
        if len(labels) < 2:
            raise ValueError(f"curve '{self.name}' needs two points or more")
        for kind, told in (("point", labels), ("endpoint", list(self.endpoints))):
            if twice := sorted({one for one in told if told.count(one) > 1}):
                raise ValueError(f"curve '{self.name}': {kind} {', '.join(twice)} occurs more than once")
        return self
