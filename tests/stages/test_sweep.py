"""A study on tiny shards: its cells, its table, and every way in which it can be cut short."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sweep_studies import a_study, run, written

from kdctool import recipe as recipes
from kdctool.cli import run as command
from kdctool.errors import DataFault, Interrupted
from kdctool.shards import index as shard_index
from kdctool.stages import sweep_cell


def test_a_study_ends_in_a_table_with_every_seed_and_its_intervals(one_view: Path, tmp_path: Path) -> None:
    out = tmp_path / "my study"
    done = run(a_study(one_view), out)
    assert done.fault is None
    found = json.loads((out / "results.json").read_text())
    assert set(found["arms"]) == {"A", "B"}
    for arm in found["arms"].values():
        told = arm["endpoints"]["retrieval-test/a2v_r5"]
        assert set(told["seeds"]) == {"0", "1"}
        assert told["n"] == 2
        assert told["mean"] == pytest.approx(sum(told["seeds"].values()) / 2)
        assert arm["seconds"] > 0
        assert arm["steps"] == 3
    assert found["arms"]["B"]["flops"] > 1.5 * found["arms"]["A"]["flops"] > 0
    (primary,) = found["primary"]
    seeds = {name: found["arms"][name]["endpoints"]["retrieval-test/a2v_r5"]["seeds"] for name in "AB"}
    assert primary["seeds"] == {seed: pytest.approx(seeds["B"][seed] - seeds["A"][seed]) for seed in ("0", "1")}
    assert primary["p_holm"] is None
    assert primary["over_clips"]["clips"] == 20
    (secondary,) = found["secondary"]
    assert (secondary["endpoint"], secondary["n"]) == ("retrieval-test/v2a_r5", 2)
    assert found["best"]["arm"] in "AB"
    table = (out / "table.md").read_text()
    assert "4 of 4 cells are done" in table
    assert "| B - A | 2 |" in table
    assert "FLOPs of A, B lie within" in table


def test_an_endpoint_can_be_the_mean_of_several_evaluations(one_view: Path, tmp_path: Path) -> None:
    halves = [[f"clip-{i}" for i in range(44) if i % 2 == half] for half in (0, 1)]
    index = shard_index.load(Path(recipes.load(one_view).data.shards)).split("test")
    keys = [index.key(i) for i in range(len(index))]
    for half, names in enumerate(halves):
        own = [key for key in keys if key.rpartition("-")[0] in names]
        (tmp_path / f"half-{half}.txt").write_text("\n".join(own))
    galleries = [
        {"task": "retrieval", "name": f"half_{half}", "options": {"list": f"{tmp_path}/half-{half}.txt"}}
        for half in (0, 1)
    ]
    study = a_study(one_view, seeds=[0], evaluations=galleries, secondary={},
                    primary={"endpoint": "half_*/a2v_r1", "contrasts": [["B", "A"]]})  # fmt: skip
    done = run(study, tmp_path / "s")
    values = done.payload["cells"]["A-s0"]["values"]
    mean = (values["half_0/a2v_r1"] + values["half_1/a2v_r1"]) / 2
    assert done.payload["arms"]["A"]["endpoints"]["half_*/a2v_r1"]["mean"] == pytest.approx(mean)
    assert done.payload["primary"][0]["over_clips"]["clips"] == 20


def test_the_same_command_again_trains_nothing(one_view: Path, tmp_path: Path) -> None:
    run(a_study(one_view), tmp_path / "s")
    before = written(tmp_path / "s")
    assert run(a_study(one_view), tmp_path / "s").states == dict.fromkeys(("A-s0", "B-s0", "A-s1", "B-s1"), "done")
    assert written(tmp_path / "s") == before


def test_seeds_may_be_added(one_view: Path, tmp_path: Path) -> None:
    run(a_study(one_view, seeds=[0]), tmp_path / "s")
    before = written(tmp_path / "s")
    done = run(a_study(one_view), tmp_path / "s")
    assert before.items() <= written(tmp_path / "s").items()
    assert done.payload["primary"][0]["n"] == 2


def test_a_task_that_scores_a_classifier_is_preceded_by_finetuning(one_view: Path, tmp_path: Path) -> None:
    evaluations = [{"task": "classification", "name": "linear", "set": {"finetune.freeze_encoder": True}}]
    study = a_study(one_view, seeds=[0], evaluations=evaluations, secondary={},
                    primary={"endpoint": "linear/top1", "contrasts": [["B", "A"]]})  # fmt: skip
    done = run(study, tmp_path / "s")
    cell = tmp_path / "s" / "cells" / "B-s0"
    assert recipes.load(cell / "finetune-linear" / "recipe.toml").finetune.freeze_encoder
    assert done.payload["cells"]["B-s0"]["values"]["linear/top1"] is not None
    assert done.payload["cells"]["B-s0"]["seconds"]["finetune"] > 0
    assert done.payload["primary"][0]["verdict"] == "one seed"
    assert done.payload["primary"][0]["low"] is None


def test_cells_that_end_in_different_states_are_listed_and_the_table_says_n(one_view: Path, tmp_path: Path) -> None:
    arms = [{"name": "A"}, {"name": "B", "set": {"optim.lr": 1e30}}]
    done = run(a_study(one_view, arms=arms), tmp_path / "s")
    assert done.fault is not None
    assert done.fault.exit_code == 1
    assert "2 done, 2 failed" in done.fault.cause
    assert "B-s0: " in done.fault.cause
    assert "B-s1: " in done.fault.cause
    assert done.payload["primary"][0]["n"] == 0
    assert done.payload["best"] is None
    table = (tmp_path / "s" / "table.md").read_text()
    assert "failed: B-s0, B-s1" in table
    assert "| B - A | 0 |" in table


def test_missing_seeds_are_no_fault_and_the_table_says_n(one_view: Path, tmp_path: Path) -> None:
    study = a_study(one_view)
    run(study, tmp_path / "s", cell="1/4")
    run(study, tmp_path / "s", cell="2/4")
    run(study, tmp_path / "s", arms=["A"], seeds=2)
    done = run(study, tmp_path / "s", summary_only=True)
    assert done.fault is None
    assert done.states == {"A-s0": "done", "B-s0": "done", "A-s1": "done", "B-s1": "missing"}
    assert done.payload["primary"][0]["n"] == 1
    assert done.payload["primary"][0]["seeds"].keys() == {"0"}
    assert done.payload["best"] is None
    assert "missing: B-s1" in (tmp_path / "s" / "table.md").read_text()


def test_a_part_runs_its_own_cells_and_writes_no_table(one_view: Path, tmp_path: Path) -> None:
    done = run(a_study(one_view), tmp_path / "s", cell="2/2")
    assert done.states == {"A-s0": "missing", "B-s0": "done", "A-s1": "missing", "B-s1": "done"}
    assert not (tmp_path / "s" / "table.md").exists()


def test_a_cell_that_was_stopped_goes_on_without_training_again(
    one_view: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped by SIGUSR1", "again")

    with monkeypatch.context() as patch:
        patch.setattr(sweep_cell.evaluate, "run", stop)
        with pytest.raises(Interrupted):
            run(a_study(one_view), tmp_path / "s")
    states = run(a_study(one_view), tmp_path / "s", summary_only=True).states
    assert states == {"A-s0": "interrupted", "B-s0": "missing", "A-s1": "missing", "B-s1": "missing"}
    before = written(tmp_path / "s")
    assert run(a_study(one_view), tmp_path / "s", cell="1/4").states["A-s0"] == "done"
    assert written(tmp_path / "s") == before


def test_a_cell_whose_process_was_killed_is_interrupted(one_view: Path, tmp_path: Path) -> None:
    study = a_study(one_view)
    run(study, tmp_path / "s", cell="1/4")
    record = tmp_path / "s" / "cells" / "A-s0" / "cell.json"
    record.write_text(record.read_text().replace('"done"', '"running"'))
    assert run(study, tmp_path / "s", summary_only=True).states["A-s0"] == "interrupted"


def test_time_that_is_over_ends_with_the_code_that_says_again(one_view: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped:
        run(a_study(one_view, seeds=list(range(40))), tmp_path / "s", minutes=0.05)
    assert stopped.value.exit_code == 75


def test_clips_of_one_cluster_are_drawn_together(one_view: Path, tiny_extraction: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tiny_extraction / "manifest.jsonl").open()]
    truth = tmp_path / "truth.jsonl"
    study = a_study(one_view, seeds=[0], clusters={"file": str(truth), "key": "recording", "clip": "uid"})
    truth.write_text("".join(json.dumps({"uid": r["uid"], "recording": r["labels"][0]}) + "\n" for r in rows))
    done = run(study, tmp_path / "s")
    assert done.payload["primary"][0]["over_clips"]["clusters"] == 3
    truth.write_text("")
    with pytest.raises(DataFault, match="has no row for 20 of 20 clips"):
        run(study, tmp_path / "s", summary_only=True)
    truth.write_text("{}\n")
    with pytest.raises(DataFault, match="cannot be read"):
        run(study, tmp_path / "s", summary_only=True)
    truth.unlink()
    with pytest.raises(DataFault, match="does not exist"):
        run(study, tmp_path / "s", summary_only=True)


def test_a_plot_shows_arms_and_contrasts_and_is_the_same_twice(one_view: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run(a_study(one_view, seeds=[0]), tmp_path / "s")
    assert [path.name for path in done.plots] == ["plot.svg", "plot.png"]
    before = done.plots[0].read_bytes()
    assert b"B - A" in before
    assert run(a_study(one_view, seeds=[0]), tmp_path / "s").plots[0].read_bytes() == before


def test_a_sweep_of_a_failed_cell_ends_with_code_1_after_its_table(
    one_view: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["sweep", str(one_view), "--grid", "optim.lr=1e-3,1e30", "--out", str(tmp_path / "g"), "--device", "cpu"]
    assert command([*asked, "--workers", "0"]) == 1
    told = capsys.readouterr()
    assert "1 of 2 cells are done" in told.out
    assert "ended in different states: 1 done, 1 failed" in told.err


@pytest.mark.e2e
def test_cells_run_side_by_side_in_processes(one_view: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["sweep", str(one_view), "--grid", "optim.lr=1e-3,1e-4", "--out", str(tmp_path / "g"), "--device", "cpu",
             "--workers", "0", "--jobs", "2"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["kdctool", *asked])
    assert command(asked) == 0
    found = json.loads((tmp_path / "g" / "results.json").read_text())
    assert {cell["state"] for cell in found["cells"].values()} == {"done"}
    assert math.isfinite(found["secondary"][0]["mean"])
