"""A study is one TOML file: arms, seeds, what is measured at the end, and what is compared with what. Torch-free.

Everything that could be chosen after looking at the results stands here before: endpoint, contrasts, margin.
"""

import difflib
import fnmatch
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from kdctool.errors import UsageFault, quoted
from kdctool.recipe.kinds import Names, NonNegative, PositiveFloat, as_tuple
from kdctool.recipe.lines import key_lines, line_of
from kdctool.recipe.load import SHIPPED
from kdctool.recipe.study_parts import Arm, Clusters, Curve, Evaluation, Primary, References, Secondary
from kdctool.registry import Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]*")
Seeds = Annotated[tuple[NonNegative, ...], BeforeValidator(as_tuple), Field(min_length=1)]


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
    best_of: str = ""
    """A study file: all arms take over what its best arm sets, once that study has results; `set` goes first."""
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
    references: References | None = None
    """Which arms are the bottom and the top of each endpoint."""
    curves: Annotated[tuple[Curve, ...], BeforeValidator(as_tuple)] = ()
    """Label efficiency and the like, as tables and a plot."""
    clusters: Clusters | None = None
    """For the bootstrap over clips; without it clips of one video are drawn together."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "Study":
        arms, keys = [arm.name for arm in self.arms], [item.key for item in self.evaluations]
        curves = [curve.name for curve in self.curves]
        lists = (("arms", arms), ("evaluations", keys), ("seeds", [*map(str, self.seeds)]), ("curves", curves))
        for kind, names in lists:
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind}: {', '.join(twice)} occurs more than once")
        for name in (self.name, *arms, *keys):
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot be a name: letters, digits and _ . + = , - only")
        if strange := sorted(set(self._arms_asked_for()) - set(arms)):
            raise ValueError(f"no arm is called {', '.join(strange)}; there are: {', '.join(arms)}")
        for endpoint in self.read:
            if not self.measured_by(endpoint) or not endpoint.partition("/")[2]:
                raise ValueError(f"endpoint '{endpoint}' is not EVALUATION/METRIC; evaluations: {', '.join(keys)}")
        if fault := self._odd_arms():
            raise ValueError(fault)
        return self

    def _arms_asked_for(self) -> Iterator[str]:
        for pair in (*self.primary.contrasts, *self.secondary.contrasts):
            yield from pair
        yield from self.equal_flops
        yield from (arm.flops_of for arm in self.arms if arm.flops_of)
        if self.references:
            yield from (self.references.low, self.references.high, self.references.plain)

    def _odd_arms(self) -> str:
        """What is wrong with arms that each exist, or nothing."""
        if chained := [arm.name for arm in self.arms if arm.flops_of and self.arm(arm.flops_of).flops_of]:
            return f"flops_of of {', '.join(chained)} names an arm that has flops_of itself"
        costed = {*self.equal_flops, *(arm.flops_of for arm in self.arms if arm.flops_of)}
        if odd := [arm.name for arm in self.arms if arm.is_reference and arm.name in costed]:
            return f"{', '.join(odd)} cannot stand in equal_flops or flops_of: it is not pre-trained"
        if bare := [arm.name for arm in self.arms if not (arm.recipe or arm.best_of or self.recipe)]:
            return f"no recipe for {', '.join(bare)}: set `recipe` of the study or of the arm"
        return ""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """What is compared, the primary one first."""
        return tuple(dict.fromkeys((self.primary.endpoint, *self.secondary.endpoints)))

    @property
    def read(self) -> tuple[str, ...]:
        """All that evaluations have to give: what is compared, then what only curves show."""
        return tuple(dict.fromkeys((*self.endpoints, *(one for curve in self.curves for one in curve.endpoints))))

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
    "references": References,
    "curves": Curve,
    "clusters": Clusters,
}


def study_file(path: Path) -> Path:
    """The file that is meant: a shipped study where there is none at `path`."""
    shipped = SHIPPED / "studies" / path.name
    return shipped if not path.exists() and shipped.exists() else path


def load_study(path: Path) -> Study:
    """Read a study; UsageFault lists every error as `file:line  key: cause`."""
    path = study_file(path)
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
            f"kdctool sweep {quoted(path)} --grid SECTION.KEY=VALUE,VALUE --seeds 3",
        )
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        lines = key_lines(text)
        told = [f"{path}:{line_of(lines, item['loc'])}  {explain(item)}" for item in error.errors()]
        raise UsageFault("\n".join(told), "nothing was written") from error
    return _with_paths(study, path.parent)


def _with_paths(study: Study, folder: Path) -> Study:
    """Paths of recipes and studies, from the study file's folder."""

    def found(name: str) -> str:
        return str(folder / name) if name else ""

    arms = tuple(
        arm.model_copy(update={"recipe": found(arm.recipe), "best_of": found(arm.best_of)}) for arm in study.arms
    )
    changed = {"recipe": found(study.recipe), "best_of": found(study.best_of), "arms": arms}
    return study.model_copy(update=changed)


def explain(item: Any) -> str:
    """One error of a study's validation, in a line."""
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
