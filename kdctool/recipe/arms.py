"""From the arms of a study to whole recipes, and whether they differ in nothing but what the study declares."""

import json
from collections.abc import Callable
from typing import Any

import tomli_w

from kdctool.errors import UsageFault
from kdctool.recipe.load import load
from kdctool.recipe.sections import Recipe
from kdctool.recipe.study import Arm, Study
from kdctool.recipe.write import changed_keys, flat, result_keys

_OWN = ("name", "seed")
_LENGTH = ("training.epochs", "optim.warmup_epochs")
"""What the sweep sets itself where the study says how many steps."""


def resolve(study: Study, overrides: list[str], best: Callable[[str], dict[str, Any]]) -> dict[str, Recipe]:
    """The recipe of every arm, before its length is set; `best` gives what the best arm of a study file sets.

    UsageFault names every key in which arms differ without the study declaring it.
    """
    recipes, declared = {}, {*study.varies}
    for arm in study.arms:
        own = {**(best(arm.best_of) if arm.best_of else {}), **dict(flat(arm.set))}
        declared |= own.keys()
        recipes[arm.name] = _load(study, arm, own, overrides)
    _check(study, recipes, declared)
    return recipes


def as_overrides(keys: dict[str, Any]) -> list[str]:
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


def _load(study: Study, arm: Arm, own: dict[str, Any], overrides: list[str]) -> Recipe:
    changes = [*as_overrides(dict(flat(study.set))), *as_overrides(own), *overrides]
    try:
        return load(arm.recipe or study.recipe, changes)
    except UsageFault as fault:
        raise UsageFault(f"arm {arm.name}: {fault.cause}", fault.next_step) from fault


def _check(study: Study, recipes: dict[str, Recipe], declared: set[str]) -> None:
    ignored = _OWN + (_LENGTH if study.steps else ())
    keys = {
        name: {key: value for key, value in result_keys(recipe).items() if key not in ignored}
        for name, recipe in recipes.items()
    }
    first = study.arms[0].name
    found: dict[str, list[str]] = {}
    for name in recipes:
        for change in changed_keys(keys[first], keys[name]):
            key = change.partition(":")[0]
            if not any(key == known or key.startswith(known + ".") for known in declared):
                found.setdefault(key, []).append(f"{change} (arm {name} against {first})")
    if found:
        rows = "\n  ".join(row for rows in found.values() for row in rows)
        raise UsageFault(
            f"the arms differ in more than the study declares:\n  {rows}",
            "undo it, or name the key in `varies` when it is part of the comparison",
        )
