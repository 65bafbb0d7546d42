"""From the arms of a study to whole recipes, and whether they differ in nothing but what the study declares."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tomli_w

from kdctool.errors import UsageFault
from kdctool.recipe.load import load
from kdctool.recipe.sections import Recipe
from kdctool.recipe.study import Study
from kdctool.recipe.study_parts import Arm
from kdctool.recipe.write import changed_keys, flat, result_keys

_OWN = ("name", "seed")
_LENGTH = ("training.epochs", "optim.warmup_epochs")
"""What the sweep sets itself where the study says how many steps."""
_FINETUNE = "finetune."

Keys = dict[str, Any]
"""Dotted keys of a recipe and their values."""


@dataclass(frozen=True)
class Best:
    """The best arm of a study that has results, as another study takes it over."""

    study: str
    arm: str
    recipe: str
    """Its recipe file."""
    set: Keys
    """What it sets, with all that it took over itself."""
    common: Keys
    """What its study sets in all arms."""
    length: float
    """Its steps over those of its study."""
    shares_recipe: bool
    """Whether all arms of its study start from equal recipes."""

    def __str__(self) -> str:
        return f"arm {self.arm} of study {self.study}"


@dataclass(frozen=True)
class Definition:
    """An arm as it will be trained, but for the number of steps."""

    recipe: Recipe
    supervision: Recipe | None
    """With training = 'supervised': the recipe of that training. `recipe` has the finetuning of the evaluations."""
    own: Keys
    """What the arm sets or has taken over: what another study takes over, should it be the best."""
    length: float
    """Steps over those of the study, unless the arm has flops_of."""
    took: Best | None
    """The arm of another study that it is."""


def resolve(study: Study, overrides: list[str], best: Callable[[str], Best]) -> dict[str, Recipe]:
    """The recipe of every arm, before its length is set; `best` gives the best arm of a study file."""
    return {name: found.recipe for name, found in define(study, overrides, best).items()}


def define(study: Study, overrides: list[str], best: Callable[[str], Best]) -> dict[str, Definition]:
    """Every arm, before its length is set; `best` gives the best arm of a study file.

    UsageFault names every key in which arms differ without the study declaring it, and what of another study's best
    arm could not be taken over.
    """
    common = dict(flat(study.set))
    shared = {key: value for key, value in _shared(study, best).items() if key not in common}
    found = {arm.name: _define(study, arm, shared, common, overrides, best) for arm in study.arms}
    compared = {arm.name: found[arm.name] for arm in study.arms if not arm.is_reference}
    declared = {*study.varies}
    for definition in compared.values():
        declared |= {key for key, value in definition.own.items() if key not in shared or value != shared[key]}
    if compared:
        _check(study, {name: item.recipe for name, item in compared.items()}, declared)
    return found


def as_overrides(keys: Keys) -> list[str]:
    """Dotted keys and values as `--set` takes them."""
    return [f"{key}={_inline(value)}" for key, value in keys.items()]


def with_length(recipe: Recipe, epochs: int, warmup: float) -> Recipe:
    """The recipe for another number of epochs; `warmup` is a share of them, 0 leaves the recipe's."""
    training = recipe.training.model_copy(update={"epochs": epochs})
    optim = recipe.optim.model_copy(update={"warmup_epochs": warmup * epochs}) if warmup else recipe.optim
    return recipe.model_copy(update={"training": training, "optim": optim})


def _inline(value: Any) -> str:
    """A TOML value in one piece; tomli_w would write a long list of tables as [[...]], which is none."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def _shared(study: Study, best: Callable[[str], Best]) -> Keys:
    """What the best arm of the study's own `best_of` sets: for all arms, so it must be nothing but keys."""
    if not study.best_of:
        return {}
    found = best(study.best_of)
    beyond = [] if found.shares_recipe else ["a recipe that other arms there do not have"]
    if abs(found.length - 1) > 1e-9:
        beyond.append(f"a length of its own ({found.length:.4g})")
    if beyond:
        raise UsageFault(
            f"best_of of the study takes over what {found} sets, but that arm is more than its `set`: "
            + " and ".join(beyond),
            "name it in `best_of` of an arm: that takes over the whole arm",
        )
    return found.set


