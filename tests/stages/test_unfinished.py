"""Weights of a training that was interrupted are told as such, wherever they go; damaged runs are named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import power_cut

from kdctool import recipe as recipes
from kdctool.cli import run as kdctool
from kdctool.errors import UsageFault, VerificationFault
from kdctool.files import read_json, write_json
from kdctool.stages import embed, evaluate, export, pretrain, report
from kdctool.stages.load import open_model
from kdctool.train.log import write_status

TOLD = "unfinished: step 2 of 6"


@pytest.fixture
def cut(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A pre-training of six steps that ended in its third."""
    recipe = recipes.load(tiny_recipe("training.epochs=2", "log.checkpoint_every_steps=1"))
    with power_cut(2):
        pretrain.run(recipe, out=tmp_path / "runs" / "cut run", device_name="cpu")
    return tmp_path / "runs" / "cut run"


def test_every_command_says_that_a_run_was_interrupted(cut: Path, tmp_path: Path, tiny_shards: Path) -> None:
    done = evaluate.run(cut, task="retrieval", device_name="cpu")
    assert TOLD in done.model
    assert read_json(cut / "eval" / "retrieval" / "results.json")["unfinished"] == "step 2 of 6"
    assert TOLD in embed.run(cut, tiny_shards, tmp_path / "f.npy", device_name="cpu", workers=0).model
    made = export.run(cut, out=tmp_path / "out", to=("hf",))
    assert TOLD in made.model
    assert TOLD in (made.folder / "README.md").read_text()
    assert TOLD in open_model(made.folder).said()
    assert report.run(cut).unfinished == "step 2 of 6"
    assert "step 2 of 6" in (cut / "report.html").read_text()
    assert report.run(made.folder).unfinished == "step 2 of 6"


def test_a_finished_run_is_not_called_unfinished(cut: Path, tiny_recipe: Callable[..., Path]) -> None:
    recipe = recipes.load(tiny_recipe("training.epochs=2", "log.checkpoint_every_steps=1"))
    pretrain.run(recipe, out=cut, device_name="cpu")
    assert open_model(cut).unfinished == ""
    assert "unfinished" not in evaluate.run(cut, task="retrieval", device_name="cpu").payload
    assert report.run(cut).unfinished == ""


def test_an_older_checkpoint_without_the_number_of_steps_is_still_unfinished(cut: Path) -> None:
    for state in cut.glob("checkpoints/*/state.json"):
        write_json(state, {key: value for key, value in read_json(state).items() if key != "total_steps"})
        manifest = state.with_name("manifest.json")
        write_json(manifest, {"files": {k: v for k, v in read_json(manifest)["files"].items() if k != "state.json"}})
    assert open_model(cut).unfinished == TOLD  # By the shards of its recipe.
    (cut / "recipe.toml").write_text((cut / "recipe.toml").read_text().replace('shards = "', 'shards = "/gone'))
    assert open_model(cut).unfinished == "unfinished: step 2"


@pytest.mark.parametrize("damage", ["{", "[]", '{"kind": "pretrain"}'])
def test_a_damaged_run_json_of_a_named_run_is_a_message(
    cut: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (cut / "run.json").write_text(damage)
    assert kdctool(["eval", str(cut)]) == 5
    told = capsys.readouterr().err
    assert f"error: {cut / 'run.json'} is damaged" in told
    assert "next:" in told
    assert "Traceback" not in told


def test_a_damaged_export_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "kdctool.json").write_text("{")
    with pytest.raises(VerificationFault, match=r"kdctool\.json is damaged"):
        open_model(tmp_path)
    (tmp_path / "kdctool.json").write_text("{}")
    with pytest.raises(VerificationFault, match=r"kdctool\.json lacks data_digest, kind"):
        open_model(tmp_path)


def finished(cut: Path, name: str, kind: str, second: int) -> Path:
    """A copy of a run that says that it is done and of another kind; it is never opened."""
    run = shutil.copytree(cut, cut.parent / name)
    write_json(run / "run.json", {**read_json(run / "run.json"), "kind": kind})
    write_status(run, "done", 6, 0)
    os.utime(run / "status.json", (1e9 + second, 1e9 + second))
    return run


def test_without_a_run_each_task_takes_the_newest_that_it_can_score(
    cut: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(cut.parent.parent)
    runs = Path("runs")
    with pytest.raises(UsageFault, match="no finished run"):
        evaluate._newest("inpainting", None)
    finished(cut, "fine", "finetune", 3)
    with pytest.raises(UsageFault, match="no finished pre-training in runs/, and inpainting needs the decoder") as no:
        evaluate._newest("inpainting", None)
    assert no.value.next_step
    finished(cut, "pre", "pretrain", 1)
    bare = finished(cut, "bare", "pretrain", 2)
    text = recipes.to_toml(recipes.load(bare / "recipe.toml", ["objective.reconstruction.weight=0"]))
    (bare / "recipe.toml").write_text(text)
    assert evaluate._newest("inpainting", None) == runs / "pre"
    assert evaluate._newest("classification", None) == runs / "fine"
    assert evaluate._newest("retrieval", None) == runs / "fine"
    assert "no RUN was named: runs/pre is the newest finished one that inpainting can score" in capsys.readouterr().err
