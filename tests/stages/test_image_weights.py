"""Weights of image models from elsewhere: what is told of bare files, how they come in, and how students start."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from distilling import ARCH, vit, write
from image_runs import SIDE, exported, recipe_for
from safetensors.torch import save_file
from training_runs import weights

import kdctool
from kdctool.cli import run as command
from kdctool.errors import UsageFault, VerificationFault
from kdctool.files import read_json
from kdctool.recipe import Recipe
from kdctool.stages import evaluate, export, finetune, pretrain
from kdctool.stages.import_weights import run as import_weights
from kdctool.stages.imported import Choices
from kdctool.stages.initial import weights_digest
from kdctool.stages.load import open_model

IMAGE = {"tower": "image", "timm_model": ARCH}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures, a pre-trained run, a finetuned one, their timm exports, and these without kdctool.json."""
    folder = exported(tmp_path_factory.mktemp("images"))
    for name in ("run", "tuned"):
        bare = folder / f"{name}-bare"
        bare.mkdir()
        for file in ("model.safetensors", "config.json"):
            (bare / file).write_bytes((folder / f"{name}-timm" / file).read_bytes())
    return folder


def state_of(opened: Any) -> dict[str, torch.Tensor]:
    return (opened.classifier or opened.encoder).state_dict()


def test_a_folder_of_timms_is_told_apart_and_the_command_that_is_named_mends_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageFault, match=rf"folder of timm's \({ARCH}\) without kdctool\.json") as caught:
        open_model(place / "tuned-bare", images=True)
    named = caught.value.next_step.partition(", then")[0]
    assert "--set 'data.image_std=[0.2, 0.25, 0.3]'" in named
    monkeypatch.chdir(tmp_path)
    assert command(shlex.split(named)[1:]) == 0
    before, after = open_model(place / "tuned", images=True), open_model(tmp_path / "FOLDER", images=True)
    ours, theirs = state_of(before), state_of(after)
    differ = {name for name, value in ours.items() if not torch.equal(value, theirs[name])}
    assert differ == {"encoder.norm.weight", "encoder.norm.bias"}
    assert (after.labels, after.recipe.data.image_std) == (before.labels, (0.2, 0.25, 0.3))
    scored = [
        evaluate.run(
            path, task="classification", shards=place / "shards", out=tmp_path / "e", device_name="cpu",
            allow_overlap=True,
        ).result.metrics
        for path in (place / "tuned", tmp_path / "FOLDER")
    ]  # fmt: skip
    assert scored[0] == scored[1]


def test_the_recipe_beside_a_bare_export_is_part_of_the_command(place: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "recipe.toml"):
        (tmp_path / name).write_bytes((place / "run-timm" / name).read_bytes())
    with pytest.raises(UsageFault) as caught:
        open_model(tmp_path, images=True)
    assert f"--model {ARCH} --recipe {tmp_path / 'recipe.toml'}" in caught.value.next_step


def test_a_bare_file_is_told_what_it_does_not_say(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", vit(1, side=SIDE))
    with pytest.raises(UsageFault, match="bare file of weights: it says neither which architecture") as caught:
        kdctool.load(path)
    assert f"kdctool import {path} FOLDER --as timm --tower image --model NAME" in caught.value.next_step
    with pytest.raises(UsageFault, match="does not exist"):
        open_model(tmp_path / "nothing")


def test_a_published_vit_comes_in_without_its_head_and_computes_what_timm_computes(place: Path, tmp_path: Path) -> None:
    model = timm.create_model(ARCH, num_classes=5, img_size=SIDE).eval()
    done = import_weights(write(tmp_path / "w.safetensors", model), "timm", tmp_path / "out", Choices(**IMAGE))
    assert set(done.unused) == {"head.weight", "head.bias"}
    assert all("mean of the patches" in why for why in done.unused.values())
    opened = open_model(tmp_path / "out", images=True)
    assert (opened.kind, opened.classifier, opened.recipe.model.image_size) == ("pretrain", None, SIDE)
    frame = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(opened.encoder.forward_features(frame), model.forward_features(frame))
    picture = next((place / "pictures" / "green").glob("*.jpg"))
    assert kdctool.load(tmp_path / "out").embed_video(picture).shape == (64,)
    towers = evaluate.run(
        tmp_path / "out", task="diagnose", shards=place / "shards", device_name="cpu"
    ).result.details["towers"]  # fmt: skip
    assert len(towers["video"]) == 6


def test_an_import_is_finetuned_and_exported_again_with_the_same_bits(place: Path, tmp_path: Path) -> None:
    import_weights(place / "run-bare" / "model.safetensors", "timm", tmp_path / "in", Choices(**IMAGE))
    short = ["finetune.training.epochs=1", "finetune.training.global_batch=8", "data.workers=0"]
    finetune.run(tmp_path / "in", shards=place / "shards", overrides=short, out=tmp_path / "t", device_name="cpu")
    export.run(tmp_path / "in", out=tmp_path / "out")
    again = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert again == (place / "run-bare" / "model.safetensors").read_bytes()


def test_the_normalisation_is_timms_for_the_name_and_clip_without_quickgelu_is_refused(tmp_path: Path) -> None:
    name = "vit_base_patch32_clip_quickgelu_224.openai"
    with torch.device("meta"):
        known = timm.create_model(name, num_classes=0).pretrained_cfg
    path = write(tmp_path / "w.safetensors", vit(1, side=SIDE))
    with pytest.raises(UsageFault, match="these weights are not timm's") as caught:
        import_weights(path, "timm", tmp_path / "out", Choices(tower="image", timm_model=name))
    assert "--model" in caught.value.next_step
    assert tuple(known["mean"]) == (0.48145466, 0.4578275, 0.40821073)
    with pytest.raises(UsageFault, match="QuickGELU"):
        import_weights(
            path, "timm", tmp_path / "out", Choices(tower="image", timm_model=name.replace("quickgelu_", ""))
        )
    assert not (tmp_path / "out").exists()


def test_the_account_of_an_import_names_every_tensor(place: Path, tmp_path: Path) -> None:
    file = place / "tuned-bare" / "model.safetensors"
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    done = import_weights(file, "timm", tmp_path / "x", Choices(**IMAGE, labels=tmp_path / "names.txt"))
    told = read_json(tmp_path / "x" / "import.json")
    assert told["used"]["head.weight"] == ["mlp_head.1.weight"]
    assert told["used"]["blocks.0.norm1.bias"] == ["blocks.0.norm1.bias"]
    assert set(told["fresh"]) == {"norm.weight", "norm.bias"}
    assert done.labels == ("a", "b", "c")
    assert f"timm's {ARCH}" in (tmp_path / "x" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "fault", "told"),
    [
        (lambda state: state.pop("blocks.3.attn.qkv.weight"), UsageFault, "1 missing"),
        (lambda state: state.update(stranger=torch.ones(1)), UsageFault, "1 unknown: stranger"),
        (lambda state: state["norm.bias"].fill_(float("nan")), VerificationFault, "not finite"),
    ],
)
def test_unfit_weights_leave_nothing(tmp_path: Path, change: Any, fault: type[Exception], told: str) -> None:
    state = {name: value.clone() for name, value in vit(1, side=SIDE).state_dict().items()}
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(fault, match=told):
        import_weights(tmp_path / "w.safetensors", "timm", tmp_path / "out", Choices(**IMAGE))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def started(place: Path, init: Path, **more: Any) -> dict[str, torch.Tensor]:
    recipe: Recipe = recipe_for(place, model={"init": str(init)}, **more)
    return pretrain.build_objective(recipe).encoder.state_dict()


