"""study.py: every shipped study can be planned, each finds what it takes over, and what it will take is told."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from avdigits import build, chain, hours, lending, study, throughput
from avdigits.hours import Cost, Measured
from avdigits_made_up import made_up

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.files import write_json
from kdctool.recipe.study import Study, load_study
from kdctool.stages import sweep
from kdctool.stages.sweep_best import RESULTS

COUNTS: dict[str, int | None] = {"train": 8, "val": 4, "test": 3, "test_hard": 3}
NAMES = study.CHAIN.studies
TINY = [
    "training.global_batch=4", "model.width=24", "model.heads=3", "model.depth=1", "objective.decoder.width=16",
    "objective.decoder.depth=1", "training.precision=fp32", "data.workers=0", "finetune.training.global_batch=4",
]  # fmt: skip
BEST: dict[str, dict[str, Any]] = {
    "avdigits_weight": {
        "arm": "warm-0.1",
        "set": {"objective.contrastive.weight": 0.1, "objective.contrastive.direction": "both"},
        "length": 1.0,
    },
    "avdigits_tune": {
        "arm": "softmax-100",
        "set": {
            "objective.contrastive.weight": 0.1, "objective.contrastive.direction": "both",
            "objective.self_distillation.weight": 100.0, "objective.self_distillation.distribution": "softmax",
        },
        "length": 1.0,
    },
    "avdigits_ideas": {
        "arm": "light",
        "set": {
            "objective.contrastive.weight": 0.1, "objective.contrastive.direction": "both",
            "objective.decoder.kind": "light", "objective.decoder.share": 0.25,
        },
        "length": 1.7,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AV-Digits of a few made-up clips, with a list for each of the five galleries."""
    built = build.build(made_up(), tmp_path_factory.mktemp("avdigits") / "a b", COUNTS, 0, 1)
    lists = built.truth.parent / "galleries"
    known = next(lists.glob("test-*.txt")).read_text()
    for index in range(5):
        (lists / f"test-{index}.txt").write_text(known)
    return built.shards


def arguments(out: Path, **more: Any) -> argparse.Namespace:
    asked = {"out": out, "quick": False, "only": None, "steps": None, "jobs": 1, "device": "cpu", "set": TINY}
    return argparse.Namespace(**{**asked, **more})


def results(out: Path, *names: str) -> None:
    for name in names:
        (out / "studies" / name).mkdir(parents=True, exist_ok=True)
        write_json(out / "studies" / name / RESULTS, {"best": BEST[name]})


