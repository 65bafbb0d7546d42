"""students.py runs the shipped studies, with teachers where the first of them leaves its cells."""

from pathlib import Path

import pytest
import tomli_w
from avdigits import chain, students

from kdctool.recipe.arms import resolve
from kdctool.recipe.study import Study, load_study


def written(name: str, folder: Path, quick: bool) -> Study:
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(chain.tree_of(students.CHAIN, name, folder, quick)))
    return load_study(path)


@pytest.mark.parametrize("quick", [False, True])
def test_the_first_study_makes_the_teachers_that_the_second_names(tmp_path: Path, quick: bool) -> None:
    teachers = written(students.TEACHERS, tmp_path, quick)
    cells = tmp_path / "studies" / students.TEACHERS / "cells"
    made = {str(cells / f"{arm.name}-s{seed}" / "pretrain") for arm in teachers.arms for seed in teachers.seeds}
    recipes = resolve(written(students.STUDENTS, tmp_path, quick), [], lambda _: {})
    taught = {name: recipe for name, recipe in recipes.items() if recipe.objective.name == "hybrid_distill"}
    assert set(taught) == {"hybrid", "features", "same-size"}
    for recipe in taught.values():
        assert {name: source.path in made for name, source in recipe.objective.distill.teachers.items()} == {
            "cav": True, "mae": True,
        }  # fmt: skip


def test_students_and_teachers_are_measured_alike_in_both_sizes(tmp_path: Path) -> None:
    for quick in (False, True):
        first, second = (written(name, tmp_path, quick) for name in (students.TEACHERS, students.STUDENTS))
        assert first.evaluations == second.evaluations
        assert first.endpoints == second.endpoints
        assert {item.task for item in first.evaluations} == {"probe", "retrieval", "localization"}
    assert (second.seeds, second.steps) == ((0,), students.QUICK_STEPS)


def test_the_small_student_is_the_same_in_every_arm_and_the_features_arm_lacks_relations_alone(tmp_path: Path) -> None:
    recipes = resolve(written(students.STUDENTS, tmp_path, False), [], lambda _: {})
    small = [recipes[name].model for name in ("hybrid", "features", "cavmae", "kdcmae")]
    assert all(model == small[0] for model in small)
    hybrid, features = (recipes[name].objective.distill for name in ("hybrid", "features"))
    assert hybrid.mask == features.mask
    assert features.losses == tuple(loss for loss in hybrid.losses if loss.kind == "feature")
