"""What a study plans, what pairs its arms, and what it refuses before or after it began."""

import json
from pathlib import Path

import pytest
import torch
from sweep_studies import TWO_VIEWS, a_study, run, written

from kdctool.cli import run as command
from kdctool.cli.sweep import for_one_cell
from kdctool.errors import DataFault, UsageFault
from kdctool.recipe.study import Study
from kdctool.recipe.study_parts import Evaluation
from kdctool.seeds import fold
from kdctool.stages import pretrain, sweep_plan

AGAIN = {"task": "retrieval", "name": "again", "options": {"frames": "mean"}}


def test_an_endpoint_that_the_task_does_not_give_ends_the_study(one_view: Path, tmp_path: Path) -> None:
    study = a_study(one_view, secondary={}, primary={"endpoint": "retrieval-test/a2v_r7"})
    with pytest.raises(UsageFault, match="retrieval gives no a2v_r7") as fault:
        run(study, tmp_path / "s")
    assert "a2v_r5" in fault.value.next_step


def test_shards_stand_in_options_by_their_name() -> None:
    item = Evaluation(task="localization", options={"truth": "{shards}/../truth.jsonl", "negatives": False})
    assert item.options_on(Path("a b")) == {"truth": "a b/../truth.jsonl", "negatives": False}


