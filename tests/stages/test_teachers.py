"""Where teachers come from: files, folders, runs; what is recorded of them; and a run that distils, cut and resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import ARCH, SIDE, frames, image_recipe, objective_of, rng, vit, write
from safetensors.torch import save_file
from training_runs import power_cut, weights

from kdctool import recipe as recipes
from kdctool.errors import EnvironmentFault, UsageFault, VerificationFault
from kdctool.files import read_json, sha256_file
from kdctool.recipe import Recipe
from kdctool.stages import pretrain
from kdctool.stages.load import open_model
from kdctool.stages.teachers import open_teachers, rows


def one(source: dict[str, Any], **model: Any) -> Recipe:
    return recipes.validate(
        {
            "name": "t",
            "model": {"image_size": SIDE, **model},
            "objective": {
                "name": "hybrid_distill",
                "distill": {
                    "teachers": {"c": source},
                    "student": {"arch": ARCH},
                    "losses": [{"kind": "feature", "teacher": "c"}],
                },
            },
        }
    )


def test_a_file_is_hashed_and_its_path_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", vit(1))
    about = open_teachers(one({"id": ARCH, "path": str(path)}))["c"].about
    assert (about.model, about.path, about.sha256) == (ARCH, str(path), sha256_file(path))


def test_a_pickled_state_dict_is_read_where_it_can_do_no_harm(tmp_path: Path) -> None:
    state = vit(1).state_dict()
    torch.save({"model": state}, tmp_path / "w.pth")
    found = open_teachers(one({"id": ARCH, "path": str(tmp_path / "w.pth")}))["c"].encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_a_folder_of_timms_says_what_it_holds_and_how_it_sees(tmp_path: Path) -> None:
    card = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "license": "cc-by-nc-4.0", "input_size": [3, 160, 160]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ARCH, "pretrained_cfg": card}))
    write(tmp_path / "model.safetensors", vit(1))
    teacher = open_teachers(one({"path": str(tmp_path)}))["c"]
    assert (teacher.own.image_mean, teacher.own.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert "no commercial use" in teacher.about.licence
    assert teacher.about.sha256 == sha256_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageFault, match=r"needs config\.json and model\.safetensors"):
        open_teachers(one({"path": str(tmp_path)}))


@pytest.mark.parametrize(
    ("source", "cause", "fix"),
    [
        ({"id": "vit_base_patch16_224.mae", "path": "no/mae.safetensors"}, "no weights at no/mae.safetensors",
         "hf download timm/vit_base_patch16_224.mae model.safetensors"),
        ({"path": "w.safetensors"}, "does not say which model it is of", "teachers.c.id"),
        ({"id": ARCH, "path": ".", "source": "file"}, ". is a folder", 'source = "dir"'),
        ({"id": "vit_of_nobody", "source": "timm"}, "timm knows no weights of 'vit_of_nobody'", "teachers.c.path"),
        ({"id": "vit_of_nobody", "path": "w.safetensors"}, "timm cannot build it", ""),
        ({"id": "resnet18", "path": "w.safetensors"}, "teachers.c.id = 'resnet18': timm cannot build it", "plain ViT"),
        ({"id": "vit_tiny_patch16_224", "path": "w.safetensors"}, "does not hold the weights", "teachers.c.id"),
        ({"id": ARCH, "path": "w.safetensors", "source": "run"}, "a bare file of weights", "kdctool import"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], cause: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "w.safetensors", vit(1))
    with pytest.raises(UsageFault) as caught:
        open_teachers(one(source))
    assert cause in caught.value.cause
    assert fix in caught.value.next_step


def test_a_hub_that_cannot_be_reached_ends_with_the_path_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"timm/vit_base_patch16_224\.mae cannot be fetched") as caught:
        open_teachers(one({"id": "vit_base_patch16_224.mae"}))
    assert "objective.distill.teachers.c.path" in caught.value.next_step


def test_a_grid_that_differs_is_refused_with_the_size_that_fits(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", vit(1))
    with pytest.raises(UsageFault, match="a grid of 14 x 14 video tokens, the student one of 7 x 7") as caught:
        objective_of(one({"id": ARCH, "path": str(path), "image_size": 224}))
    assert "image_size = 112 (patches of 16 pixels)" in caught.value.next_step


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(VerificationFault, match="not a sound safetensors file"):
        open_teachers(one({"id": ARCH, "path": str(tmp_path / "w.safetensors")}))


def test_the_screen_shows_licences_tokens_and_the_saving(tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path, mask={"policy": "redundancy", "teacher": "m"})
    told = dict(rows(objective_of(recipe)))
    assert "sha256" in told["teacher c"]
    assert told["video tokens"] == "16 of 49 shown to the student"
    assert "x less than without the mask" in told["multiply-adds"]


def settings(*teachers: tuple[str, Path], losses: str, mask: str) -> tuple[str, ...]:
    named = ", ".join(f'{name} = {{ path = "{path}" }}' for name, path in teachers)
    return (
        "objective.name=hybrid_distill",
        f"objective.distill={{ teachers = {{ {named} }}, mask = {mask}, losses = {losses} }}",
        "log.checkpoint_every_steps=2",
    )


@pytest.fixture
def taught(tiny_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A contrastive run and a masked one, to be teachers."""
    deeper = ("model.depth=3", "training.epochs=1")
    for name in ("cav", "mae"):
        recipe = recipes.load(tiny_recipe(f"objective.name={name}", *deeper))
        pretrain.run(recipe, out=tmp_path / name, device_name="cpu")
    return tmp_path / "cav", tmp_path / "mae"


