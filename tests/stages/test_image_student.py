"""An image student from a folder of pictures to timm: distilled, finetuned, probed, diagnosed, exported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from distilling import ARCH, vit, write
from picture_folders import picture_shards
from safetensors.torch import load_file
from training_runs import power_cut, rows, weights

from kdctool import recipe as recipes
from kdctool.data.loader import eval_batches
from kdctool.errors import UsageFault, VerificationFault
from kdctool.export import timm as timm_export
from kdctool.files import read_json
from kdctool.models.drop_path import set_drop_path
from kdctool.models.image_classifier import ImageClassifier
from kdctool.recipe import Recipe
from kdctool.shards import index as shard_index
from kdctool.stages import evaluate, export, finetune, pretrain, single
from kdctool.stages.load import open_model

SIDE = 64
FINETUNE = {
    "modality": "video",
    "loss": "ce",
    "head_lr_scale": 1.0,
    "layer_decay": 0.65,
    "drop_path": 0.1,
    "optim": {"name": "adamw", "lr": 3e-3, "schedule": "constant", "weight_decay": 0.05},
    "training": {"epochs": 6, "global_batch": 8},
}


def recipe_for(folder: Path, **more: Any) -> Recipe:
    path = folder / "teacher.safetensors"
    if not path.exists():
        write(path, vit(1, side=SIDE))
    teacher = {"id": ARCH, "path": str(path), "mean": [0.5] * 3, "std": [0.5] * 3}
    distill = {
        "teachers": {"c": teacher, "m": teacher},
        "student": {"arch": ARCH, "drop_path": 0.1},
        "mask": {"policy": "redundancy", "teacher": "m"},
        "losses": [{"kind": "feature", "teacher": "c"}, {"kind": "relation", "teacher": "m"}],
        **more.pop("distill", {}),
    }
    return recipes.validate(
        {
            "name": "pictures",
            "data": {"shards": str(folder / "shards"), "workers": 0, "crop": "random", "flip": True},
            "model": {"image_size": SIDE},
            "objective": {"name": "hybrid_distill", "distill": distill},
            "optim": {"name": "adamw", "lr": 1e-3, "schedule": "cosine"},
            "training": {"epochs": 1, "global_batch": 8},
            "log": {"every_steps": 1, "tensorboard": False},
            "finetune": FINETUNE,
            **more,
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures, a run that distilled on them, and one that was finetuned from it."""
    folder = tmp_path_factory.mktemp("pictures")
    picture_shards(folder)
    pretrain.run(recipe_for(folder), out=folder / "run", device_name="cpu")
    finetune.run(folder / "run", out=folder / "tuned", device_name="cpu")
    return folder


@pytest.fixture(scope="module")
def exported(place: Path) -> Path:
    export.run(place / "run", out=place / "export")
    return place / "export"


def frames(place: Path) -> torch.Tensor:
    index = shard_index.load(place / "shards")
    options = open_model(place / "run", images=True).recipe
    cpu = torch.device("cpu")
    return next(eval_batches(index, index.split("test"), options, cpu, 4, 0, labels=False, parts=("video",)))["frame"]


def test_a_student_learns_from_pictures_without_sound(place: Path) -> None:
    found = rows(place / "run")
    assert {"feature_c", "relation_m"} <= found[-1].keys()
    assert (place / "run" / "status.json").read_text().count('"done"') == 1


def test_cut_and_typed_again_it_ends_with_the_same_bits(place: Path) -> None:
    plain = recipe_for(place, name="cut", log={"every_steps": 1, "tensorboard": False, "checkpoint_every_steps": 1})
    pretrain.run(plain, out=place / "whole", device_name="cpu")
    with power_cut(2):
        pretrain.run(plain, out=place / "cut", device_name="cpu")
    pretrain.run(plain, out=place / "cut", device_name="cpu")
    whole, again = weights(place / "whole"), weights(place / "cut")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_timm_opens_the_export_and_computes_what_we_compute(place: Path, exported: Path) -> None:
    ours, frame = open_model(place / "run", images=True).encoder, frames(place)
    folder = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    plain = timm.create_model(ARCH, num_classes=0, img_size=SIDE).eval()
    plain.load_state_dict(load_file(exported / "model.safetensors"), strict=True)
    with torch.inference_mode():
        wanted = ours.forward_features(frame)
        for model in (folder, plain):
            assert (model.forward_features(frame) - wanted).abs().max() < 1e-5
    assert tuple(folder.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)
    assert folder.pretrained_cfg["input_size"] == (3, SIDE, SIDE)


