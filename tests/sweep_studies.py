"""Small studies on tiny shards."""

from pathlib import Path
from typing import Any

from kdctool.recipe.arms import Best
from kdctool.recipe.study import Study, load_study
from kdctool.recipe.write import flat
from kdctool.stages import sweep

TWO_VIEWS = {"objective.name": "kdc_mae", "masking.views": 2, "objective.self_distillation.weight": 10.0}


def a_study(recipe: Path, **more: Any) -> Study:
    tree: dict[str, Any] = {
        "name": "small",
        "recipe": str(recipe),
        "seeds": [0, 1],
        "arms": [{"name": "A", "title": "one view"}, {"name": "B", "set": TWO_VIEWS}],
        "evaluations": [{"task": "retrieval"}],
        "primary": {"endpoint": "retrieval-test/a2v_r5", "contrasts": [["B", "A"]]},
        "secondary": {"endpoints": ["retrieval-test/v2a_r5"]},
        "equal_flops": ["A", "B"],
    }
    return Study.model_validate(tree | more)


def run(study: Study, out: Path, **more: Any) -> sweep.Swept:
    return sweep.run(study, out=out, device_name="cpu", workers=0, **more)


def written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def a_best(recipe: Path | str, set: dict[str, Any], **more: Any) -> Best:
    """The best arm of a study that has run."""
    about = {"study": "other", "arm": "best", "common": {}, "length": 1.0, "shares_recipe": True}
    return Best(recipe=str(recipe), set=set, **(about | more))


def first_arm(path: str) -> Best:
    """The first arm of a study file, as if the study had run and that arm were its best."""
    study = load_study(Path(path))
    arm = next(arm for arm in study.arms if not arm.is_reference)
    took = first_arm(arm.best_of) if arm.best_of else None
    shared = first_arm(study.best_of).set if study.best_of else {}
    own = {**shared, **(took.set if took else {}), **dict(flat(arm.set))}
    return a_best(arm.recipe or (took.recipe if took else study.recipe), own, study=study.name, arm=arm.name)