@pytest.mark.parametrize("name", ["run", "run-timm", "run-bare/model.safetensors", "tuned-timm"])
def test_a_student_starts_from_runs_exports_and_bare_files(place: Path, name: str) -> None:
    source = "tuned" if name.startswith("tuned") else "run"
    wanted = open_model(place / source, images=True).encoder.state_dict()
    found = started(place, place / name)
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


def test_a_student_starts_from_a_full_mae_file_with_its_positions_and_another_grid(place: Path, tmp_path: Path) -> None:
    state = {
        **vit(5, side=96).state_dict(),
        "decoder_embed.weight": torch.ones(8, 64),
        "mask_token": torch.ones(1, 1, 8),
    }
    save_file(state, tmp_path / "mae.safetensors")
    found = started(place, tmp_path / "mae.safetensors")
    assert torch.equal(found["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert found["pos_embed"].shape == (1, 17, 64)
    assert torch.equal(found["pos_embed"][:, 0], state["pos_embed"][:, 0])


def test_weights_of_another_model_are_no_start(place: Path, tmp_path: Path) -> None:
    tiny = {"student": {"arch": "vit_tiny_patch16_224"}, "losses": [{"kind": "feature", "teacher": "c"}]}
    with pytest.raises(UsageFault, match="does not hold the weights of vit_tiny") as caught:
        started(place, place / "run-bare" / "model.safetensors", distill=tiny)
    assert "student.arch" in caught.value.next_step
    with pytest.raises(UsageFault, match=f"is {ARCH}, objective.distill.student.arch = 'vit_tiny_patch16_224'"):
        started(place, place / "run-timm", distill=tiny)


def test_a_folder_of_timms_as_a_start_is_told_which_file_to_name(place: Path) -> None:
    with pytest.raises(UsageFault, match="is a folder of timm's") as caught:
        weights_digest(place / "run-bare")
    assert caught.value.next_step.endswith(str(place / "run-bare" / "model.safetensors"))


def test_an_audio_visual_model_does_not_start_from_an_image_model(place: Path, tmp_path: Path) -> None:
    from kdctool import recipe as recipes

    small = {"width": 32, "heads": 2, "depth": 1, "audio_frames": 64, "image_size": 32}
    recipe = recipes.validate({"name": "x", "model": {**small, "init": str(place / "run-timm")}})
    with pytest.raises(UsageFault, match="is an image model, and what shall be trained is audio-visual"):
        pretrain.build_objective(recipe)


def test_the_command_pretrains_from_an_export(place: Path, tmp_path: Path) -> None:
    from kdctool.recipe import to_toml

    short = {"training": {"epochs": 1, "global_batch": 8}, "optim": {"name": "adamw", "lr": 1e-9}}
    (tmp_path / "r.toml").write_text(to_toml(recipe_for(place, **short)))
    said = ["pretrain", str(tmp_path / "r.toml"), "--init", str(place / "run-timm"), "--out", str(tmp_path / "again")]
    assert command([*said, "--device", "cpu"]) == 0
    before, after = weights(place / "run"), weights(tmp_path / "again")
    name = "encoder.blocks.2.mlp.fc1.weight"
    assert (before[name] - after[name]).abs().max() < 1e-7
    about = read_json(tmp_path / "again" / "run.json")
    assert read_json(place / "run-timm" / "kdctool.json")["weights_sha256"] in json.dumps(about)


def test_what_was_imported_has_nothing_to_minimise(place: Path, tmp_path: Path) -> None:
    import_weights(place / "run-bare" / "model.safetensors", "timm", tmp_path / "in", Choices(**IMAGE))
    with pytest.raises(UsageFault, match="nothing to minimise") as caught:
        pretrain.build_objective(open_model(tmp_path / "in", images=True).recipe)
    assert "finetune it" in caught.value.next_step