def test_a_teacher_may_be_the_export(place: Path, exported: Path) -> None:
    taught = recipe_for(place, distill={"teachers": {n: {"path": str(exported)} for n in "cm"}})
    objective = pretrain.build_objective(taught)
    teacher, ours = objective.teachers.by_name()["c"], open_model(place / "run", images=True).encoder
    assert teacher.same_frames
    assert all(torch.equal(value, teacher.encoder.state_dict()[name]) for name, value in ours.state_dict().items())


def openmmlab(layout: str, width: int, depth: int, hidden: int, patch: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of VisionTransformer in MMPretrain, and in MMSegmentation with final_norm, written out."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens + 1, width),
        "patch_embed.projection.weight": (width, 3, patch, patch),
        "patch_embed.projection.bias": (width,),
        "ln1.weight": (width,),
        "ln1.bias": (width,),
    }
    qkv, proj = {
        "mmpretrain": ("attn.qkv.{}", "attn.proj.{}"),
        "mmseg": ("attn.attn.in_proj_{}", "attn.attn.out_proj.{}"),
    }[layout]
    for i in range(depth):
        for name, shape in {
            "ln1.{}": (width,), "ln2.{}": (width,), qkv: (3 * width, width), proj: (width, width),
            "ffn.layers.0.0.{}": (hidden, width), "ffn.layers.1.{}": (width, hidden),
        }.items():  # fmt: skip
            shapes[f"layers.{i}.{name.format('weight')}"] = shape
            shapes[f"layers.{i}.{name.format('bias')}"] = shape[:1]
    return shapes


@pytest.mark.parametrize("layout", ["mmpretrain", "mmseg"])
def test_openmmlab_finds_every_tensor_by_name_and_shape(exported: Path, layout: str) -> None:
    model = timm.create_model(ARCH, num_classes=0, img_size=SIDE)
    hidden = model.blocks[0].mlp.fc1.out_features
    found = torch.load(exported / f"{layout}.pth", weights_only=True)["state_dict"]
    wanted = openmmlab(layout, model.embed_dim, len(model.blocks), hidden, 16, (SIDE // 16) ** 2)
    assert {name: tuple(value.shape) for name, value in found.items()} == wanted
    state = load_file(exported / "model.safetensors")
    assert torch.equal(found["layers.3.ffn.layers.1.weight"], state["blocks.3.mlp.fc2.weight"])
    assert torch.equal(found["ln1.bias"], state["norm.bias"])


@pytest.mark.parametrize("arch", ["vit_base_patch16_224", "vit_large_patch16_224"])
def test_the_students_of_the_paper_have_nothing_that_openmmlab_lacks(arch: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=0).state_dict()
    assert timm_export.unmapped(state) == []
    for layout in timm_export.LAYOUTS:
        assert not [
            name for name in timm_export.renamed(state, layout) if re.match(r"blocks|norm|patch_embed\.proj\.", name)
        ]


def test_layer_scales_and_registers_are_not_written_for_openmmlab() -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0).state_dict()
    assert "reg_token" in timm_export.unmapped(state)
    assert "blocks.0.ls1.gamma" in timm_export.unmapped(state)


def test_an_export_that_differs_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_is = timm_export._output
    monkeypatch.setattr(timm_export, "_output", lambda package, frame: as_it_is(package, frame) + 1e-4)
    with pytest.raises(VerificationFault, match="timm's create_model differs"):
        export.run(place / "run", out=place / "wrong")
    assert not (place / "wrong").exists()


def test_the_card_names_the_teachers_licences_and_what_was_not_run(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    assert "Distilled from other weights" in text
    assert "COCO and ADE20K were not run" in text
    assert "library_name: timm" in text
    assert "audio" not in json.loads((exported / "preprocessor_config.json").read_text())


def test_relative_positions_have_no_name_in_timm(place: Path, tmp_path: Path) -> None:
    relative = recipe_for(
        place, distill={"student": {"arch": ARCH, "pos": "relbias", "input": "full"}, "mask": {"policy": "none"}}
    )
    pretrain.run(relative, out=tmp_path / "run", device_name="cpu")
    with pytest.raises(UsageFault, match="relbias"):
        export.run(tmp_path / "run", out=tmp_path / "export")


def test_finetuning_learns_the_colours(place: Path) -> None:
    done = evaluate.run(place / "tuned", task="classification", device_name="cpu")
    assert done.result.metrics["top1"].value > 0.8
    assert done.result.n_scored == done.result.n_total
    assert read_json(place / "tuned" / "run.json")["teachers"].keys() == {"c", "m"}


def test_a_finetuned_classifier_leaves_as_timms(place: Path, tmp_path: Path) -> None:
    export.run(place / "tuned", out=tmp_path / "export", shards=place / "shards")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    ours, frame = open_model(place / "tuned", images=True).classifier, frames(place)
    assert ours is not None
    with torch.inference_mode():
        assert (theirs(frame) - ours({"frame": frame})).abs().max() < 1e-5
    assert theirs.pretrained_cfg["label_names"] == ["blue", "green", "red"]
    assert not list((tmp_path / "export").glob("*.pth"))


def test_a_linear_probe_leaves_the_encoder_as_it_is(place: Path, tmp_path: Path) -> None:
    changes = ["finetune.freeze_encoder=true", "finetune.layer_decay=1.0", "finetune.training.epochs=1"]
    finetune.run(place / "run", overrides=changes, out=tmp_path / "probe", device_name="cpu")
    before, after = weights(place / "run"), weights(tmp_path / "probe")
    for name, value in after.items():
        if name.startswith("classifier.encoder."):
            assert torch.equal(value, before[name.removeprefix("classifier.")])


def test_another_recipe_finetunes_the_student_it_is_given(place: Path, tmp_path: Path) -> None:
    other = recipes.validate(
        {
            "name": "other",
            "data": {"shards": str(place / "shards"), "workers": 0},
            "finetune": {**FINETUNE, "training": {"epochs": 1, "global_batch": 8}},
        }
    )
    finetune.run(place / "run", recipe=other, out=tmp_path / "run", device_name="cpu")
    opened = open_model(tmp_path / "run", images=True)
    assert opened.recipe.objective.distill.student.arch == ARCH
    assert isinstance(opened.classifier, ImageClassifier)


@pytest.mark.parametrize("modality", ["audio", "both"])
def test_a_student_of_pictures_does_not_hear(place: Path, modality: str, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="image model") as caught:
        finetune.run(place / "run", overrides=[f"finetune.modality={modality}"], out=tmp_path / "r", device_name="cpu")
    assert caught.value.next_step == "--modality video"


def test_stochastic_depth_rises_to_its_rate() -> None:
    model = vit(1, side=SIDE)
    set_drop_path(model, 0.3)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.3 * i / 5 for i in range(6)])


