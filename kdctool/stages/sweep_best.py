"""The best arm of another study, taken over: from its file and its results, however long the chain of studies."""

from pathlib import Path

from kdctool.errors import UsageFault, quoted
from kdctool.files import read_json
from kdctool.recipe.arms import Best
from kdctool.recipe.load import load
from kdctool.recipe.study import Study, load_study, study_file
from kdctool.recipe.write import flat, result_keys

RESULTS = "results.json"


def best_of(path: Path, studies: Path) -> Best:
    """The best arm of the study in `path`, whose results lie under `studies`; UsageFault where it has none yet."""
    other = load_study(path)
    results = studies / other.name / RESULTS
    again = f"kdctool sweep {quoted(path)} --out {quoted(results.parent)}"
    found = read_json(results).get("best") if results.exists() else None
    if not found:
        raise UsageFault(
            f"the best arm of study {other.name} is to be taken over, but {results.parent} has no results of all cells",
            again,
        )
    if "length" not in found:
        raise UsageFault(f"{results} was written by an older kdctool: it does not say all of its best arm",
                         f"{again} --summary")  # fmt: skip
    if found["arm"] not in [arm.name for arm in other.arms]:
        raise UsageFault(f"{results} says that arm {found['arm']} is the best, which {path} does not have", again)
    recipes = {arm.name: recipe_of(other, arm.name, studies) for arm in other.arms if not arm.is_reference}
    known = {recipe: _content(recipe) for recipe in {*recipes.values()}}
    return Best(
        study=other.name,
        arm=found["arm"],
        recipe=recipes[found["arm"]],
        set=dict(found["set"]),
        common=dict(flat(other.set)),
        length=float(found["length"]),
        shares_recipe=all(content == known[recipes[found["arm"]]] for content in known.values()),
    )


def recipe_of(study: Study, arm: str, studies: Path) -> str:
    """The recipe file of an arm: its own, else that of the arm it takes over, else the study's."""
    asked = study.arm(arm)
    if asked.recipe or not asked.best_of:
        return asked.recipe or study.recipe
    return best_of(Path(asked.best_of), studies).recipe


def refuse_circles(study: Study) -> None:
    """UsageFault where a study would take over from itself, through whatever others."""
    _follow(study, ())


def _follow(study: Study, trail: tuple[Path, ...]) -> None:
    for name in dict.fromkeys((study.best_of, *(arm.best_of for arm in study.arms))):
        if not name:
            continue
        path = study_file(Path(name)).resolve()
        if path in trail:
            circle = " -> ".join(str(one) for one in (*trail[trail.index(path) :], path))
            raise UsageFault(f"best_of goes round in a circle: {circle}", "take one of these keys out")
        _follow(load_study(path), (*trail, path))


def _content(recipe: str) -> dict[str, object]:
    return {key: value for key, value in result_keys(load(recipe)).items() if key not in ("name", "seed")}
