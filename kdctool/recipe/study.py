"""A study is one TOML file: arms, seeds, what is measured at the end, and what is compared with what. Torch-free.

Everything that could be chosen after looking at the results stands here before: endpoint, contrasts, margin.
"""

import difflib
import fnmatch
import itertools
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from kdctool.errors import UsageFault
from kdctool.recipe.kinds import Names, NonNegative, Positive, PositiveFloat, as_tuple
from kdctool.recipe.lines import key_lines, line_of
from kdctool.recipe.load import SHIPPED
from kdctool.registry import Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]*")
USUAL_METRIC = {"retrieval": "a2v_r1", "classification": "top1"}
"""What a grid compares where nobody says."""


def _pairs(value: Any) -> Any:
    return (
        tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value) if isinstance(value, list) else value
    )


Seeds = Annotated[tuple[NonNegative, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]


class Arm(Section):
    """One way to train; its cells differ by their seeds alone."""

    name: str
    """Short name; part of folder names."""
    title: str = ""
    """What it is, for tables."""
    recipe: str = ""
    """Recipe of this arm, relative to the study file; empty: the study's."""
    set: dict[str, Any] = {}
    """Keys that differ from the recipe: { "objective.self_distillation.weight" = 0.0 }."""
    best_of: str = ""
    """A study file: take over what its best arm sets, once that study has results."""
    length: PositiveFloat = 1.0
    """Steps over those of the study."""
    flops_of: str = ""
    """An arm: train for as many steps as cost what that arm costs; `length` is then not read."""


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


class Study(Section):
    """Arms, seeds, measurements, comparisons."""

    name: str
    """Short name; results go to studies/NAME."""
    description: str = ""
    """What it asks."""
    protocol: str = ""
    """Version of the protocol that is followed, in words."""
    recipe: str = ""
    """Recipe of all arms that name none of their own, relative to the study file."""
    set: dict[str, Any] = {}
    """Keys that differ from the recipes in all arms."""
    seeds: Seeds = (0,)
    """A seed is one initialisation, one order and one set of base masks: the same in every arm."""
    steps: NonNegative = 0
    """Steps of an arm of length 1, rounded to whole epochs; 0: the epochs of the recipes."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With `steps`: share of an arm's own length that warms up; 0 leaves optim.warmup_epochs as it is."""
    varies: Names = ()
    """Keys in which arms may differ beside those that they set; a section covers its keys."""
    equal_flops: Names = ()
    """Arms that are meant to cost the same; the table says how well they do."""
    arms: Annotated[tuple[Arm, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    """The ways to train."""
    evaluations: Annotated[tuple[Evaluation, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    """The measurements."""
    primary: Primary
    """What decides."""
    secondary: Secondary = Secondary()
    """What else is told."""
    equivalence: PositiveFloat = 0.01
    """`no effect` is said when the 90 % interval of a difference lies inside plus-minus this."""
    clusters: Clusters | None = None
    """For the bootstrap over clips; without it clips of one video are drawn together."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "Study":
        arms, keys = [arm.name for arm in self.arms], [item.key for item in self.evaluations]
        for kind, names in (("arms", arms), ("evaluations", keys), ("seeds", [str(seed) for seed in self.seeds])):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind}: {', '.join(twice)} occurs more than once")
        for name in (self.name, *arms, *keys):
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot be a name: letters, digits and _ . + = , - only")
        asked = {name for pair in (*self.primary.contrasts, *self.secondary.contrasts) for name in pair}
        asked |= {*self.equal_flops, *(arm.flops_of for arm in self.arms if arm.flops_of)}
        if strange := sorted(asked - set(arms)):
            raise ValueError(f"no arm is called {', '.join(strange)}; there are: {', '.join(arms)}")
        for endpoint in self.endpoints:
            if not self.measured_by(endpoint) or not endpoint.partition("/")[2]:
                raise ValueError(f"endpoint '{endpoint}' is not EVALUATION/METRIC; evaluations: {', '.join(keys)}")
        if chained := [arm.name for arm in self.arms if arm.flops_of and self.arm(arm.flops_of).flops_of]:
            raise ValueError(f"flops_of of {', '.join(chained)} names an arm that has flops_of itself")
        if bare := [arm.name for arm in self.arms if not (arm.recipe or self.recipe)]:
            raise ValueError(f"no recipe for {', '.join(bare)}: set `recipe` of the study or of the arm")
        return self

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The primary one first."""
        return tuple(dict.fromkeys((self.primary.endpoint, *self.secondary.endpoints)))

    def measured_by(self, endpoint: str) -> list[Evaluation]:
        """The evaluations over which an endpoint is the mean."""
        return [item for item in self.evaluations if fnmatch.fnmatchcase(item.key, endpoint.partition("/")[0])]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


_SECTIONS: dict[str, type[Section]] = {
    "arms": Arm,
    "evaluations": Evaluation,
    "primary": Primary,
    "secondary": Secondary,
    "clusters": Clusters,
}


def load_study(path: Path) -> Study:
    """Read a study; UsageFault lists every error as `file:line  key: cause`."""
    if not path.exists() and (SHIPPED / "studies" / path.name).exists():
        path = SHIPPED / "studies" / path.name
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageFault(f"cannot read study {path}: {reason}", "recipes/studies/ holds examples") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageFault(f"{path}: not TOML: {error}") from error
    if "arms" not in tree and {"model", "objective", "training"} & tree.keys():
        raise UsageFault(
            f"{path} is a recipe, not a study: it has no [[arms]]",
            f"kdctool sweep {path} --grid SECTION.KEY=VALUE,VALUE --seeds 3",
        )
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        lines = key_lines(text)
        told = [f"{path}:{line_of(lines, item['loc'])}  {_explain(item)}" for item in error.errors()]
        raise UsageFault("\n".join(told), "nothing was written") from error
    return _with_paths(study, path.parent)


def grid_study(
    recipe: Path, axes: list[str], seeds: int, tasks: list[str], endpoint: str = "", split: str = "test"
) -> Study:
    """A study of all combinations of some keys' values: `KEY=V,V`, or `KEY,KEY=V,V` for keys that vary together.

    `tasks` are TASK or TASK:SPLIT; the first arm is what the others are compared with.
    """
    points = [dict(itertools.chain.from_iterable(point)) for point in itertools.product(*map(_axis, axes))]
    arms = [{"name": _name(point), "set": point} for point in points]
    asked = [dict(zip(("task", "split"), (*task.split(":", 1), split), strict=False)) for task in tasks]
    if not endpoint:
        first = asked[0]
        if first["task"] not in USUAL_METRIC:
            raise UsageFault(
                f"which number of {first['task']} shall be compared?",
                f"--endpoint {first['task']}-{first['split']}/METRIC",
            )
        endpoint = f"{first['task']}-{first['split']}/{USUAL_METRIC[first['task']]}"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", recipe.stem) + "-grid"
    tree = {
        "name": name,
        "recipe": str(recipe),
        "seeds": list(range(seeds)),
        "arms": arms,
        "evaluations": asked,
        "primary": {"endpoint": endpoint},
        "secondary": {"contrasts": [[arm["name"], arms[0]["name"]] for arm in arms[1:]]},
    }
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise UsageFault("; ".join(_explain(item) for item in error.errors()), "nothing was written") from error


def _axis(text: str) -> list[list[tuple[str, Any]]]:
    """`a.b,c.d=1,2` as [[(a.b, 1), (c.d, 1)], [(a.b, 2), (c.d, 2)]]."""
    keys, equals, raw = text.partition("=")
    names = [key.strip() for key in keys.split(",")]
    try:
        values = tomllib.loads(f"values = [{raw}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [part.strip() for part in raw.split(",")]  # Bare words: cav_mae,kdc_mae.
    if not equals or not all(names) or not values or "" in values:
        raise UsageFault(f"--grid {text}: expected SECTION.KEY=VALUE,VALUE", "--grid masking.audio_ratio=0.5,0.75")
    return [[(name, value) for name in names] for value in values]


def _name(point: dict[str, Any]) -> str:
    parts = [f"{key.rpartition('.')[2]}={value}" for key, value in point.items()]
    return re.sub(r"[^A-Za-z0-9_.+=,-]+", "-", ",".join(parts)).strip("-")


def _with_paths(study: Study, folder: Path) -> Study:
    """Paths of recipes and studies, from the study file's folder."""

    def found(name: str) -> str:
        return str(folder / name) if name else ""

    arms = tuple(
        arm.model_copy(update={"recipe": found(arm.recipe), "best_of": found(arm.best_of)}) for arm in study.arms
    )
    return study.model_copy(update={"recipe": found(study.recipe), "arms": arms})


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section = _SECTIONS.get(str(item["loc"][0]), Study) if len(item["loc"]) > 1 else Study
        near = difflib.get_close_matches(str(item["loc"][-1]), section.model_fields, n=1)
        return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
    if item["type"] == "missing":
        return f"{key} is missing"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    return f"{key} {item['msg'].replace('Input should be', 'must be')}, got {item['input']!r}"