def test_runs_teach_a_smaller_student_that_evaluates_and_resumes_bit_for_bit(
    taught: tuple[Path, Path], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    cav, mae = taught
    losses = '[{ kind = "feature", teacher = "cav" }, { kind = "relation", teacher = "mae" }]'
    mask = '{ policy = "redundancy", teacher = "mae", floor = 2 }'
    changes = settings(("cav", cav), ("mae", mae), losses=losses, mask=mask)
    recipe = recipes.load(tiny_recipe("model.depth=2", *changes))
    pretrain.run(recipe, out=tmp_path / "whole", device_name="cpu")
    about = read_json(tmp_path / "whole" / "run.json")
    assert about["teachers"]["cav"]["model"] == "cav (pretrain)"
    assert about["teachers"]["mae"]["sha256"] == open_model(mae).weights_sha256 == about["keys"]["teachers"]["mae"]
    held = weights(tmp_path / "whole")
    assert {name.split(".")[0] for name in held} == {"encoder", "heads"}
    opened = open_model(tmp_path / "whole")
    assert len(opened.encoder.blocks_a) == 2
    assert not opened.decoder

    with power_cut(5):
        pretrain.run(recipe, out=tmp_path / "cut", device_name="cpu")
    done = pretrain.run(recipe, out=tmp_path / "cut", device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == 4
    after = weights(tmp_path / "cut")
    assert held.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in held.items())

    newest = max((mae / "checkpoints").iterdir())  # The same recipe with another teacher is another run.
    state = weights(mae)
    state["encoder.norm_a.weight"] += 1
    save_file(state, newest / "model.safetensors")
    manifest = read_json(newest / "manifest.json")
    manifest["files"]["model.safetensors"] = sha256_file(newest / "model.safetensors")
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageFault, match=r"(?s)started with other settings:.*teachers"):
        pretrain.run(recipe, out=tmp_path / "cut", device_name="cpu")


def test_an_image_student_trains_on_frames_and_can_teach_the_next(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "w.safetensors", vit(1))
    section = (
        f'objective.distill={{ teachers = {{ c = {{ id = "{ARCH}", path = "%s" }} }}, student = {{ arch = "{ARCH}" }}, '
        'losses = [{ kind = "feature", teacher = "c" }] }'
    )
    plain = ("objective.name=hybrid_distill", "training.epochs=1")
    first = recipes.load(tiny_recipe(*plain, section % path))
    pretrain.run(first, out=tmp_path / "first", device_name="cpu")
    with pytest.raises(UsageFault, match="is an image model"):
        open_model(tmp_path / "first")
    second = recipes.load(tiny_recipe(*plain, section % (tmp_path / "first")))
    teacher = open_teachers(second)["c"]
    state = weights(tmp_path / "first")
    assert all(torch.equal(value, state[f"encoder.{name}"]) for name, value in teacher.encoder.state_dict().items())
    assert teacher.own.image_mean == first.data.image_mean
    assert objective_of(second)(frames(2, 32), rng(), 2).total > 0
