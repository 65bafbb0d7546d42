"""The best arm of another study, taken over from its results: chains, lengths, circles and what is refused."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sweep_studies import TWO_VIEWS, run

from kdctool.cli import run as command
from kdctool.errors import UsageFault
from kdctool.files import read_json
from kdctool.recipe.study import load_study
from kdctool.stages import sweep_cell, sweep_plan
from kdctool.stages.sweep_cell import questions

ENDPOINT = "retrieval-test/a2v_r5"
WEIGHT = "objective.contrastive.weight"


def write(folder: Path, name: str, recipe: Path, **more: Any) -> Path:
    tree = {
        "name": name,
        "recipe": str(recipe),
        "steps": 30,
        "evaluations": [{"task": "retrieval"}],
        "primary": {"endpoint": ENDPOINT},
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tree | more))
    return path


def decide(path: Path, studies: Path, best: str) -> None:
    """Results of a study as `kdctool sweep` writes them, had its arm `best` been the best."""
    made = plan(path, studies)
    for place, cell in enumerate(made.cells):
        values = {ENDPOINT: 1.0 if cell.arm.name == best else place / 1000}
        record = sweep_cell.Record(cell.arm.name, cell.seed, "done", values=values, measured=questions(made))
        made.folder(cell).mkdir(parents=True)
        (made.folder(cell) / sweep_cell.CELL).write_text(json.dumps(asdict(record)))
    assert run(load_study(path), made.out, summary_only=True).payload["best"]["arm"] == best


def plan(path: Path, studies: Path) -> sweep_plan.Plan:
    study = load_study(path)
    return sweep_plan.make_plan(study, shards=None, out=studies / study.name, overrides=[], arms=[], seeds=None)


def test_the_best_of_a_study_without_results_is_asked_for(one_view: Path, tmp_path: Path) -> None:
    arms = [{"name": "low", "set": {"optim.lr": 1e-4}}, {"name": "high", "set": {"optim.lr": 5e-3}}]
    tune = write(tmp_path, "tune", one_view, arms=arms, steps=0)
    main = write(tmp_path, "main", one_view, arms=[{"name": "A"}, {"name": "B", "best_of": "tune.toml"}])
    with pytest.raises(UsageFault, match="best arm of study tune is to be taken over") as fault:
        plan(main, tmp_path / "all")
    assert f"kdctool sweep {tune} --out {tmp_path / 'all' / 'tune'}" in fault.value.next_step
    place = ["--out", str(tmp_path / "all" / "tune"), "--device", "cpu", "--workers", "0"]
    assert command(["sweep", str(tune), *place]) == 0
    best = read_json(tmp_path / "all" / "tune" / "results.json")["best"]
    made = plan(main, tmp_path / "all")
    assert made.arms[1].recipe.optim.lr == best["set"]["optim.lr"]
    assert made.taken_over == {"B": f"arm {best['arm']} of study tune"}


def test_a_chain_of_studies_hands_everything_on(one_view: Path, tmp_path: Path) -> None:
    """Weight for all, tuned on top of it, ideas on top of both; the winner is the best idea, length and all."""
    studies = tmp_path / "all"
    weights = [{"name": f"w{value}", "set": {WEIGHT: value}} for value in (0.1, 0.5)]
    weight = write(tmp_path, "weight", one_view, arms=weights)
    decide(weight, studies, "w0.5")
    rates = [{"name": f"lr{value}", "set": {"optim.lr": value}} for value in (2e-3, 4e-3)]
    tune = write(tmp_path, "tune", one_view, arms=rates, best_of="weight.toml")
    decide(tune, studies, "lr0.004")
    assert read_json(studies / "tune" / "results.json")["best"]["set"] == {WEIGHT: 0.5, "optim.lr": 4e-3}
    dear = tmp_path / "dear.toml"
    dear.write_text(one_view.read_text().replace("width = 16", "width = 32"))
    arms = [
        {"name": "D"},
        {"name": "tuned", "best_of": "tune.toml"},
        {"name": "two", "best_of": "tune.toml", "set": TWO_VIEWS, "flops_of": "D"},
        {"name": "dear", "recipe": "dear.toml", "flops_of": "D", "set": {"optim.lr": 6e-3}},
    ]
    varies = ["objective.decoder.width"]
    ideas = write(tmp_path, "ideas", one_view, arms=arms, best_of="weight.toml", varies=varies)
    winner = write(tmp_path, "winner", one_view, arms=[{"name": "D"}, {"name": "W", "best_of": "ideas.toml"}],
                   best_of="weight.toml", varies=varies)  # fmt: skip
    decide(ideas, studies, "two")
    made = plan(winner, studies)
    then = {arm.name: arm for arm in plan(ideas, studies).arms}
    won = made.arms[1]
    assert won.recipe.objective.contrastive.weight == made.arms[0].recipe.objective.contrastive.weight == 0.5
    assert (won.recipe.optim.lr, won.recipe.masking.views) == (4e-3, 2)
    assert won.steps == then["two"].steps < 0.7 * then["D"].steps
    assert won.flops == pytest.approx(then["D"].flops, rel=0.1)
    assert made.taken_over == {"": "arm w0.5 of study weight", "W": "arm two of study ideas"}

    found = read_json(studies / "ideas" / "results.json")
    for arm, steps, width, rate in (("dear", then["dear"].steps, 32, 6e-3), ("tuned", then["D"].steps, 16, 4e-3)):
        best = {"arm": arm, "set": then[arm].own, "length": then[arm].length}
        (studies / "ideas" / "results.json").write_text(json.dumps({**found, "best": best}))
        won = plan(winner, studies).arms[1]
        assert (won.steps, won.recipe.objective.decoder.width, won.recipe.optim.lr) == (steps, width, rate)

    write(tmp_path, "winner", one_view, arms=[{"name": "D"}, {"name": "W"}], best_of="ideas.toml", varies=varies)
    best = {"arm": "dear", "set": then["dear"].own, "length": then["dear"].length}
    (studies / "ideas" / "results.json").write_text(json.dumps({**found, "best": best}))
    with pytest.raises(UsageFault, match="a recipe that other arms there do not have and a length of its own"):
        plan(winner, studies)


def test_what_was_taken_over_is_the_protocol_and_stands_under_the_table(one_view: Path, tmp_path: Path) -> None:
    studies = tmp_path / "all"
    arms = [{"name": f"w{value}", "set": {WEIGHT: value}} for value in (0.1, 0.5)]
    decide(write(tmp_path, "weight", one_view, arms=arms), studies, "w0.5")
    main = write(tmp_path, "main", one_view, arms=[{"name": "A"}], best_of="weight.toml", steps=0)
    done = run(load_study(main), studies / "main")
    assert "all arms take over what arm w0.5 of study weight sets" in done.notes
    about = read_json(studies / "main" / "protocol.json")
    assert about["keys"]["arms.A.objective.contrastive.weight"] == 0.5
    assert about["taken_over"] == {"": "arm w0.5 of study weight"}
    found = read_json(studies / "weight" / "results.json")
    changed = {**found, "best": {"arm": "w0.1", "set": {WEIGHT: 0.1}, "length": 1.0}}
    (studies / "weight" / "results.json").write_text(json.dumps(changed))
    with pytest.raises(UsageFault, match=r"arms\.A\.objective\.contrastive\.weight: 0\.5 -> 0\.1"):
        run(load_study(main), studies / "main")


def test_studies_that_take_over_from_each_other_are_refused(one_view: Path, tmp_path: Path) -> None:
    one = write(tmp_path, "one", one_view, arms=[{"name": "A", "best_of": "two.toml"}])
    write(tmp_path, "two", one_view, arms=[{"name": "A"}], best_of="three.toml")
    write(tmp_path, "three", one_view, arms=[{"name": "A"}, {"name": "B", "best_of": "one.toml"}])
    with pytest.raises(UsageFault, match=r"round in a circle: .*two\.toml -> .*three\.toml -> .*one\.toml -> .*two"):
        plan(one, tmp_path / "all")
    itself = write(tmp_path, "itself", one_view, arms=[{"name": "A"}], best_of="itself.toml")
    with pytest.raises(UsageFault, match="circle"):
        plan(itself, tmp_path / "all")


def test_results_that_do_not_say_all_of_their_best_arm_are_refused(one_view: Path, tmp_path: Path) -> None:
    studies = tmp_path / "all"
    tune = write(tmp_path, "tune", one_view, arms=[{"name": "low", "set": {"optim.lr": 1e-4}}])
    main = write(tmp_path, "main", one_view, arms=[{"name": "A"}, {"name": "B", "best_of": "tune.toml"}])
    (studies / "tune").mkdir(parents=True)
    results = studies / "tune" / "results.json"
    results.write_text(json.dumps({"best": {"arm": "low", "set": {"optim.lr": 1e-4}}}))
    with pytest.raises(UsageFault, match="an older kdctool") as fault:
        plan(main, studies)
    assert fault.value.next_step == f"kdctool sweep {tune} --out {studies / 'tune'} --summary"
    results.write_text(json.dumps({"best": {"arm": "high", "set": {}, "length": 1.0}}))
    with pytest.raises(UsageFault, match=r"arm high is the best, which .* does not have"):
        plan(main, studies)
