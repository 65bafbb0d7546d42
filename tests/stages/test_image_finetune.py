"""An image student finetuned with the augmentation of the published recipes, on any ranks and micro batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from distilling import ARCH, vit, write
from picture_folders import picture_shards
from PIL import Image
from training_runs import assert_same_curve, finish, rows, start, weights

from kdctool import recipe as recipes
from kdctool.data.frames import normalise, resize_crop
from kdctool.errors import UsageFault
from kdctool.recipe import Recipe
from kdctool.stages import evaluate, export, finetune, pretrain, single

SIDE = 32
EVERYTHING = {
    "modality": "video",
    "loss": "ce",
    "head_lr_scale": 1.0,
    "layer_decay": 0.65,
    "drop_path": 0.3,
    "mixup": 0.8,
    "mixup_alpha": 0.8,
    "cutmix": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    # A larger epsilon: Adam would blow gradients that are rounding noise up to full steps.
    "optim": {"name": "adamw", "lr": 1e-3, "eps": 1e-3, "schedule": "cosine", "weight_decay": 0.05},
    "training": {"epochs": 2, "global_batch": 8},
}


def recipe_for(folder: Path, **more: Any) -> Recipe:
    teacher = {"id": ARCH, "path": str(folder / "teacher.safetensors"), "mean": [0.5] * 3, "std": [0.5] * 3}
    distill = {
        "teachers": {"c": teacher},
        "student": {"arch": ARCH, "input": "full"},
        "losses": [{"kind": "feature", "teacher": "c"}],
    }
    return recipes.validate(
        {
            "name": "pictures",
            "data": {"shards": str(folder / "shards"), "workers": 0, "crop": "random", "flip": True, "crop_pct": 0.8},
            "model": {"image_size": SIDE},
            "objective": {"name": "hybrid_distill", "distill": distill},
            "optim": {"name": "adamw", "lr": 1e-3, "schedule": "cosine"},
            "training": {"epochs": 1, "global_batch": 8},
            "log": {"every_steps": 1, "tensorboard": False},
            "finetune": EVERYTHING,
            **more,
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures, a student of them, and that student finetuned with everything on in one process."""
    folder = tmp_path_factory.mktemp("pictures")
    picture_shards(folder)
    write(folder / "teacher.safetensors", vit(1, side=SIDE))
    pretrain.run(recipe_for(folder), out=folder / "run", device_name="cpu")
    finetune.run(folder / "run", out=folder / "tuned", device_name="cpu")
    return folder


def difference(one: Path, two: Path) -> float:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_micro_batches_give_the_curve_of_one_batch(place: Path, tmp_path: Path) -> None:
    changes = ["finetune.training.micro_batch=2"]
    finetune.run(place / "run", overrides=changes, out=tmp_path / "split", device_name="cpu")
    assert_same_curve(place / "tuned", tmp_path / "split")
    assert difference(place / "tuned", tmp_path / "split") < 5e-6


@pytest.mark.dist
@pytest.mark.parametrize("more", [(), ("--set", "parallel.checkpoint_activations=true", "--workers", "2")])
def test_two_ranks_give_the_curve_of_one_process(place: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    arguments = ("finetune", str(place / "run"), "--out", str(tmp_path / "two"), "--nproc", "2")
    assert finish(start(*arguments, "--set", "finetune.training.micro_batch=2", *more)) == 0
    assert_same_curve(place / "tuned", tmp_path / "two")
    assert difference(place / "tuned", tmp_path / "two") < 5e-6


@pytest.mark.parametrize("off", ["drop_path=0.0", "cutmix=0.0", "rand_augment=''", "erasing=0.0", "mixup=0.5"])
def test_each_part_changes_what_is_learnt(place: Path, tmp_path: Path, off: str) -> None:
    """Else comparing two runs with everything on would compare two runs with nothing on."""
    changes = [f"finetune.{off}", "finetune.training.epochs=1", "finetune.optim.schedule=constant"]
    finetune.run(place / "run", overrides=changes, out=tmp_path / "off", device_name="cpu")
    first, second = rows(place / "tuned")[:2], rows(tmp_path / "off")[:2]
    assert any(abs(a["loss"] - b["loss"]) > 1e-3 for a, b in zip(first, second, strict=True))


def test_stages_and_python_see_the_evaluation_crop(place: Path, tmp_path: Path) -> None:
    """0.8 of a short side of 40 pixels: what the run was given is what eval, export and kdctool.load look at."""
    done = evaluate.run(place / "tuned", task="classification", device_name="cpu")
    assert done.result.n_scored == done.result.n_total
    model = single.open_for_use(place / "tuned")
    path = sorted((place / "pictures" / "green").glob("*.jpg"))[0]
    stored = np.asarray(Image.open(path))
    shown = torch.from_numpy(resize_crop(stored, SIDE, 0.8)).permute(2, 0, 1)[None]
    data = model.recipe.data
    assert model.classifier is not None
    with torch.no_grad():
        odds = model.classifier({"frame": normalise(shown, data.image_mean, data.image_std)})[0].softmax(0)
    assert model.classify(path) == pytest.approx(dict(zip(model.labels, odds.tolist(), strict=True)), abs=0.01)
    whole = torch.from_numpy(resize_crop(stored, SIDE)).permute(2, 0, 1)[None]
    assert not torch.equal(shown, whole)
    export.run(place / "tuned", out=tmp_path / "export", shards=place / "shards", to=("timm",))
    assert json.loads((tmp_path / "export" / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 0.8
    assert json.loads((tmp_path / "export" / "preprocessor_config.json").read_text())["image"]["crop_pct"] == 0.8
    theirs = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    seen = timm.data.create_transform(**timm.data.resolve_data_config(model=theirs))(Image.fromarray(stored))
    mine = normalise(shown[0], data.image_mean, data.image_std)
    assert float((seen - mine).abs().max()) < 0.02, "timm prepares a picture as we do"


def test_models_of_other_crops_are_not_compared(place: Path, tmp_path: Path) -> None:
    changed = ["data.crop_pct=1.0", "finetune.training.epochs=1"]
    finetune.run(place / "run", overrides=changed, out=tmp_path / "other", device_name="cpu")
    with pytest.raises(UsageFault, match=r"data\.crop_pct = 1\.0, .* has 0\.8"):
        evaluate.run(place / "tuned", task="diagnose", options={"other": str(tmp_path / "other")}, device_name="cpu")


def test_audio_visual_models_are_refused_before_anything_is_written(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageFault, match=r"data\.crop_pct = 0\.8 is for image models"):
        pretrain.run(recipes.load(tiny_recipe("data.crop_pct=0.8")), out=tmp_path / "run", device_name="cpu")
    pretrain.run(recipes.load(tiny_recipe("training.epochs=1")), out=tmp_path / "av", device_name="cpu")
    with pytest.raises(UsageFault, match=r"data\.crop_pct = 0\.8 is for image models, .* is audio-visual"):
        finetune.run(tmp_path / "av", overrides=["data.crop_pct=0.8"], out=tmp_path / "tuned", device_name="cpu")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "tuned").exists()