def test_layer_decay_counts_blocks_from_the_head() -> None:
    classifier = ImageClassifier(vit(1, side=SIDE), 3)
    scales = classifier.lr_scales(0.5, 2.0)
    names = {name: next(v for k, v in scales.items() if name.startswith(k)) for name, _ in classifier.named_parameters()
             if not name.startswith("encoder.norm.")}  # fmt: skip
    assert names["mlp_head.1.weight"] == 2.0
    assert names["encoder.blocks.5.mlp.fc1.weight"] == 0.5
    assert names["encoder.blocks.0.norm1.bias"] == 0.5**6
    assert names["encoder.cls_token"] == names["encoder.pos_embed"] == 0.5**7


def test_the_probe_and_diagnose_take_an_image_student(place: Path) -> None:
    probed = evaluate.run(place / "run", task="probe", options={"present": "video", "labels": "all"}, device_name="cpu")
    assert probed.result.metrics["knn5_top1"].value > 0.5
    assert probed.result.n_scored > 0
    found = evaluate.run(place / "run", task="diagnose", device_name="cpu").result.details["towers"]
    assert list(found) == ["video"]
    assert len(found["video"]) == 6


@pytest.mark.parametrize("task", ["retrieval", "probe"])
def test_tasks_that_need_sound_say_what_an_image_student_can_do(place: Path, task: str) -> None:
    with pytest.raises(UsageFault, match="needs sound") as caught:
        evaluate.run(place / "run", task=task, device_name="cpu")
    assert "present=video" in caught.value.next_step


def test_python_takes_single_pictures_and_says_that_the_model_hears_nothing(place: Path) -> None:
    model = single.open_for_use(place / "tuned")
    pictures = sorted((place / "pictures" / "green").glob("*.jpg"))
    odds = model.classify(pictures[0])
    assert sum(odds.values()) == pytest.approx(1)
    assert model.embed_video(pictures[0]).shape == (64,)
    with pytest.raises(UsageFault, match="image model"):
        model.embed_audio(pictures[0])