@pytest.mark.parametrize("part", ["0/4", "5/4", "x", "1/9"])
def test_a_part_that_is_none_is_refused(one_view: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(UsageFault, match="--cell"):
        run(a_study(one_view), tmp_path / "s", cell=part)
    assert not (tmp_path / "s").exists()


def test_a_changed_protocol_is_refused_with_every_change(one_view: Path, tmp_path: Path) -> None:
    run(a_study(one_view), tmp_path / "s", cell="1/4")
    changed = a_study(
        one_view,
        evaluations=[{"task": "retrieval"}, AGAIN],
        primary={"endpoint": "again/a2v_r1", "contrasts": [["A", "B"]]},
    )
    with pytest.raises(UsageFault, match="begun with another protocol") as fault:
        run(changed, tmp_path / "s")
    for text in (
        "evaluations.again.task",
        "primary.endpoint: 'retrieval-test/a2v_r5' -> ",
        "primary.contrasts",
    ):
        assert text in fault.value.cause
    with pytest.raises(UsageFault, match=r"arms\.A\.optim\.lr: 0\.001 -> 0\.002"):
        run(a_study(one_view), tmp_path / "s", overrides=["optim.lr=2e-3"])


def test_an_amendment_goes_on_and_is_told_under_the_table(one_view: Path, tmp_path: Path) -> None:
    run(a_study(one_view), tmp_path / "s", cell="1/4")
    before = written(tmp_path / "s")
    more = a_study(one_view, evaluations=[{"task": "retrieval"}, AGAIN])
    done = run(more, tmp_path / "s", cell="1/4", amend="all frames were forgotten")
    assert done.states["A-s0"] == "done"
    assert written(tmp_path / "s") == before
    table = run(more, tmp_path / "s", summary_only=True)
    assert "again/a2v_r1" in table.payload["cells"]["A-s0"]["values"]
    assert any("all frames were forgotten" in note for note in table.notes)


def test_an_amendment_does_not_let_a_cell_change_its_training(one_view: Path, tmp_path: Path) -> None:
    run(a_study(one_view), tmp_path / "s", cell="1/4")
    record = tmp_path / "s" / "cells" / "A-s0" / "cell.json"
    record.write_text(record.read_text().replace('"done"', '"interrupted"'))
    with pytest.raises(UsageFault, match=r"optim\.lr"):
        run(a_study(one_view), tmp_path / "s", cell="1/4", overrides=["optim.lr=2e-3"], amend="faster")


def test_other_shards_are_another_protocol(one_view: Path, tiny_extraction: Path, tmp_path: Path) -> None:
    run(a_study(one_view), tmp_path / "s", cell="1/4")
    from kdctool.stages import shard

    shard.run(tiny_extraction, tmp_path / "other", clips_per_shard=7)
    with pytest.raises(UsageFault, match="data_digest"):
        run(a_study(one_view), tmp_path / "s", shards=tmp_path / "other")


def test_bad_names_end_it_before_anything_is_written(one_view: Path, tmp_path: Path) -> None:
    for more, said in (
        ({"evaluations": [{"task": "retreival", "name": "retrieval-test"}]}, "no task is called 'retreival'"),
        ({"evaluations": [{"task": "retrieval", "name": "retrieval-test", "options": {"x": 1}}]}, "option x"),
        (
            {"evaluations": [{"task": "retrieval", "set": {"finetune.per_class": 1}}]},
            "no finetuning precedes retrieval",
        ),
        (
            {"evaluations": [{"task": "classification", "name": "retrieval-test", "set": {"finetune.per_clas": 1}}]},
            r"unknown key finetune\.per_clas",
        ),
    ):
        with pytest.raises(UsageFault, match=said):
            run(a_study(one_view, **more), tmp_path / "s")
    with pytest.raises(DataFault, match="tets"):
        run(
            a_study(one_view, evaluations=[{"task": "retrieval", "split": "tets", "name": "retrieval-test"}]),
            tmp_path / "s",
        )
    with pytest.raises(UsageFault, match="no arm is called Z"):
        run(a_study(one_view), tmp_path / "s", arms=["Z"])
    with pytest.raises(UsageFault, match="has 2 seeds, not 3"):
        run(a_study(one_view), tmp_path / "s", seeds=3)
    assert not (tmp_path / "s").exists()


def plan(study: Study, out: Path) -> sweep_plan.Plan:
    return sweep_plan.make_plan(study, shards=None, out=out, overrides=[], arms=[], seeds=None)


def test_steps_become_whole_epochs_and_warm_up_keeps_its_share(one_view: Path, tmp_path: Path) -> None:
    arms = [{"name": "A"}, {"name": "B", "length": 2.0}]
    found = plan(a_study(one_view, arms=arms, steps=31, warmup=0.1), tmp_path / "s")
    assert [arm.steps for arm in found.arms] == [30, 63]  # 24 training clips in batches of 8: 3 steps an epoch.
    assert [arm.recipe.training.epochs for arm in found.arms] == [10, 21]
    assert [arm.recipe.optim.warmup_epochs for arm in found.arms] == pytest.approx([1.0, 2.1])


def test_an_arm_can_be_as_long_as_costs_what_another_costs(one_view: Path, tmp_path: Path) -> None:
    arms = [{"name": "A", "flops_of": "B"}, {"name": "B", "set": TWO_VIEWS}]
    found = plan(a_study(one_view, arms=arms, steps=300), tmp_path / "s")
    assert found.arms[0].steps > 1.5 * found.arms[1].steps
    assert found.arms[0].flops == pytest.approx(found.arms[1].flops, rel=0.02)


def test_seeds_pair_the_arms_same_weights_same_order_same_base_masks(one_view: Path, tmp_path: Path) -> None:
    made = plan(a_study(one_view), tmp_path / "s")
    a, b = (next(cell for cell in made.cells if cell.name == name).recipe for name in ("A-s1", "B-s1"))
    one, other = (pretrain.build_objective(recipe).state_dict() for recipe in (a, b))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert a.seed == b.seed == 1
    rng = torch.Generator()
    for step in (0, 7):
        views = []
        for recipe in (a, b):
            rng.manual_seed(fold(recipe.seed, "step", step))
            objective = pretrain.build_objective(recipe)
            batch = {"row": torch.arange(8), "fbank": torch.zeros(8, 64, 32), "frame": torch.zeros(8, 3, 32, 32)}
            views.append(objective.draw(batch, rng, 8))  # type: ignore[operator]
        for mine, theirs in zip(*views, strict=True):
            assert torch.equal(mine.ids_keep[0], theirs.ids_keep[0])
    different = next(cell for cell in made.cells if cell.name == "A-s0").recipe
    assert not torch.equal(
        pretrain.build_objective(different).state_dict()["encoder.modality_a"], one["encoder.modality_a"]
    )


def test_a_grid_runs_on_any_recipe(one_view: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "sweep",
        str(one_view),
        "--grid",
        "masking.audio_ratio=0.5,0.75",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "g"),
    ]
    assert command([*asked, "--dry-run", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == [f"audio_ratio={ratio}-s{seed}" for seed in (0, 1) for ratio in (0.5, 0.75)]
    assert not (tmp_path / "g").exists()


def test_the_command_of_one_cell_leaves_out_what_is_said_to_the_study() -> None:
    line = ["sweep", "s.toml", "--jobs", "4", "--minutes=8", "--set", "a.b=1", "--cell", "1/2", "--summary"]
    assert for_one_cell(line) == ["sweep", "s.toml", "--set", "a.b=1"]
