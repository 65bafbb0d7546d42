"""From a real training and real evaluations to the page: what tasks write is what the report reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
from report.page_reading import read

from kdctool import recipe as recipes
from kdctool.stages import evaluate, finetune, pretrain
from kdctool.stages import report as stage

TASKS = ("retrieval", "inpainting", "diagnose")


@pytest.mark.e2e
def test_a_trained_and_evaluated_run_has_everything_drawn(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipes.load(tiny_recipe("training.epochs=2"))
    run = tmp_path / "runs" / "trained"
    pretrain.run(recipe, out=run, device_name="cpu")
    for task in TASKS:
        evaluate.run(run, task=task, device_name="cpu")
    done = stage.run(run)
    page = read(done.path.read_bytes())
    told = page.results["evaluations"]
    assert {one["folder"] for one in told} == set(TASKS)
    assert not [one["problems"] for one in told if one["problems"]]
    assert "gallery" in told[0]
    assert any("before: " in str(attrs.get("alt")) for tag, attrs in page.elements if tag == "img")
    assert any("a dot per head" in str(attrs.get("aria-label")) for tag, attrs in page.elements if tag == "svg")
    assert done.kept["sound"] == 20
    assert page.results["curves"]["loss"]["value"]

    tuned = tmp_path / "runs" / "tuned"
    finetune.run(run, out=tuned, device_name="cpu")
    evaluate.run(tuned, task="classification", device_name="cpu")
    page = read(stage.run(tuned).path.read_bytes())
    assert "confusion" in page.results["evaluations"][0]
    assert len(page.tables["eval-0-classes"]) == 4
    assert not page.results["evaluations"][0]["problems"]