def _define(
    study: Study, arm: Arm, shared: Keys, common: Keys, overrides: list[str], best: Callable[[str], Best]
) -> Definition:
    took = best(arm.best_of) if arm.best_of else None
    own = {**shared, **(took.set if took else {}), **dict(flat(arm.set))}
    path = arm.recipe or (took.recipe if took else study.recipe)
    taught: Keys = {}
    if arm.training == "supervised":
        taught = {key: value for key, value in dict(flat(arm.set)).items() if key.startswith(_FINETUNE)}
    changes = {**common, **{key: value for key, value in own.items() if key not in taught}}
    recipe = _load(arm, path, [*as_overrides(changes), *overrides])
    supervision = None
    if arm.training == "supervised":
        supervision = _load(arm, path, [*as_overrides({**changes, **taught}), *overrides])
        _check_supervision(arm, supervision)
    if took:
        _check_taken(arm, took, path, changes, overrides)
    length = took.length if took and not arm.has_length else arm.length
    return Definition(recipe, supervision, own, length, took)


def _load(arm: Arm, path: str, changes: list[str]) -> Recipe:
    try:
        return load(path, changes)
    except UsageFault as fault:
        raise UsageFault(f"arm {arm.name}: {fault.cause}", fault.next_step) from fault


def _check_supervision(arm: Arm, recipe: Recipe) -> None:
    """UsageFault where the training of a supervised arm is not one of the whole encoder on all labels."""
    options = recipe.finetune
    if options.per_class or options.share < 1:
        few = f"per_class = {options.per_class}" if options.per_class else f"share = {options.share:g}"
        raise UsageFault(f"arm {arm.name} is supervised by all training labels, but finetune.{few}", "leave it out")
    if not options.trains_encoder:
        raise UsageFault(
            f"arm {arm.name} is supervised from scratch, but its finetuning leaves the encoder frozen",
            'set finetune.freeze_encoder = false and finetune.head = "linear"',
        )


def _check_taken(arm: Arm, took: Best, path: str, changes: Keys, overrides: list[str]) -> None:
    """UsageFault where the arm would be something else than the arm that it takes over, but for its own `set`."""
    set_here = {key: value for key, value in dict(flat(arm.set)).items() if key in changes}
    theirs = _load(arm, took.recipe, [*as_overrides({**took.common, **took.set, **set_here}), *overrides])
    mine = _load(arm, path, [*as_overrides(changes), *overrides])
    wanted, ours = (
        {key: value for key, value in result_keys(recipe).items() if key not in (*_OWN, *_LENGTH)}
        for recipe in (theirs, mine)
    )
    odd = [change for change in changed_keys(wanted, ours) if not _is_beneath(change.partition(":")[0], changes)]
    if odd:
        rows = "\n  ".join(odd)
        raise UsageFault(
            f"arm {arm.name} takes over {took}, but would be another:\n  {rows}",
            "leave out `recipe` of the arm to have the one taken over, or name the key in its `set`",
        )


def _is_beneath(key: str, known: Iterable[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in known)


def _check(study: Study, recipes: dict[str, Recipe], declared: set[str]) -> None:
    ignored = _OWN + (_LENGTH if study.steps else ())
    keys = {
        name: {key: value for key, value in result_keys(recipe).items() if key not in ignored}
        for name, recipe in recipes.items()
    }
    first = next(iter(recipes))
    found: dict[str, list[str]] = {}
    for name in recipes:
        for change in changed_keys(keys[first], keys[name]):
            key = change.partition(":")[0]
            if not _is_beneath(key, declared):
                found.setdefault(key, []).append(f"{change} (arm {name} against {first})")
    if found:
        rows = "\n  ".join(row for rows in found.values() for row in rows)
        raise UsageFault(
            f"the arms differ in more than the study declares:\n  {rows}",
            "undo it, or name the key in `varies` when it is part of the comparison",
        )
