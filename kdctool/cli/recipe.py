"""kdctool recipe: check, print, describe and make recipes. None of it imports torch, except `new` on a GPU."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdctool.cli.show import Device, Set
from kdctool.errors import UsageFault

recipe_app = typer.Typer(no_args_is_help=True, help="Check, print, describe and make recipes (TOML files).")


def register(app: typer.Typer) -> None:
    app.add_typer(recipe_app, name="recipe")


@recipe_app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recipes to check.")],
    change: Set = None,
) -> None:
    """Check recipes; every error is told with file, line, value and what is allowed."""
    from kdctool.recipe import load

    faults = []
    for file in files:
        try:
            recipe = load(file, change)
        except UsageFault as fault:
            faults.append(fault)
        else:
            print(f"{file}: valid ({recipe.name})")
    if faults:
        raise UsageFault("\n".join(fault.cause for fault in faults), "; ".join(_unique(f.next_step for f in faults)))


@recipe_app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recipe to print.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the defaults, too, and what it all means.")
    ] = False,
    change: Set = None,
) -> None:
    """Print a recipe as TOML, each value with where it comes from: recipe, --set, preset or default.

    With --resolved a comment before it says what the objective is in words, how many parameters there are, and what
    a clip costs, part by part.
    """
    from kdctool.recipe import load, origins
    from kdctool.stages.describe import describe

    recipe = load(file, change)
    if resolved:
        print("".join(f"# {line}\n" for line in describe(recipe)))
    where = origins(recipe, file.read_text(encoding="utf-8"), change or [])
    print(_annotated(recipe.model_dump(mode="json"), where, resolved), end="")


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    from kdctool.recipe import Recipe

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    print(json.dumps(document, indent=2))


@recipe_app.command()
def new(
    shards: Annotated[Path, typer.Option("--from", metavar="SHARDS", help="Folder of shards the recipe is for.")],
    name: Annotated[str, typer.Option("--name", help="Name of the recipe; run folders begin with it.")] = "",
    device: Device = "auto",
) -> None:
    """Print a recipe sized to your clips and to this machine: kdctool recipe new --from shards/ > mine.toml."""
    from kdctool.stages import estimate, recipe_new

    made = recipe_new.run(shards, name, device)
    micro = made.recipe.training.micro_batch or made.recipe.training.global_batch
    print(made.text, end="")
    print(
        f"{made.clips:,} clips on {made.hardware.name}: about {made.estimate.parameters / 1e6:.1f} M parameters, "
        f"{made.estimate.memory_gb(micro):.1f} GB; pre-training takes {estimate.time_class(made.hours)}\n"
        "next: save it (> mine.toml), then kdctool pretrain mine.toml",
        file=sys.stderr,
    )


def _unique(texts: Any) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _annotated(tree: dict[str, Any], where: dict[str, str], resolved: bool) -> str:
    """TOML of `tree` with an origin behind every value; without `resolved` only what is not a default."""
    return _table((), tree, where, resolved)


def _table(path: tuple[str, ...], tree: dict[str, Any], where: dict[str, str], resolved: bool) -> str:
    lines, inner = [], []
    for key, value in tree.items():
        place = (*path, key)
        if isinstance(value, dict) and value:
            inner.append(_table(place, value, where, resolved))
        elif _is_array(value):
            head = f"[[{'.'.join(map(_toml_key, place))}]]  # {where['.'.join(place)]}\n"
            inner += [head + "".join(f"{k} = {_toml(v)}\n" for k, v in item.items()) for item in value]
        elif resolved or where[".".join(place)] != "default":
            lines.append(f"{_toml_key(key)} = {_toml(value)}  # {where['.'.join(place)]}\n")
    head = f"[{'.'.join(map(_toml_key, path))}]\n" if path and lines else ""
    own = head + "".join(lines)
    return "\n".join(block for block in [own, *inner] if block)


def _is_array(value: Any) -> bool:
    """Whether `value` is written as [[tables]]."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _toml(value: Any) -> str:
    """One value on one line."""
    import tomli_w

    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _toml_key(key: str) -> str:
    import tomli_w

    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
