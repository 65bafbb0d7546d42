"""From a TOML file and `--set` overrides to a validated `Recipe`, with every error told at once."""

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdctool.errors import UsageFault
from kdctool.recipe.lines import key_lines, line_of
from kdctool.recipe.presets import PRESETS, beneath
from kdctool.recipe.sections import Recipe
from kdctool.registry import Section

Location = tuple[str | int, ...]
SHIPPED = Path(__file__).parents[1] / "recipes"
"""The recipes that come with kdctool; in a checkout a link to recipes/."""


def load(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; UsageFault (exit 2) lists every error as `file:line  key: cause (fix)`."""
    path = Path(path)
    if not path.exists() and path.parent.name == "recipes":
        path = shipped(path.name) if (SHIPPED / path.name).exists() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = [f"{name}.toml" for name in difflib.get_close_matches(path.stem, map(_stem, _shipped_names()), n=1)]
        reason = getattr(error, "strerror", None) or error
        hint = f"did you mean recipes/{near[0]}?" if near else f"shipped: {', '.join(_shipped_names())}"
        raise UsageFault(f"cannot read recipe {path}: {reason}", hint) from error
    if not text.strip():
        raise UsageFault(f"recipe {path} is empty", "kdctool recipe new --from SHARDS writes one, or says why not")
    return loads(text, overrides, origin=str(path))


def shipped(name: str) -> Path:
    """Path of a recipe that comes with kdctool."""
    path = SHIPPED / name
    if not path.exists():
        raise UsageFault(f"no recipe {name} comes with kdctool", f"there are: {', '.join(_shipped_names())}")
    return path


def _stem(name: str) -> str:
    return name.removesuffix(".toml")


def _shipped_names() -> list[str]:
    return sorted(path.name for path in SHIPPED.glob("*.toml"))


def loads(text: str, overrides: list[str] | None = None, origin: str = "recipe") -> Recipe:
    """Like `load`, from a text; `origin` stands in error messages."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageFault(
            f"{origin}: not TOML: {error}", "strings need quotes, true and false are lower case"
        ) from error
    return validate(tree, overrides, origin, text)


def validate(
    tree: dict[str, Any], overrides: list[str] | None = None, origin: str = "recipe", text: str = ""
) -> Recipe:
    """Validate a recipe that is already a tree of plain values."""
    from_command_line: set[Location] = set()
    for override in overrides or []:
        from_command_line.add(_apply(tree, override))
    tree = beneath(tree, preset_of(tree))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = key_lines(text)
        messages = []
        for item in error.errors():
            place = _place(item["loc"], from_command_line, origin, lines)
            messages.append((place, f"{place}  {_explain(item)}"))
        unique = sorted(set(messages), key=lambda pair: (pair[0].rpartition(":")[0], _line_number(pair[0]), pair[1]))
        count = f"{len(unique)} error{'s' if len(unique) > 1 else ''}; nothing was written"
        told = "\n".join(message for _, message in unique)
        raise UsageFault(f"{told}\n{count}", "kdctool recipe schema says what every key may be") from error


def preset_of(tree: dict[str, Any]) -> dict[str, Any]:
    """The defaults that the recipe's `objective.name` brings; empty for a registered objective."""
    objective = tree.get("objective", {})
    name = objective.get("name", "kdc_mae") if isinstance(objective, dict) else "kdc_mae"
    return PRESETS.get(name, {}) if isinstance(name, str) else {}


def _apply(tree: dict[str, Any], override: str) -> Location:
    key, equals, raw = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise UsageFault(f"--set {override}: expected section.key=value", "for example --set optim.lr=1e-4")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # A bare string: --set data.shards=my/shards.
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UsageFault(f"--set {override}: {part} is a value, not a section")
    node[path[-1]] = value
    return tuple(path)


def _place(location: Location, overridden: set[Location], origin: str, lines: dict[Location, int]) -> str:
    for path in overridden:
        if location[: len(path)] == path or path[: len(location)] == location != ():
            return f"--set {'.'.join(map(str, path))}"
    return f"{origin}:{line_of(lines, location)}"


def _line_number(place: str) -> int:
    tail = place.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _explain(item: Any) -> str:
    location: Location = item["loc"]
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        prefix = ".".join(str(part) for part in location[:-1])
        best = f"{prefix}.{close[0]}" if close and prefix else (close[0] if close else "")
        return f"unknown key {key} " + (f"(did you mean {best}?)" if best else f"(known here: {', '.join(known)})")
    if item["type"] == "missing":
        return f"{key} is missing"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    given = repr(item["input"]) if not isinstance(item["input"], dict) else "a table"
    message = item["msg"].replace("Input should be", "must be")
    if item["type"] == "literal_error":
        close = difflib.get_close_matches(str(item["input"]), _choices(item["ctx"]["expected"]), n=1)
        return f"{key} {message}, got {given}" + (f" (did you mean '{close[0]}'?)" if close else "")
    return f"{key} {message}, got {given}"


def _choices(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ",").split(",")]


def _known_keys(location: Location) -> list[str]:
    section: type[Section] = Recipe
    keyed = False  # Whether the next part is a name that the recipe chose.
    for part in location:
        if isinstance(part, int) or keyed:
            keyed = False
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        keyed = typing.get_origin(annotation) is dict
        inner = _section_in(annotation)
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[Section] | None:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, Section)
    ):
        return annotation
    for part in typing.get_args(annotation):
        if (found := _section_in(part)) is not None:
            return found
    return None
