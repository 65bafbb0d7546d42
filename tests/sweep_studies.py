"""Small studies on tiny shards."""

from pathlib import Path
from typing import Any

from kdctool.recipe.study import Study
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
