"""A study from the command line: all combinations of some keys' values. Torch-free."""

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdctool.errors import UsageFault
from kdctool.recipe.study import Study, explain

USUAL_METRIC = {"retrieval": "a2v_r1", "classification": "top1"}
"""What a grid compares where nobody says."""


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
        raise UsageFault("; ".join(explain(item) for item in error.errors()), "nothing was written") from error


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
