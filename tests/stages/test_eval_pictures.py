"""Inpainting and localization through the stage: a real run, real shards, files that others can read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.stages import evaluate, pretrain

Recipe = Callable[..., Path]


@pytest.fixture
def run(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    recipe = recipes.load(tiny_recipe("training.epochs=1", "objective.reconstruction.norm_pix=false"))
    pretrain.run(recipe, out=tmp_path / "run", device_name="cpu")
    return tmp_path / "run"


@pytest.fixture
def truth(tiny_extraction: Path, tmp_path: Path) -> Path:
    """Boxes in the 40 x 40 pixels of the tiny clips."""
    path = tmp_path / "truth.jsonl"
    with path.open("w") as file:
        for line in (tiny_extraction / "manifest.jsonl").open():
            row = {"file": json.loads(line)["source"], "width": 40, "height": 40, "fps": 10.0}
            boxes = {"sounding": {"boxes": [[5, 5, 25, 20]] * 7}, "silent": {"boxes": [[26, 22, 39, 39]] * 7}}
            file.write(json.dumps({**row, "onset_s": 0.1, "duration_s": 0.4, **boxes}) + "\n")
    return path


def test_both_tasks_leave_numbers_clips_and_pictures(run: Path, truth: Path) -> None:
    found = {}
    for task, protocol in (("inpainting", "random-75-avdigits@1"), ("localization", "avdigits-union@1")):
        done = evaluate.run(run, task=task, device_name="cpu", options={"truth": str(truth)})
        results = json.loads((done.folder / "results.json").read_text())
        assert results["protocol"] == f"{task}/{protocol}"
        assert results["n_scored"] == 20
        assert results["n_scored"] + sum(results["missing"].values()) == results["n_total"]
        per_clip = np.load(done.folder / "per_clip.npz", allow_pickle=False)
        assert len(per_clip["uids"]) == 20
        assert {f"column.{name}" for name in results["metrics"]} <= set(per_clip.files)
        found[task] = np.load(done.folder / "assets.npz", allow_pickle=False)
        assert json.loads((done.folder / "details.json").read_text())["options"] == {"truth": str(truth)}
    assert found["inpainting"]["video.filled"].shape == (12, 32, 32, 3)
    assert found["localization"]["map"].shape == (20, 32, 32)
    assert found["localization"]["boxes"][0, 0].tolist() == pytest.approx([0.125, 0.125, 0.625, 0.5])


def test_annotations_of_clips_of_other_splits_are_missing(run: Path, truth: Path) -> None:
    result = evaluate.run(run, task="localization", device_name="cpu", options={"truth": str(truth)}).result
    assert (result.n_total, result.missing) == (44, {"not_in_split": 24})


def test_without_boxes_nothing_is_written(run: Path) -> None:
    with pytest.raises(UsageFault, match="these shards have none"):
        evaluate.run(run, task="localization", device_name="cpu")
    assert not (run / "eval").exists()
