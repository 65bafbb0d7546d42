"""Label-efficiency curves: several finetunings and probes in one cell, their table and their plot."""

from pathlib import Path
from typing import Any

import pytest
from sweep_studies import a_study, run, written

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.files import read_json
from kdctool.recipe.study import Study
from kdctool.stages import sweep_plan
from kdctool.stages.load import open_model

PROBE = {"task": "probe", "name": "probe", "options": {"labels": "k1,k2,all", "draws": 2}}
FINETUNED = [
    {"task": "classification", "name": f"finetune_{name}", "set": own}
    for name, own in (
        ("k2", {"finetune.per_class": 2, "finetune.training.global_batch": 6}),
        ("half", {"finetune.share": 0.5, "finetune.training.global_batch": 6}),
        ("all", {"finetune.training.epochs": 2}),
    )
]
CURVES = [
    {
        "name": "probe of both",
        "x": "labels per class",
        "points": [["1", "probe/linear_k1_top1"], ["2", "probe/linear_k2_top1"], ["all", "probe/linear_top1"]],
    },
    {
        "name": "finetuning",
        "x": "labels",
        "points": [["2", "finetune_k2/top1"], ["half", "finetune_half/top1"], ["all", "finetune_all/top1"]],
    },
]


def curved(recipe: Path, **more: Any) -> Study:
    primary = {"endpoint": "probe/linear_k2_top1", "contrasts": [["B", "A"]]}
    tree = {"evaluations": [PROBE, *FINETUNED], "curves": CURVES, "primary": primary, "secondary": {}}
    return a_study(recipe, **(tree | more))


def test_curves_stand_in_a_table_and_a_plot_and_every_finetuning_in_a_folder_of_its_own(
    one_view: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    arms = [{"name": "random", "training": "none"}, {"name": "A"}]
    study = curved(one_view, arms=arms, equal_flops=[], primary={"endpoint": "probe/linear_k2_top1"})
    done = run(study, out)
    assert done.fault is None
    told = {}
    for item in FINETUNED:
        folder = out / "cells" / "A-s1" / f"finetune-{item['name']}"
        options = recipes.load(folder / "recipe.toml").finetune
        told[item["name"]] = (options.per_class, options.share, open_model(folder).step)
    assert told == {"finetune_k2": (2, 1.0, 1), "finetune_half": (0, 0.5, 2), "finetune_all": (0, 1.0, 6)}

    found = read_json(out / "results.json")
    probe, finetuning = found["curves"]
    assert (probe["name"], probe["x"], probe["points"]) == ("probe of both", "labels per class", ["1", "2", "all"])
    for curve in (probe, finetuning):
        for arm in ("random", "A"):
            cells = [found["cells"][f"{arm}-s{seed}"]["values"] for seed in (0, 1)]
            for endpoint, point in zip(curve["endpoints"], curve["arms"][arm], strict=True):
                one, other = (values[endpoint] for values in cells)
                assert point["n"] == 2
                assert point["mean"] == pytest.approx((one + other) / 2)
                half = 12.7062047 * abs(one - other) / 2  # t of one degree of freedom.
                assert point["high"] - point["mean"] == pytest.approx(half, rel=1e-6, abs=1e-9)
    table = (out / "table.md").read_text()
    assert "## curve: probe of both, by labels per class: mean (95 % over seeds)" in table
    assert "| arm | what it is | n | 2 | half | all |" in table
    assert found["secondary"] == []
    assert list(found["arms"]["A"]["endpoints"]) == ["probe/linear_k2_top1"]

    before = written(out)
    again = run(study, out)
    assert written(out) == before
    pytest.importorskip("matplotlib")
    assert [path.name for path in again.plots] == ["plot.svg", "plot.png", "curves.svg", "curves.png"]
    picture = again.plots[2].read_text()
    for text in ("probe of both: mean", "finetuning: mean", "labels per class", ">half<", ">random<", ">A<"):
        assert text in picture
    assert run(study, out).plots[2].read_text() == picture


def test_a_curve_with_cells_missing_says_n_and_has_holes(one_view: Path, tmp_path: Path) -> None:
    study = curved(one_view, evaluations=[PROBE], curves=CURVES[:1])
    run(study, tmp_path / "s", cell="1/4")
    done = run(study, tmp_path / "s", summary_only=True)
    points = done.payload["curves"][0]["arms"]
    assert [point["n"] for point in points["A"]] == [1, 1, 1]
    assert points["A"][0]["low"] is None
    assert points["B"] == [{"n": 0, "mean": None, "low": None, "high": None}] * 3
    lines = (tmp_path / "s" / "table.md").read_text().splitlines()
    assert "| B |  | 0 | - | - | - |" in lines


def test_what_a_supervised_arm_cannot_give_is_a_dash_in_a_curve(one_view: Path, tmp_path: Path) -> None:
    arms = [{"name": "labels", "training": "supervised"}, {"name": "A"}]
    evaluations = [{"task": "inpainting", "name": name} for name in ("one", "two")] + [{"task": "retrieval"}]
    curve = {"name": "filling", "x": "times", "points": [["1", "one/audio_gain"], ["2", "two/audio_gain"]]}
    primary = {"endpoint": "retrieval-test/a2v_r1"}
    study = curved(one_view, arms=arms, equal_flops=[], evaluations=evaluations, primary=primary, curves=[curve])
    run(study, tmp_path / "s", summary_only=True)
    lines = (tmp_path / "s" / "table.md").read_text().splitlines()
    assert "| labels |  | 0 | — | — |" in lines
    assert "| A |  | 0 | - | - |" in lines


def test_a_number_that_only_a_curve_reads_has_to_exist_too(one_view: Path, tmp_path: Path) -> None:
    odd = [{**CURVES[0], "points": [["1", "probe/linear_k1_top1"], ["3", "probe/linear_k3_top1"]]}]
    study = curved(one_view, evaluations=[PROBE], curves=odd)
    with pytest.raises(UsageFault, match="endpoint probe/linear_k3_top1: probe gives no linear_k3_top1"):
        run(study, tmp_path / "s")


def test_the_protocol_holds_curves(one_view: Path, tmp_path: Path) -> None:
    def guard(study: Study) -> None:
        made = sweep_plan.make_plan(study, shards=None, out=tmp_path / "s", overrides=[], arms=[], seeds=None)
        sweep_plan.guard(made, "")

    guard(curved(one_view))
    shorter = [{**CURVES[0], "points": CURVES[0]["points"][1:]}, CURVES[1]]
    with pytest.raises(UsageFault, match=r"curves\.probe of both: \[\['1', 'probe/linear_k1_top1'\]"):
        guard(curved(one_view, curves=shorter))
    with pytest.raises(UsageFault, match=r"curves\.finetuning: .* -> unset"):
        guard(curved(one_view, curves=CURVES[:1]))
