"""Study files: what they hold, how arms become recipes, and what is refused before anything runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sweep_studies import a_best, first_arm

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.recipe.arms import Best, resolve, with_length
from kdctool.recipe.load import SHIPPED
from kdctool.recipe.study import Study, load_study
from kdctool.recipe.study_grid import grid_study

BASE = 'name = "base"\n[objective]\nname = "kdc_mae"\n'


def tree(**more: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "recipe": "base.toml",
        "arms": [{"name": "A"}, {"name": "B", "set": {"optim.lr": 3e-4}}],
        "evaluations": [{"task": "retrieval"}],
        "primary": {"endpoint": "retrieval-test/a2v_r1", "contrasts": [["B", "A"]]},
        **more,
    }


def write(folder: Path, **more: Any) -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(tree(**more)))
    return path


def arms_of(study: Study, *overrides: str) -> dict[str, recipes.Recipe]:
    return resolve(study, list(overrides), first_arm)


def test_an_arm_is_the_recipe_with_what_it_sets(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, set={"masking": {"audio_ratio": 0.5}}))
    found = arms_of(study, "training.global_batch=7")
    assert (found["A"].optim.lr, found["B"].optim.lr) == (1e-4, 3e-4)
    assert {arm.masking.audio_ratio for arm in found.values()} == {0.5}
    assert {arm.training.global_batch for arm in found.values()} == {7}


def test_paths_start_at_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, arms=[{"name": "A"}, {"name": "B", "best_of": "other.toml"}])
    monkeypatch.chdir("/")
    study = load_study(path)
    assert study.recipe == str(tmp_path / "base.toml")
    assert study.arms[1].best_of == str(tmp_path / "other.toml")


def test_arms_that_differ_in_more_than_is_declared_are_refused_with_every_key(tmp_path: Path) -> None:
    """A preset changes views and weight beside the name: nobody said so in the study."""
    arms = [{"name": "A", "set": {"objective.name": "cav_mae"}}, {"name": "B"}]
    with pytest.raises(UsageFault, match="differ in more than the study declares") as fault:
        arms_of(load_study(write(tmp_path, arms=arms)))
    assert "masking.views: 1 -> 2 (arm B against A)" in fault.value.cause
    assert "objective.self_distillation.weight: 0.0 -> 10.0 (arm B against A)" in fault.value.cause
    assert "objective.name" not in fault.value.cause
    declared = ["masking.views", "objective.self_distillation"]
    assert arms_of(load_study(write(tmp_path, arms=arms, varies=declared)))["A"].masking.views == 1


def test_arms_with_recipes_of_their_own_are_compared_too(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(BASE.replace("base", "other") + "[optim]\nweight_decay = 0.5\n")
    arms = [{"name": "A"}, {"name": "B", "recipe": "other.toml"}]
    with pytest.raises(UsageFault, match=r"optim\.weight_decay: 5e-07 -> 0\.5"):
        arms_of(load_study(write(tmp_path, arms=arms)))


def test_an_arm_takes_over_what_the_best_of_another_study_sets(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, arms=[{"name": "A"}, {"name": "B", "best_of": "tune.toml"}]))
    asked: list[str] = []

    def best(path: str) -> Best:
        asked.append(path)
        return a_best(tmp_path / "base.toml", {"objective.self_distillation.weight": 100.0})

    assert resolve(study, [], best)["B"].objective.self_distillation.weight == 100.0
    assert asked == [str(tmp_path / "tune.toml")]


def test_a_wrong_key_of_an_arm_names_the_arm(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"arm B: .*unknown key optim\.lrr"):
        arms_of(load_study(write(tmp_path, arms=[{"name": "A"}, {"name": "B", "set": {"optim.lrr": 1.0}}])))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"arms": [{"name": "A"}, {"name": "A"}]}, "arms: A occurs more than once"),
        ({"seeds": [1, 1]}, "seeds: 1 occurs more than once"),
        ({"arms": [{"name": "A"}]}, "no arm is called B"),
        ({"arms": [{"name": "a/b"}, {"name": "A"}, {"name": "B"}]}, "'a/b' cannot be a name"),
        ({"primary": {"endpoint": "retrieval/a2v_r1"}}, "evaluations: retrieval-test"),
        ({"secondary": {"endpoints": ["retrieval-test"]}}, "is not EVALUATION/METRIC"),
        ({"recipe": ""}, "no recipe for A, B"),
        ({"sedes": [1]}, r"unknown key sedes \(did you mean seeds\?\)"),
        ({"evaluations": [{"task": "retrieval", "spit": "val"}]}, r"did you mean split\?"),
        ({"seeds": []}, "seeds"),
        ({"arms": [{"name": "A", "flops_of": "B"}, {"name": "B", "flops_of": "A"}]}, "flops_of of A, B"),
    ],
)
def test_faults_are_told_before_anything_runs(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageFault, match=said) as fault:
        load_study(write(tmp_path, **more))
    assert f"{tmp_path / 'study.toml'}:" in fault.value.cause


def test_a_recipe_is_no_study_and_the_grid_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UsageFault, match="is a recipe, not a study") as fault:
        load_study(tmp_path / "base.toml")
    assert "--grid" in fault.value.next_step


def test_a_grid_is_every_combination_against_the_first(tmp_path: Path) -> None:
    write(tmp_path)
    axes = ["masking.audio_ratio,masking.video_ratio=0.6,0.75", "objective.name=mae,cav"]
    study = grid_study(tmp_path / "base.toml", axes, 3, ["retrieval:val"])
    assert study.seeds == (0, 1, 2)
    assert [arm.set["objective.name"] for arm in study.arms] == ["mae", "cav", "mae", "cav"]
    assert study.arms[2].set == {"masking.audio_ratio": 0.75, "masking.video_ratio": 0.75, "objective.name": "mae"}
    assert study.primary.endpoint == "retrieval-val/a2v_r1"
    assert study.secondary.contrasts == tuple((arm.name, study.arms[0].name) for arm in study.arms[1:])


def test_a_grid_of_one_key_names_its_arms_by_value() -> None:
    study = grid_study(Path("r.toml"), ["masking.audio_ratio=0.5,0.65"], 1, ["retrieval"])
    assert [arm.name for arm in study.arms] == ["audio_ratio=0.5", "audio_ratio=0.65"]


@pytest.mark.parametrize("text", ["masking.audio_ratio", "masking.audio_ratio=", "=1,2", "a,=1"])
def test_a_grid_without_key_or_values_is_refused(text: str) -> None:
    with pytest.raises(UsageFault, match="expected SECTION"):
        grid_study(Path("r.toml"), [text], 1, ["retrieval"])


def test_a_grid_on_a_task_without_a_usual_number_asks_for_one() -> None:
    with pytest.raises(UsageFault, match="which number of diagnose"):
        grid_study(Path("r.toml"), ["optim.lr=1e-3,1e-4"], 1, ["diagnose"])


def test_warm_up_keeps_its_share_of_another_length() -> None:
    recipe = with_length(recipes.loads(BASE, ["optim.warmup_epochs=3"]), 40, 0.1)
    assert (recipe.training.epochs, recipe.optim.warmup_epochs) == (40, 4.0)
    assert with_length(recipe, 80, 0.0).optim.warmup_epochs == 4.0


@pytest.mark.parametrize("path", sorted((SHIPPED / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_study_resolves_to_arms_that_differ_only_as_declared(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    assert list(resolve(study, [], first_arm)) == [arm.name for arm in study.arms]


def test_the_main_study_is_the_protocols() -> None:
    study = load_study(SHIPPED / "studies" / "avdigits.toml")
    assert len(study.seeds) == 5
    assert set(study.primary.contrasts) == {("D", "C"), ("E", "C"), ("E", "B")}

    def best(path: str) -> Best:
        found = first_arm(path)
        tuned = {"objective.self_distillation.weight": 100.0} if found.study == "avdigits_tune" else {}
        return replace(found, set={**found.set, **tuned})

    found = resolve(study, [], best)
    models = {arm.model for arm in found.values()}
    assert len(models) == 1
    model = models.pop()
    assert (model.video_tokens, model.audio_tokens) == (196, 104)
    kept = {(int(196 * (1 - r.masking.video_ratio)), int(104 * (1 - r.masking.audio_ratio))) for r in found.values()}
    assert kept == {(49, 26)}
    assert [found[name].masking.views for name in "ABCDE"] == [1, 1, 2, 2, 2]
    assert [found[name].objective.self_distillation.weight for name in "ABCDE"] == [0.0, 0.0, 0.0, 10.0, 100.0]
    assert [study.arm(name).length for name in "ABCDE"] == [1.0, 2.0, 1.0, 1.0, 1.0]
    optim = found["A"].optim
    assert (optim.name, optim.lr, optim.weight_decay, optim.schedule) == ("adamw", 1e-3, 0.05, "cosine")
    assert found["A"].training.global_batch == 256


def test_an_arm_may_set_a_list_of_tables_however_long(tmp_path: Path) -> None:
    losses = [
        {"kind": "feature", "teacher": "c", "name": "a" * 60},
        {"kind": "relation", "teacher": "m", "rel": ["vv"]},
    ]
    teachers = {f"objective.distill.teachers.{name}.id": "vit_base_patch16_224" for name in "cm"}
    arm = {"name": "B", "set": {"objective.name": "hybrid_distill", "objective.distill.losses": losses, **teachers}}
    study = load_study(write(tmp_path, arms=[{"name": "A"}, arm], varies=["masking", "objective"]))
    found = arms_of(study)["B"].objective.distill.losses
    assert [(loss.kind, loss.teacher, loss.name) for loss in found] == [
        ("feature", "c", "a" * 60),
        ("relation", "m", ""),
    ]
    assert found[1].rel == ("vv",)
