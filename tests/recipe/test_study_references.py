"""References and curves in a study file: what they mean for its arms, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sweep_studies import first_arm

from kdctool.errors import UsageFault
from kdctool.recipe.arms import define
from kdctool.recipe.study import Study, load_study

REFERENCES = [{"name": "random", "training": "none"}, {"name": "labels", "training": "supervised"}]
BOUNDS = {"low": "random", "high": "labels", "plain": "A"}
CURVE = {"name": "few", "x": "labels per class", "points": [["1", "probe-test/k1"], ["all", "probe-test/all"]]}


def write(folder: Path, **more: Any) -> Path:
    (folder / "base.toml").write_text('name = "base"\n')
    tree = {
        "name": "s",
        "recipe": "base.toml",
        "arms": [*REFERENCES, {"name": "A"}, {"name": "B", "set": {"optim.lr": 3e-4}}],
        "evaluations": [{"task": "retrieval"}, {"task": "probe"}],
        "primary": {"endpoint": "retrieval-test/a2v_r1", "contrasts": [["B", "A"]]},
        "references": BOUNDS,
        "curves": [CURVE],
    }
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(tree | more))
    return path


def with_labels(**more: Any) -> list[dict[str, Any]]:
    return [REFERENCES[0], {**REFERENCES[1], **more}, {"name": "A"}, {"name": "B", "set": {"optim.lr": 3e-4}}]


def defined(study: Study) -> Any:
    return define(study, [], first_arm)


def test_a_study_has_references_and_curves(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    assert study.references is not None
    assert (study.references.least, study.references.most) == (0.25, 0.95)
    assert [arm.training for arm in study.arms] == ["none", "supervised", "pretrain", "pretrain"]
    assert study.endpoints == ("retrieval-test/a2v_r1",)
    assert study.read == ("retrieval-test/a2v_r1", "probe-test/k1", "probe-test/all")


def test_what_a_supervised_arm_sets_for_finetuning_is_for_its_own_training_alone(tmp_path: Path) -> None:
    own = {"finetune": {"training": {"epochs": 77}}, "model": {"width": 192, "heads": 3}}
    found = defined(load_study(write(tmp_path, arms=with_labels(set=own))))["labels"]
    assert found.supervision.finetune.training.epochs == 77
    assert found.recipe.finetune.training.epochs == 10
    assert found.supervision.model.width == found.recipe.model.width == 192


def test_references_are_not_compared_with_the_other_arms_and_declare_nothing(tmp_path: Path) -> None:
    arms = with_labels(set={"optim.weight_decay": 0.3})
    found = defined(load_study(write(tmp_path, arms=arms)))
    assert found["labels"].recipe.optim.weight_decay == 0.3
    (tmp_path / "other.toml").write_text('name = "other"\n[optim]\nweight_decay = 0.1\n')
    arms[2] = {"name": "A", "recipe": "other.toml"}
    with pytest.raises(UsageFault, match=r"optim\.weight_decay: 0\.1 -> 5e-07 \(arm B against A\)"):
        defined(load_study(write(tmp_path, arms=arms)))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"finetune.per_class": 5}, r"all training labels, but finetune\.per_class = 5"),
        ({"finetune.share": 0.1}, r"all training labels, but finetune\.share = 0\.1"),
        ({"finetune.freeze_encoder": True}, "leaves the encoder frozen"),
    ],
)
def test_a_supervised_arm_learns_from_all_labels_with_its_whole_encoder(
    tmp_path: Path, own: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageFault, match=said):
        defined(load_study(write(tmp_path, arms=with_labels(set=own))))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"references": {**BOUNDS, "low": "rnd"}}, "no arm is called rnd"),
        ({"references": {**BOUNDS, "low": "A"}}, "three different arms"),
        ({"references": {**BOUNDS, "least": 0.96}}, "least = 0.96 is not below most"),
        ({"references": {**BOUNDS, "hihg": "labels"}}, r"did you mean high\?"),
        ({"equal_flops": ["A", "labels"]}, "labels cannot stand in equal_flops"),
        ({"arms": with_labels(length=2.0)}, "length is of pre-training"),
        ({"arms": with_labels(flops_of="A")}, "flops_of is of pre-training"),
        ({"arms": [*with_labels(), {"name": "C", "flops_of": "random"}]}, "random cannot stand in equal_flops or"),
        ({"arms": with_labels(training="superviced")}, "supervised"),
        ({"curves": [{**CURVE, "points": [["1", "prob/k1"], ["2", "probe-test/k2"]]}]}, "'prob/k1' is not EVAL"),
        ({"curves": [{**CURVE, "points": [["1", "probe-test/k1"]]}]}, "needs two points"),
        ({"curves": [{**CURVE, "points": [["1", "probe-test/a"], ["1", "probe-test/b"]]}]}, "point 1 occurs more"),
        ({"curves": [{**CURVE, "points": [["1", "probe-test/a"], ["2", "probe-test/a"]]}]}, "endpoint probe-test/a o"),
        ({"curves": [CURVE, CURVE]}, "curves: few occurs more than once"),
        ({"curves": [{**CURVE, "point": []}]}, r"did you mean points\?"),
    ],
)
def test_faults_are_told_before_anything_runs(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageFault, match=said):
        load_study(write(tmp_path, **more))
