"""Random and supervised encoders in a study: how they come about, what they can give, and what they say."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_studies import TWO_VIEWS, a_study, run, written
from training_runs import weights

from kdctool import recipe as recipes
from kdctool.errors import DataFault, UsageFault
from kdctool.files import read_json
from kdctool.recipe.study import Study
from kdctool.stages import pretrain, shard, sweep_plan, sweep_references, untrained
from kdctool.stages.load import open_model

ARMS = [
    {"name": "random", "training": "none"},
    {"name": "labels", "training": "supervised", "set": {"finetune.training.epochs": 2}},
    {"name": "A"},
    {"name": "B", "set": TWO_VIEWS},
]
BOUNDS = {"low": "random", "high": "labels", "plain": "A"}
EVALUATIONS = [
    {"task": "retrieval"},
    {"task": "inpainting"},
    {"task": "classification", "set": {"finetune.per_class": 2, "finetune.training.global_batch": 6}},
]
ENDPOINT = "retrieval-test/a2v_r5"


def bounded(recipe: Path, **more: Any) -> Study:
    primary = {"endpoint": ENDPOINT, "contrasts": [["B", "A"]]}
    secondary = {"endpoints": ["inpainting-test/audio_gain"], "contrasts": [["labels", "A"]]}
    tree = {"arms": ARMS, "references": BOUNDS, "primary": primary, "secondary": secondary, "seeds": [0]}
    return a_study(recipe, **(tree | more))


def plan(study: Study, out: Path, **more: Any) -> sweep_plan.Plan:
    return sweep_plan.make_plan(study, shards=None, out=out, overrides=[], arms=[], seeds=None, **more)


def test_references_are_measured_like_the_arms_and_a_dash_stands_for_what_they_cannot_give(
    one_view: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    done = run(bounded(one_view, evaluations=EVALUATIONS), out)
    assert done.fault is None
    assert set(done.states.values()) == {"done"}
    found = read_json(out / "results.json")
    values = {name: cell["values"] for name, cell in found["cells"].items()}
    for name in ("random-s0", "labels-s0", "A-s0", "B-s0"):
        assert values[name][ENDPOINT] is not None
        assert values[name]["classification-test/top1"] is not None
    assert "inpainting-test/audio_gain" in values["random-s0"]
    assert not [name for name in values["labels-s0"] if name.startswith("inpainting")]
    table = (out / "table.md").read_text()
    assert "| labels |  | 0 | — | — | — |" in table
    assert "— stands for inpainting-test/audio_gain: labels was trained with labels alone and has no decoder" in table
    (row,) = [line for line in table.splitlines() if line.startswith("| labels - A | inpainting-test/audio_gain")]
    assert row.split(" | ")[2:4] == ["0", "—"]
    told = found["references"]["endpoints"]["inpainting-test/audio_gain"]
    assert (told["informative"], told["share"], told["high"]) == (None, None, None)
    assert "has no decoder" in told["why"]
    assert "FLOPs of A, B lie within" in table
    assert found["best"]["arm"] in "AB"
    costs = {name: (arm["training"], arm["steps"], arm["flops"] is None) for name, arm in found["arms"].items()}
    assert costs["random"] == ("none", 0, True)
    assert costs["labels"] == ("supervised", 6, True)  # 24 clips in batches of 8, twice.
    assert costs["A"] == ("pretrain", 3, False)
    assert found["arms"]["labels"]["seconds"] > 0

    before = written(out)
    assert set(run(bounded(one_view, evaluations=EVALUATIONS), out).states.values()) == {"done"}
    assert written(out) == before


def test_a_random_arm_is_what_the_others_begin_with_and_a_supervised_one_learns_from_there(
    one_view: Path, tmp_path: Path
) -> None:
    run(bounded(one_view, seeds=[3], secondary={}), tmp_path / "s", arms=["random", "labels"])
    cells = tmp_path / "s" / "cells"
    fresh = pretrain.build_objective(recipes.load(one_view, ["seed=3"])).state_dict()
    state = weights(cells / "random-s3" / "untrained")
    assert state.keys() == fresh.keys()
    assert all(torch.equal(value, fresh[name]) for name, value in state.items())
    taught = open_model(cells / "labels-s3" / "supervised")
    assert taught.kind == "finetune"
    assert taught.step == 6
    assert not torch.equal(taught.encoder.state_dict()["modality_a"], fresh["encoder.modality_a"])
    began = weights(cells / "labels-s3" / "untrained")
    assert all(torch.equal(value, fresh[name]) for name, value in began.items())


def test_pre_training_does_not_go_on_from_a_run_that_was_never_trained(one_view: Path, tmp_path: Path) -> None:
    recipe = recipes.load(one_view)
    untrained.run(recipe, out=tmp_path / "r")
    before = written(tmp_path / "r")
    untrained.run(recipe, out=tmp_path / "r")
    assert written(tmp_path / "r") == before
    with pytest.raises(UsageFault, match="untrained: True -> unset"):
        pretrain.run(recipe, out=tmp_path / "r", device_name="cpu")
    with pytest.raises(UsageFault, match="seed: 0 -> 1"):
        untrained.run(recipes.load(one_view, ["seed=1"]), out=tmp_path / "r")


def test_references_are_no_candidates_for_the_best_arm(one_view: Path, tmp_path: Path) -> None:
    study = bounded(one_view, secondary={}, references=None)
    run(study, tmp_path / "s", arms=["A", "B"])
    found = run(study, tmp_path / "s", summary_only=True).payload
    assert found["best"]["arm"] in "AB"  # Though the references are missing.
    run(study, tmp_path / "s", arms=["random"])
    record = tmp_path / "s" / "cells" / "random-s0" / "cell.json"
    told = read_json(record)
    record.write_text(json.dumps({**told, "values": {ENDPOINT: 2.0}}))
    assert run(study, tmp_path / "s", summary_only=True).payload["best"]["arm"] in "AB"


def test_missing_and_failed_references_are_said(one_view: Path, tmp_path: Path) -> None:
    arms = [ARMS[0], {**ARMS[1], "set": {"finetune.optim.lr": 1e30}}, *ARMS[2:]]
    study = bounded(one_view, arms=arms, seeds=[0, 1], secondary={})
    done = run(study, tmp_path / "s", seeds=1)
    assert done.fault is not None
    assert "labels-s0: " in done.fault.cause
    assert "3 done, 1 failed" in done.fault.cause
    told = done.payload["references"]["endpoints"][ENDPOINT]
    assert (told["informative"], told["why"]) == (None, "cannot be told: labels has no finished cell yet")
    assert done.payload["primary"][0]["informative"] is None
    assert "failed: labels-s0" in (tmp_path / "s" / "table.md").read_text()


JUDGED = [
    (0.1, 0.5, 0.9, "max", True, "informative"),
    (0.1, 0.25, 0.9, "max", False, "uninformative: under 25%"),
    (0.1, 0.88, 0.9, "max", False, "uninformative: over 95%"),
    (0.1, 0.95, 0.9, "max", False, "uninformative: over 95%"),
    (0.1, 0.05, 0.9, "max", False, "uninformative: under 25%"),
    (0.9, 0.5, 0.1, "max", False, "uninformative: reversed, labels is not better than random"),
    (0.5, 0.5, 0.5, "max", False, "uninformative: equal, labels is not better than random"),
    (0.9, 0.5, 0.1, "min", True, "informative"),
    (0.1, 0.5, 0.9, "min", False, "uninformative: reversed, labels is not better than random"),
]
"""low, plain, high, goal, and what is said of such an endpoint."""


def test_an_endpoint_is_judged_by_the_share_of_the_gap_that_the_plain_arm_closes(
    one_view: Path, tmp_path: Path
) -> None:
    made = plan(bounded(one_view, secondary={}), tmp_path / "s")
    for low, middle, high, goal, informative, said in JUDGED:
        study = bounded(one_view, primary={"endpoint": ENDPOINT, "goal": goal}, secondary={})
        values = {ENDPOINT: {"random": {0: low}, "A": {0: middle}, "labels": {0: high}, "B": {}}}
        judged = sweep_references.judge(replace(made, study=study), values)[ENDPOINT]
        assert (judged.informative, judged.why) == (informative, said)
        if high != low and (high > low) == (goal == "max"):
            assert judged.share == pytest.approx((middle - low) / (high - low))
        else:
            assert math.isnan(judged.share)


def test_fewer_seeds_than_planned_stand_beside_the_verdict(one_view: Path, tmp_path: Path) -> None:
    study = bounded(one_view, seeds=[0, 1, 2], secondary={})
    values = {ENDPOINT: {"random": {0: 0.1}, "A": {0: 0.4, 1: 0.6}, "labels": {0: 0.9, 1: 0.9, 2: 0.9}, "B": {}}}
    judged = sweep_references.judge(plan(study, tmp_path / "s"), values)[ENDPOINT]
    assert judged.why == "informative; so far from random 1, A 2 of 3 seeds"
    assert judged.share == pytest.approx(0.5)


def test_an_uninformative_endpoint_is_marked_in_every_contrast(one_view: Path, tmp_path: Path) -> None:
    secondary = {"endpoints": ["retrieval-test/v2a_r5"]}
    study = bounded(one_view, secondary=secondary)
    run(study, tmp_path / "s")
    values = {"random": 0.2, "labels": 0.8, "A": 0.1, "B": 0.3}
    for arm, value in values.items():
        record = tmp_path / "s" / "cells" / f"{arm}-s0" / "cell.json"
        told = {ENDPOINT: value, "retrieval-test/v2a_r5": {**values, "A": 0.5}[arm]}
        record.write_text(json.dumps({**read_json(record), "values": told}))
    found = run(study, tmp_path / "s", summary_only=True).payload
    assert found["primary"][0]["informative"] is False
    assert found["secondary"][0]["informative"] is True
    lines = (tmp_path / "s" / "table.md").read_text().splitlines()
    primary, secondary_row = [line for line in lines if line.startswith("| B - A |")]
    assert primary.endswith("| one seed (endpoint uninformative) |")
    assert secondary_row.endswith("| one seed |")
    (row,) = [line for line in lines if line.startswith(f"| {ENDPOINT} | 0.2000")]
    assert row == f"| {ENDPOINT} | 0.2000 | 0.1000 | 0.8000 | -16.7% | uninformative: under 25% |"


def test_the_protocol_holds_references_and_how_they_are_trained(one_view: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    run(bounded(one_view, secondary={}), out, arms=["random"])
    other = [ARMS[0], {**ARMS[1], "set": {"finetune.training.epochs": 3}}, {**ARMS[2], "training": "none"}, ARMS[3]]
    changed = bounded(one_view, secondary={}, arms=other, references={**BOUNDS, "least": 0.3}, equal_flops=[])
    with pytest.raises(UsageFault, match="begun with another protocol") as fault:
        run(changed, out)
    for text in (
        "references.least: 0.25 -> 0.3",
        "arms.labels.supervised.finetune.training.epochs: 2 -> 3",
        "arms.A.reference: unset -> 'none'",
    ):
        assert text in fault.value.cause
    without = bounded(one_view, secondary={}, references=None)
    with pytest.raises(UsageFault, match=r"references\.low: 'random' -> unset"):
        run(without, out)


def test_a_study_that_began_before_references_existed_goes_on(one_view: Path, tmp_path: Path) -> None:
    keys = plan(a_study(one_view), tmp_path / "s").record()
    assert not [key for key in keys if key.startswith(("references", "curves")) or ".reference" in key]


def test_a_supervised_arm_needs_labels(one_view: Path, tiny_extraction: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tiny_extraction / "manifest.jsonl").open()]
    bare = tmp_path / "bare"
    shutil.copytree(tiny_extraction, bare)
    (bare / "manifest.jsonl").write_text("".join(json.dumps({**row, "labels": []}) + "\n" for row in rows))
    shard.run(bare, tmp_path / "unlabelled")
    with pytest.raises(DataFault, match=r"arm labels is supervised, but .* has no labels"):
        run(bounded(one_view, secondary={}), tmp_path / "s", shards=tmp_path / "unlabelled")
    assert not (tmp_path / "s").exists()
