"""A study with a distilled arm: its cost counts its teachers, and a cell goes on only with the same ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from distilling import ARCH, vit, write
from picture_folders import picture_shards
from safetensors.torch import save_file
from sweep_studies import a_study, run
from training_runs import weights

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.files import read_json, sha256_file
from kdctool.recipe.study import Study
from kdctool.recipe.study_grid import grid_study
from kdctool.stages import pretrain

DISTILLED = {
    "objective.name": "hybrid_distill",
    "objective.distill.mask": {"policy": "redundancy", "teacher": "mae", "floor": 2},
    "objective.distill.losses": [
        {"kind": "feature", "teacher": "cav"},
        {"kind": "relation", "teacher": "mae", "teacher_layers": [1], "student_layers": [1]},
    ],
}


@pytest.fixture
def study(one_view: Path, tiny_recipe: Callable[..., Path], tmp_path: Path) -> Study:
    """CAV-MAE alone beside a student of the same sizes that two runs teach."""
    paths = {}
    for name, unwanted in (("cav", "reconstruction"), ("mae", "contrastive")):
        recipe = recipes.load(one_view, [f"objective.name={name}", f"objective.{unwanted}.weight=0"])
        pretrain.run(recipe, out=tmp_path / name, device_name="cpu")
        paths[f"objective.distill.teachers.{name}.path"] = str(tmp_path / name)
    arms = [{"name": "alone"}, {"name": "taught", "set": {**DISTILLED, **paths}}]
    contrast = {"endpoint": "retrieval-test/a2v_r5", "contrasts": [["taught", "alone"]]}
    return a_study(
        one_view,
        seeds=[0],
        arms=arms,
        primary=contrast,
        secondary={},
        equal_flops=[],
        varies=["masking.views", "objective"],
    )


def stop(folder: Path) -> None:
    """As if the process had been killed after its training."""
    told = read_json(folder / "cell.json")
    (folder / "cell.json").write_text(json.dumps({**told, "state": "interrupted", "measured": {}}))


def test_a_distilled_cell_goes_on_with_its_teachers_and_with_no_others(study: Study, tmp_path: Path) -> None:
    out, cell = tmp_path / "s", tmp_path / "s" / "cells" / "taught-s0"
    done = run(study, out)
    assert done.states == {"alone-s0": "done", "taught-s0": "done"}
    assert done.payload["arms"]["taught"]["flops"] > 0
    before = weights(cell / "pretrain")
    stop(cell)
    assert run(study, out).states["taught-s0"] == "done"
    assert all((value == before[name]).all() for name, value in weights(cell / "pretrain").items())

    newest = max((tmp_path / "cav" / "checkpoints").iterdir())
    state = weights(tmp_path / "cav")
    state["encoder.norm_a.weight"] += 1
    save_file(state, newest / "model.safetensors")
    manifest = read_json(newest / "manifest.json")
    manifest["files"]["model.safetensors"] = sha256_file(newest / "model.safetensors")
    (newest / "manifest.json").write_text(json.dumps(manifest))
    stop(cell)
    with pytest.raises(UsageFault, match=r"(?s)started with other settings:.*teachers"):
        run(study, out)


def test_heads_of_an_image_student_are_swept_and_diagnosed_on_pictures_without_sound(tmp_path: Path) -> None:
    teacher = write(tmp_path / "c.safetensors", vit(1, side=32))
    recipe = recipes.validate(
        {
            "name": "heads",
            "data": {"workers": 0},
            "model": {"image_size": 32},
            "objective": {
                "name": "hybrid_distill",
                "distill": {
                    "teachers": {"c": {"id": ARCH, "path": str(teacher)}},
                    "student": {"arch": ARCH},
                    "losses": [{"kind": "feature", "teacher": "c"}],
                },
            },
            "training": {"epochs": 1, "global_batch": 8},
            "log": {"tensorboard": False},
        }
    )
    path = tmp_path / "heads.toml"
    path.write_text(recipes.to_toml(recipe))
    key = "objective.distill.student.head.kind"
    study = grid_study(path, [f'{key}="none","linear"'], 1, ["diagnose:train"], "diagnose-train/video_nmi")
    done = run(study, tmp_path / "s", shards=picture_shards(tmp_path, each=8))
    assert set(done.states.values()) == {"done"}
    none, linear = (done.payload["arms"][f"kind={kind}"] for kind in ("none", "linear"))
    assert 0 < none["flops"] < linear["flops"]
    assert none["steps"] > 0
    assert list(none["endpoints"]["diagnose-train/video_nmi"]["seeds"]) == ["0"]