def planned(out: Path, name: str, shards: Path) -> sweep.Swept:
    return sweep.run(
        load_study(chain.study_path(out, name)),
        shards=shards, out=out / "studies" / name, overrides=TINY, dry_run=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_study_of_the_chain_can_be_planned_at_equal_flops(name: str, shards: Path, tmp_path: Path) -> None:
    chain.write_studies(study.CHAIN, arguments(tmp_path))
    results(tmp_path, *BEST)
    tree = load_study(chain.study_path(tmp_path, name))
    found = planned(tmp_path, name, shards).payload
    assert set(found["steps"]) == {arm.name for arm in tree.arms}
    assert len(found["cells"]) == len(tree.arms) * len(tree.seeds)
    # A small model spends more on its patch embedding, which one view for 2 T pays twice.
    equal = [found["flops"][arm] for arm in tree.equal_flops if arm != "W"]
    assert not equal or max(equal) / min(equal) < 1.08
    assert found["steps"].get("W", 3400) == 3400  # As long as the idea that it takes over.
    for arm in tree.arms:
        assert (found["steps"][arm.name] == 0) == (arm.training == "none")
        if arm.training == "pretrain" and not (arm.flops_of or arm.best_of):
            assert found["steps"][arm.name] == round(2000 * arm.length)


def test_twice_as_long_on_one_view_costs_what_two_views_cost() -> None:
    one, two = (recipes.load(chain.ROOT / "recipes" / f"avdigits_{name}.toml") for name in ("cavmae_2t", "kdcmae"))
    assert 2 * hours.flops_of(one) / hours.flops_of(two) == pytest.approx(1.0, abs=0.02)


def test_every_study_after_the_first_takes_over_the_contrastive_weight_and_no_seed_chooses_and_tests() -> None:
    trees = {name: chain.shipped(name) for name in NAMES}
    assert {name for name, tree in trees.items() if tree.get("best_of") == "avdigits_weight.toml"} == set(NAMES[1:])
    chosen = {seed for name in (*NAMES[:2], "avdigits_ideas") for seed in trees[name]["seeds"]}
    tested = {seed for name in ("avdigits", "avdigits_parts", "avdigits_labels") for seed in trees[name]["seeds"]}
    fresh = set(trees["avdigits_winner"]["seeds"])
    assert not chosen & tested
    assert not fresh & (chosen | tested)
    assert len(fresh) == 8
    assert all(len(trees[name]["seeds"]) >= 2 for name in NAMES[:2])
    for name in ("avdigits_weight", "avdigits_tune", "avdigits_ideas"):
        assert {item["split"] for item in trees[name]["evaluations"]} == {"val"}


def test_galleries_are_counted_by_digit_speaker_and_gain_wherever_there_are_any() -> None:
    for name in (*NAMES, "avdigits_teachers", "avdigits_hybrid"):
        for item in chain.shipped(name)["evaluations"]:
            if item["task"] == "retrieval":
                assert item["options"]["by"] == "label,speaker,gain", name
                assert item["options"]["attributes"].endswith("videos/truth.jsonl")


def test_label_budgets_are_the_protocols_for_probes_and_for_finetuning() -> None:
    tree = load_study(chain.SHIPPED / "avdigits_labels.toml")
    probe = next(item for item in tree.evaluations if item.task == "probe")
    assert set(probe.options["labels"].split(",")) >= {"k1", "k5", "k10", "0.01", "0.1", "all"}
    few = [item.set["finetune"] for item in tree.evaluations if item.task == "classification"]
    assert {(one.get("per_class", 0), one.get("share", 1.0)) for one in few} >= {
        (10, 1.0), (0, 0.01), (0, 0.1), (0, 1.0),
    }  # fmt: skip
    assert {curve.name for curve in tree.curves} == {"linear probe", "finetuning"}


def test_a_study_stops_where_an_earlier_one_has_no_best_arm(tmp_path: Path) -> None:
    chain.write_studies(study.CHAIN, arguments(tmp_path))
    folder = tmp_path / "studies"
    assert chain.refused_or_empty("avdigits_weight", folder) == ""
    with pytest.raises(UsageFault, match="avdigits_tune takes over the best arm of avdigits_weight") as caught:
        chain.refused_or_empty("avdigits_tune", folder)
    assert caught.value.next_step.startswith("--only weight first")
    results(tmp_path, "avdigits_weight")
    with pytest.raises(UsageFault, match="avdigits takes over the best arm of avdigits_tune"):
        chain.refused_or_empty("avdigits", folder)
    write_json(folder / "avdigits_weight" / RESULTS, {"best": None})
    with pytest.raises(UsageFault, match="not all of its cells are done"):
        chain.refused_or_empty("avdigits_parts", folder)


def test_the_winner_is_not_tested_where_it_is_what_it_would_be_compared_with(tmp_path: Path) -> None:
    chain.write_studies(study.CHAIN, arguments(tmp_path))
    results(tmp_path, *BEST)
    folder = tmp_path / "studies"
    assert chain.refused_or_empty("avdigits_winner", folder) == ""
    for arm, is_left_out in (("tuned", False), ("D", True)):
        write_json(folder / "avdigits_ideas" / RESULTS, {"best": {**BEST["avdigits_ideas"], "arm": arm}})
        assert bool(chain.refused_or_empty("avdigits_winner", folder)) == is_left_out
    assert "arm D, which changes nothing" in chain.refused_or_empty("avdigits_winner", folder)


def test_only_chooses_studies_by_short_names_and_keeps_their_order() -> None:
    assert chain.selected(study.CHAIN, None, False) == NAMES
    assert chain.selected(study.CHAIN, "labels, main,avdigits_tune", False) == (
        "avdigits_tune", "avdigits", "avdigits_labels",
    )  # fmt: skip
    for wrong in ("mian", "tune,mian", "", ","):
        with pytest.raises(UsageFault) as caught:
            chain.selected(study.CHAIN, wrong, False)
        assert "weight, tune, main, parts, ideas, winner, labels" in caught.value.next_step


def test_t_is_the_same_for_all_studies_and_for_every_later_call(tmp_path: Path) -> None:
    chain.write_studies(study.CHAIN, arguments(tmp_path, steps=700))
    chain.write_studies(study.CHAIN, arguments(tmp_path))
    assert {load_study(chain.study_path(tmp_path, name)).steps for name in NAMES} == {700}
    with pytest.raises(UsageFault, match="were begun with T = 700"):
        chain.write_studies(study.CHAIN, arguments(tmp_path, steps=800))
    with pytest.raises(UsageFault, match="no number of steps"):
        chain.write_studies(study.CHAIN, arguments(tmp_path / "new", steps=0))


def small(name: str, out: Path, steps: int = 2, **arms: dict[str, Any]) -> Study:
    """A study of arms of three fields on the two recipes of one view and of two."""
    recipes = {
        "A": chain.ROOT / "recipes" / "avdigits_cavmae.toml",
        "D": chain.ROOT / "recipes" / "avdigits_kdcmae.toml",
    }
    tree = {
        "name": name, "seeds": [0], "steps": steps,
        "varies": ["objective", "masking"],
        "arms": [{"name": arm, "recipe": str(recipes[arm[0]]), "set": change} for arm, change in arms.items()],
        "evaluations": [{"task": "retrieval", "split": "val"}],
        "primary": {"endpoint": "retrieval-val/a2v_r1"},
    }  # fmt: skip
    return Study.model_validate(tree)


def test_what_another_study_has_trained_is_taken_over_where_it_is_the_same(shards: Path, tmp_path: Path) -> None:
    how = {"shards": shards, "overrides": TINY, "device_name": "cpu", "workers": 0}
    sweep.run(small("first", tmp_path, A={}, D={}), out=tmp_path / "first", **how)
    other = {"objective": {"self_distillation": {"weight": 3.0}}}
    second = small("second", tmp_path, A={}, D=other, D2={})
    lent = lending.lend(second, shards, tmp_path / "second", TINY)
    assert lent == ["A-s0"]  # D has another weight there, and D2 another name.
    mine, theirs = (tmp_path / name / "cells" / "A-s0" / "pretrain" for name in ("second", "first"))
    model = next(theirs.rglob("model.safetensors")).relative_to(theirs)
    assert os.path.samefile(mine / model, theirs / model)
    assert not list(mine.rglob(".*"))
    done = sweep.run(second, out=tmp_path / "second", **how)
    assert set(done.states.values()) == {"done"}
    assert os.path.samefile(mine / model, theirs / model)
    told = done.payload["cells"]["A-s0"]
    assert told["seconds"]["pretrain"] == json.loads((theirs.parent / "cell.json").read_text())["seconds"]["pretrain"]
    assert lending.lend(second, shards, tmp_path / "second", TINY) == []
    longer = small("third", tmp_path, steps=4, A={})
    assert lending.lend(longer, shards, tmp_path / "third", TINY) == []


MEASURED = Measured(100.0, 1e9, 36.0, {})


def test_hours_follow_from_rate_flops_and_seconds() -> None:
    one = Cost("x", 4, steps_flops=3600 * 1e11, other_flops=360 * 1e11, starts=10, evaluating_s=360)
    assert one.hours(MEASURED, 1) == pytest.approx(1 + 0.1 + 0.2)
    assert one.hours(MEASURED, 2) == pytest.approx(1 + 0.1 + 0.1)
    assert one.hours(MEASURED, 1, 0.0) == pytest.approx(0.3)
    costs = [one, Cost("y", 2, 3600 * 1e11, 0.0, 0, 0.0)]
    fits = hours.steps_that_fit(costs, MEASURED, 1, 2000, 1.3)
    assert fits == 1000
    assert sum(item.hours(MEASURED, 1, fits / 2000) for item in costs) <= 1.3
    assert hours.steps_that_fit(costs, MEASURED, 1, 2000, 0.2) is None


def test_a_plan_counts_studies_before_any_has_run(shards: Path, tmp_path: Path) -> None:
    names = ("avdigits_tune", "avdigits", "avdigits_labels")
    studies = {name: hours.alone(study.CHAIN, name, tmp_path, 1000) for name in names}
    kinds = {hours.kind(item): 1.0 for one in studies.values() for item in one.evaluations}
    measured = Measured(100.0, hours.flops_of(recipes.load(hours.RECIPE, TINY)), 9.0, kinds)
    costs = {name: hours.cost(one, shards, TINY, measured) for name, one in studies.items()}
    assert costs["avdigits_tune"].steps_flops == pytest.approx(12 * 1000 * 4 * measured.flops_per_clip)
    assert costs["avdigits_tune"].other_flops == 0 < costs["avdigits_labels"].other_flops
    assert costs["avdigits"].other_flops > 0  # The supervised reference.
    assert costs["avdigits_labels"].cells == 15
    assert costs["avdigits_labels"].starts == 3 * (4 + 5 * 5)  # Four arms are pre-trained, five finetuned five times.
    assert costs["avdigits"].starts == 5 * 6
    # Every cell is measured on every evaluation, but for what the supervised encoder has no decoder for.
    assert costs["avdigits"].evaluating_s == 5 * (7 * 10 - 1)
    assert len([name for name in kinds if name.startswith("retrieval test")]) == 1
    assert {name: hours.alone(study.CHAIN, name, tmp_path, 7).steps for name in NAMES} == dict.fromkeys(NAMES, 7)


@pytest.mark.e2e
def test_throughput_measures_arm_d_and_every_kind_of_evaluation(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(chain_: chain.Chain, name: str, folder: Path, steps: int) -> Study:
        del chain_, folder
        return small(name, tmp_path, steps, D={})

    monkeypatch.setattr(hours, "alone", alone)
    monkeypatch.setattr(throughput, "SECONDS", 1.0)
    monkeypatch.setattr(throughput, "read", lambda *_: None)
    monkeypatch.setattr(build, "build", lambda *_: build.Built(shards, shards, {}, {}))
    asked = {"speech": None, "digits": None, "seed": 0, "workers": 1, "budget_hours": 1.0}
    line = throughput.run(study.CHAIN, arguments(tmp_path, only="tune", steps=500, **asked))
    told = {row["name"]: row["value"] for row in line["results"]}
    assert told["arm D"] > 0
    assert told["start"] > 0
    assert told["evaluation retrieval val"] > 0
    assert line["hours"] == pytest.approx(told["avdigits_tune, T = 500"], abs=0.01)
    assert line["steps_that_fit"] > 0
    assert not (tmp_path / throughput.FOLDER).exists()


def two_arms(name: str, tree: chain.Tree, out: Path, quick: bool) -> chain.Tree:
    """Two arms, one seed, one evaluation of a shipped study."""
    del name, out, quick
    named = {"probe_both/linear_k10_top1": "retrieval/a2v_r1"}
    endpoint = named[tree["primary"]["endpoint"]]
    evaluations = [item for item in tree["evaluations"] if item["task"] == "retrieval"]
    rest = {key: value for key, value in tree.items() if key != "secondary"}
    return {
        **rest,
        "arms": tree["arms"][:2],
        "seeds": [9],
        "evaluations": evaluations,
        "primary": {"endpoint": endpoint},
    }


@pytest.mark.e2e
def test_a_chain_runs_in_order_tells_every_table_and_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "read", lambda *_: made_up())
    ours = replace(study.CHAIN, studies=NAMES[:2], changed=two_arms)
    write_json(tmp_path / chain.GATES, [{"name": "a gate", "passed": True}])
    asked = [
        "--speech",
        "x",
        "--digits",
        "x",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--workers",
        "1",
        "--steps",
        "4",
    ]
    asked += [f"--{name.replace('_', '-')}={count}" for name, count in COUNTS.items()]
    args = chain.parser("", ours).parse_args([*asked, *(part for item in TINY for part in ("--set", item))])
    with pytest.raises(UsageFault, match="avdigits_tune takes over the best arm of avdigits_weight"):
        chain.run(ours, argparse.Namespace(**{**vars(args), "only": "tune"}))
    line = chain.run(ours, args)
    assert line["benchmark"] == "avdigits_study"
    assert list(line["contrasts"]) == list(ours.studies)
    assert len(line["results"]) == 4
    folder = tmp_path / "studies"
    best = json.loads((folder / "avdigits_weight" / RESULTS).read_text())["best"]
    run = json.loads((folder / "avdigits_tune" / "cells" / "shifted-10-s9" / "pretrain" / "run.json").read_text())
    assert best["set"].items() <= run["keys"].items()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(before) == 8  # Model and optimiser of four cells.
    chain.run(ours, args)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
