"""What a recipe resolves to: as TOML, as the keys that decide results, and where each value came from."""

import tomllib
from typing import Any

import tomli_w

from kdctool.recipe.load import preset_of
from kdctool.recipe.sections import Recipe
from kdctool.registry import ONLY_WHERE_SET, Section


def to_toml(recipe: Recipe) -> str:
    """Every key of the recipe, defaults included; reading it back gives an equal recipe."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def result_keys(recipe: Section, sections: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Dotted key -> value of every key that can change a result; the digest of a run is made of these.

    `sections` limits it to some top-level keys: finetuning is not guarded by the pre-training optimiser.
    """
    keys: dict[str, Any] = {}
    for name, field in type(recipe).model_fields.items():
        if sections is not None and name not in sections:
            continue
        extra = field.json_schema_extra
        kind = extra.get("result") if isinstance(extra, dict) else None
        value = getattr(recipe, name)
        if kind is False or (kind == ONLY_WHERE_SET["result"] and value == field.default):
            continue
        keys.update(_result_keys(name, value))
    return keys


def _result_keys(name: str, value: Any) -> dict[str, Any]:
    """`name` and `value`, or the keys of the section or of the sections that `value` is."""
    if isinstance(value, Section):
        return {f"{name}.{key}": inner for key, inner in result_keys(value).items()}
    many = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, tuple) else {}
    if many and all(isinstance(item, Section) for item in many.values()):
        return {k: v for place, item in many.items() for k, v in _result_keys(f"{name}.{place}", item).items()}
    return {name: list(value) if isinstance(value, tuple) else value}


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key on which two sets of `result_keys` differ."""
    missing = object()
    return [
        f"{key}: {'unset' if a is missing else repr(a)} -> {'unset' if b is missing else repr(b)}"
        for key in sorted(before.keys() | now.keys())
        if (a := before.get(key, missing)) != (b := now.get(key, missing))
    ]


def origins(recipe: Recipe, text: str, overrides: list[str]) -> dict[str, str]:
    """Dotted key -> `recipe`, `--set`, `preset NAME` or `default`."""
    tree = tomllib.loads(text)
    overridden = {override.partition("=")[0].strip() for override in overrides}
    preset = preset_of({"objective": {"name": recipe.objective.name}})
    found = {}
    for key, _ in flat(recipe.model_dump(mode="json")):
        if any(key == name or key.startswith(name + ".") for name in overridden):
            found[key] = "--set"
        elif _has(tree, key):
            found[key] = "recipe"
        elif _has(preset, key):
            found[key] = f"preset {recipe.objective.name}"
        else:
            found[key] = "default"
    return found


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted key and value of every leaf, in order."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _has(tree: dict[str, Any], dotted: str) -> bool:
    node: Any = tree
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
