"""Taking over the best arm of another study: its keys for all arms, or the whole of it for one."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sweep_studies import a_best

from kdctool.errors import UsageFault
from kdctool.recipe.arms import Best, Definition, define
from kdctool.recipe.study import load_study

WEIGHT = "objective.contrastive.weight"


def defined(folder: Path, bests: dict[str, Best], **more: Any) -> dict[str, Definition]:
    """The arms of a study whose `best_of` files are the keys of `bests`."""
    tree = {
        "name": "s",
        "recipe": "base.toml",
        "arms": [{"name": "A"}, {"name": "B", "set": {"optim.lr": 3e-4}}],
        "evaluations": [{"task": "retrieval"}],
        "primary": {"endpoint": "retrieval-test/a2v_r1"},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(tree | more))
    return define(load_study(folder / "study.toml"), [], lambda path: bests[Path(path).name])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.toml"
    path.write_text('name = "base"\n')
    return path


def test_all_arms_take_over_what_the_best_arm_sets(base: Path, tmp_path: Path) -> None:
    found = defined(tmp_path, {"w.toml": a_best(base, {WEIGHT: 0.5})}, best_of="w.toml")
    assert [arm.recipe.objective.contrastive.weight for arm in found.values()] == [0.5, 0.5]
    assert found["B"].own == {WEIGHT: 0.5, "optim.lr": 3e-4}


def test_what_an_arm_or_the_study_sets_itself_goes_before_what_all_take_over(base: Path, tmp_path: Path) -> None:
    arms = [{"name": "A"}, {"name": "B", "set": {WEIGHT: 0.7}}]
    best = {"w.toml": a_best(base, {WEIGHT: 0.5, "optim.lr": 2e-4})}
    found = defined(tmp_path, best, best_of="w.toml", arms=arms, set={"optim": {"lr": 9e-4}})
    assert [arm.recipe.objective.contrastive.weight for arm in found.values()] == [0.5, 0.7]
    assert {arm.recipe.optim.lr for arm in found.values()} == {9e-4}
    assert found["A"].own == {WEIGHT: 0.5}


def test_an_arm_that_takes_over_another_one_goes_before_what_all_take_over(base: Path, tmp_path: Path) -> None:
    bests = {"w.toml": a_best(base, {WEIGHT: 0.5}), "t.toml": a_best(base, {WEIGHT: 0.1, "optim.lr": 2e-4})}
    arms = [{"name": "A"}, {"name": "B", "best_of": "t.toml", "set": {"optim.lr": 7e-4}}]
    found = defined(tmp_path, bests, best_of="w.toml", arms=arms)
    assert found["A"].recipe.objective.contrastive.weight == 0.5
    assert (found["B"].recipe.objective.contrastive.weight, found["B"].recipe.optim.lr) == (0.1, 7e-4)


def test_keys_that_all_arms_take_over_alike_declare_no_difference(base: Path, tmp_path: Path) -> None:
    """An arm whose recipe says otherwise is brought in line; one that is told otherwise has said so."""
    (tmp_path / "other.toml").write_text('name = "other"\n[optim]\nweight_decay = 0.5\n')
    best = {"w.toml": a_best(base, {WEIGHT: 0.5})}
    arms = [{"name": "A"}, {"name": "B", "recipe": "other.toml"}]
    with pytest.raises(UsageFault, match=r"optim\.weight_decay: 5e-07 -> 0\.5"):
        defined(tmp_path, best, best_of="w.toml", arms=arms)
    assert defined(tmp_path, {"w.toml": a_best(base, {"optim.weight_decay": 0.1})}, best_of="w.toml", arms=arms)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"length": 1.5}, r"a length of its own \(1\.5\)"),
        ({"shares_recipe": False}, "a recipe that other arms there do not have"),
    ],
)
def test_all_arms_cannot_take_over_more_than_keys(base: Path, tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageFault, match=said) as fault:
        defined(tmp_path, {"w.toml": a_best(base, {WEIGHT: 0.5}, **more)}, best_of="w.toml")
    assert "`best_of` of an arm" in fault.value.next_step


def test_an_arm_takes_over_recipe_keys_and_length(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('name = "other"\n[optim]\nweight_decay = 0.5\n')
    best = {"ideas.toml": a_best(other, {"masking.audio_ratio": 0.5}, length=1.25)}
    arms = [{"name": "A"}, {"name": "W", "best_of": "ideas.toml"}]
    found = defined(tmp_path, best, arms=arms, varies=["optim.weight_decay"])["W"]
    assert (found.recipe.optim.weight_decay, found.recipe.masking.audio_ratio, found.length) == (0.5, 0.5, 1.25)
    assert str(found.took) == "arm best of study other"
    with pytest.raises(UsageFault, match=r"differ in more.*\n.*optim\.weight_decay: 5e-07 -> 0\.5 \(arm W against A\)"):
        defined(tmp_path, best, arms=arms)


def test_an_arm_that_says_its_length_keeps_it(base: Path, tmp_path: Path) -> None:
    best = {"ideas.toml": a_best(base, {"masking.audio_ratio": 0.5}, length=1.25)}
    for own, length in (({"length": 1.0}, 1.0), ({"length": 3.0}, 3.0), ({"flops_of": "A"}, 1.0), ({}, 1.25)):
        arms = [{"name": "A"}, {"name": "W", "best_of": "ideas.toml", **own}]
        assert defined(tmp_path, best, arms=arms)["W"].length == length


def test_an_arm_with_another_recipe_than_the_one_it_takes_over_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('name = "other"\n[optim]\nweight_decay = 0.5\nlr = 2e-4\n')
    (tmp_path / "same.toml").write_text('name = "same"\n')
    best = {"tune.toml": a_best(base, {"masking.audio_ratio": 0.5})}
    arms = [{"name": "A"}, {"name": "E", "recipe": "other.toml", "best_of": "tune.toml", "set": {"optim.lr": 3e-4}}]
    with pytest.raises(UsageFault, match="takes over arm best of study other, but would be another") as fault:
        defined(tmp_path, best, arms=arms)
    assert "optim.weight_decay: 5e-07 -> 0.5" in fault.value.cause
    assert "optim.lr" not in fault.value.cause  # The arm sets it itself.
    arms[1]["recipe"] = "same.toml"
    assert defined(tmp_path, best, arms=arms)["E"].recipe.masking.audio_ratio == 0.5


def test_a_reference_can_be_what_the_best_arm_is_before_it_learns_or_with_labels(base: Path, tmp_path: Path) -> None:
    best = {"tune.toml": a_best(base, {"model.depth": 3}, length=1.5)}
    arms = [
        {"name": "A"},
        {"name": "low", "training": "none", "best_of": "tune.toml"},
        {"name": "high", "training": "supervised", "best_of": "tune.toml", "set": {"finetune.label_smoothing": 0.0}},
    ]
    found = defined(tmp_path, best, arms=arms)
    assert [found[name].recipe.model.depth for name in ("low", "high")] == [3, 3]
    supervision = found["high"].supervision
    assert supervision is not None
    assert (supervision.finetune.label_smoothing, found["high"].recipe.finetune.label_smoothing) == (0.0, 0.1)
    assert supervision.model.depth == 3


def test_what_the_other_study_sets_in_all_arms_must_be_said_here_too(base: Path, tmp_path: Path) -> None:
    best = {"tune.toml": a_best(base, {"masking.audio_ratio": 0.5}, common={"training.global_batch": 100})}
    arms = [{"name": "A"}, {"name": "E", "best_of": "tune.toml"}]
    with pytest.raises(UsageFault, match=r"training\.global_batch: 100 -> 120"):
        defined(tmp_path, best, arms=arms)
    found = defined(tmp_path, best, arms=arms, set={"training": {"global_batch": 60}})
    assert found["E"].recipe.training.global_batch == 60
