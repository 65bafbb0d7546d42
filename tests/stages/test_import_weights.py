"""`kdctool import`: published files in, folders that everything opens out; harmful or unfit files refused whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdctool import recipe as recipes
from kdctool.cli import run as kdctool
from kdctool.errors import UsageFault, VerificationFault
from kdctool.files import read_json
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import merge_state
from kdctool.objectives.reconstruction import Decoder
from kdctool.recipe import Recipe
from kdctool.stages import export, pretrain
from kdctool.stages.import_weights import Choices, run
from kdctool.stages.load import open_model

SIZES = ("model.heads=2", "objective.decoder.heads=2")
TINY = """
name = "tiny"
[model]
audio_frames = 64
image_size = 32
width = 32
heads = 2
depth = 1
[objective.decoder]
width = 16
heads = 2
depth = 1
"""


def modules(recipe: Recipe) -> tuple[AVEncoder, Decoder]:
    return AVEncoder(recipe.model), Decoder(recipe.model, recipe.objective.decoder)


def released(recipe: Recipe, head: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    encoder, decoder = modules(recipe)
    mlp_head = AVClassifier(encoder, head, "both").mlp_head if head else None
    own = merge_state(encoder, None if head else decoder, mlp_head)
    return {name: torch.randn_like(value) for name, value in own.items()}


@pytest.fixture
def recipe() -> Recipe:
    return recipes.loads(TINY)


@pytest.fixture
def weights(tmp_path: Path, recipe: Recipe) -> Path:
    """A published file: `module.` before every name."""
    path = tmp_path / "audio_model.25.safetensors"
    save_file({f"module.{name}": value for name, value in released(recipe).items()}, path)
    return path


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def imported(weights: Path, out: Path, *overrides: str, layout: str = "cav-mae", **choices):
    return run(weights, layout, out, Choices(overrides=(*SIZES, *overrides), **choices))


def test_import_export_import_gives_the_same_bits(tmp_path, recipe, weights):
    imported(weights, tmp_path / "one")
    assert equal(bits(tmp_path / "one"), released(recipe))
    export.run(tmp_path / "one", out=tmp_path / "export", to=("hf",), decoder=True)
    imported(tmp_path / "export" / "model.safetensors", tmp_path / "two")
    assert equal(bits(tmp_path / "two"), bits(tmp_path / "one"))
    export.run(tmp_path / "one", out=tmp_path / "alone", to=("hf",))
    done = imported(tmp_path / "alone" / "model.safetensors", tmp_path / "three")
    assert equal(bits(tmp_path / "three"), {name: v for name, v in released(recipe).items()
                                            if not name.startswith("decoder_") and name != "mask_token"})  # fmt: skip
    assert any("no decoder" in note for note in done.notes)


def test_what_was_imported_opens_and_computes_what_the_weights_compute(tmp_path, recipe, weights):
    done = imported(weights, tmp_path / "out")
    opened = open_model(tmp_path / "out")
    assert (opened.kind, opened.step, opened.recipe.model) == ("pretrain", 0, done.recipe.model)
    encoder, _ = modules(recipe)
    encoder.load_state_dict({n: v for n, v in released(recipe).items() if n in encoder.state_dict()})
    fbank = torch.randn(2, 64, 128)
    with torch.inference_mode():
        assert torch.equal(opened.encoder.embed_audio(fbank), encoder.embed_audio(fbank))
    assert next(opened.encoder.blocks_a.parameters()).requires_grad
    assert not opened.encoder.pos_embed_a.requires_grad


def test_a_finetuned_file_opens_as_a_classifier_with_the_labels_given(tmp_path, recipe):
    state = released(recipe, head=3)
    save_file(state, tmp_path / "ft.safetensors")
    (tmp_path / "labels.csv").write_text('index,mid,display_name\n1,/m/b,"Bell, small"\n0,/m/a,Dog\n2,/m/c,Rain\n')
    done = imported(
        tmp_path / "ft.safetensors", tmp_path / "ft", layout="cav-mae-finetuned",
        labels=tmp_path / "labels.csv", modality="audio",
    )  # fmt: skip
    opened = open_model(tmp_path / "ft")
    assert (opened.kind, opened.labels, opened.multi_label) == ("finetune", ("Dog", "Bell, small", "Rain"), False)
    assert opened.classifier is not None
    assert opened.classifier.modality == "audio"
    assert torch.equal(opened.classifier.mlp_head[1].weight, state["mlp_head.1.weight"])
    assert done.labels == opened.labels
    imported(tmp_path / "ft.safetensors", tmp_path / "numbered", layout="cav-mae-finetuned", multi_label=True)
    opened = open_model(tmp_path / "numbered")
    assert (opened.labels, opened.multi_label) == (("class-0", "class-1", "class-2"), True)
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(UsageFault, match="names 2 labels, the head of the weights has 3"):
        imported(tmp_path / "ft.safetensors", tmp_path / "x", layout="cav-mae-finetuned", labels=tmp_path / "two.txt")
    assert not (tmp_path / "x").exists()


def test_the_command_prints_counts_and_writes_every_name(tmp_path, recipe, capsys):
    state = released(recipe) | {"fc.weight": torch.ones(2), "log_noise_AV": torch.ones(1)}
    wrapped = {"epoch": 25, "model_state_dict": {f"module.{n}": v for n, v in state.items()}, "optimizer": {"lr": 1.0}}
    torch.save(wrapped, tmp_path / "checkpoint.25.pth")
    arguments = ["import", str(tmp_path / "checkpoint.25.pth"), "--as", "kdc-mae", str(tmp_path / "kdc")]
    sets = [part for change in SIZES for part in ("--set", change)]
    assert kdctool([*arguments, *sets]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(state) - 2} tensors of the file" in said
    assert "2: fc.weight, log_noise_AV (the release stores it, no published loss reaches it)" in said
    assert "next: kdctool eval" in said
    told = read_json(tmp_path / "kdc" / "import.json")
    assert set(told["used"]) == set(state) - {"fc.weight", "log_noise_AV"}
    assert set(told["unused"]) == {"fc.weight", "log_noise_AV"}
    assert told["fresh"] == {}
    assert kdctool([*arguments, *sets]) == 2
    assert "exists already" in capsys.readouterr().err
    save_file(state, tmp_path / "plain.safetensors")
    arguments[1] = str(tmp_path / "plain.safetensors")
    assert kdctool([*arguments, *sets, "--overwrite", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == read_json(tmp_path / "kdc" / "import.json")
    assert {key for key in told if told[key] != said[key]} == {"source", "source_sha256"}
    assert open_model(tmp_path / "kdc").recipe.objective.name == "kdc_mae"


class Code:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, recipe, capsys):
    torch.save({**released(recipe), "x": Code(tmp_path / "canary")}, tmp_path / "evil.pth")
    assert kdctool(["import", str(tmp_path / "evil.pth"), "--as", "cav-mae", str(tmp_path / "out")]) == 2
    assert "reading it would run posix.system" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()


def test_a_file_that_promises_more_numbers_than_it_holds_is_refused(tmp_path, capsys):
    torch.save({"modality_a": torch.zeros(1).expand(1 << 40)}, tmp_path / "bomb.pth")
    assert kdctool(["import", str(tmp_path / "bomb.pth"), "--as", "cav-mae", str(tmp_path / "out")]) == 5
    assert "promises more numbers than it can hold" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"bomb.pth"}


def test_the_reading_process_has_little_memory_time_and_disk(tmp_path):
    """The fences are real: what goes over them fails in the child."""
    code = (
        "import resource, sys; sys.argv = ['x']\n"
        "from kdctool.stages import read_weights\n"
        "seen = {}\n"
        "def convert(path, copy, most):\n"
        "    for name in ('AS', 'DATA', 'CPU', 'FSIZE', 'CORE'):\n"
        "        seen[name] = resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[0]\n"
        "    bytearray(64 << 30)\n"
        "read_weights._convert = convert\n"
        "import os; read_weights.main([sys.executable, '/dev/null', str(os.getppid())])\n"
        "print(seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    answer, limits = done.stdout.splitlines()
    assert "wants more memory than it may" in json.loads(answer)["cause"], done.stderr
    limits = eval(limits)
    assert 0 < limits["DATA"] < limits["AS"] < 1 << 36
    assert 0 < limits["CPU"] < 3600
    assert limits["FSIZE"] < 1 << 30
    assert limits["CORE"] == 0


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda s: s.pop("blocks_v.0.mlp.fc1.bias"), 2, "1 missing: blocks_v.0.mlp.fc1.bias"),
        (lambda s: s.pop("decoder_pred_a.weight"), 2, "1 missing: decoder_pred_a.weight"),
        (lambda s: s.update(teacher=torch.ones(2)), 2, "1 unknown: teacher"),
        (lambda s: s["norm.bias"].fill_(float("inf")), 5, "not finite: norm.bias"),
        (lambda s: s.pop("modality_a"), 2, "not in the layout cav-mae: modality_a missing"),
    ],
)
def test_a_file_with_one_thing_wrong_leaves_nothing(tmp_path, recipe, capsys, change, code, said):
    state = released(recipe)
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    command = ["import", str(tmp_path / "w.safetensors"), "--as", "cav-mae", str(tmp_path / "out")]
    assert kdctool([*command, *(part for change in SIZES for part in ("--set", change))]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors"}


def test_a_missing_and_a_cut_file_are_told_apart(tmp_path, weights):
    with pytest.raises(UsageFault, match="no weights at"):
        run(tmp_path / "none.pth", "cav-mae", tmp_path / "out")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(VerificationFault, match=r"cut\.safetensors is not a sound"):
        run(cut, "cav-mae", tmp_path / "out")


def test_a_recipe_of_another_size_is_refused_and_one_of_another_length_is_fitted(tmp_path, recipe, weights):
    for change, said in (
        ("model.width=64", r"of another shape: modality_a is \(1, 1, 32\), the recipe makes it \(1, 1, 64\)"),
        ("model.depth=2", r"40 missing: blocks_a\.1|missing: blocks_a\.1\.norm1\.weight"),
        ("model.video_patch=8", r"patch_embed_v\.proj\.weight is \(32, 3, 16, 16\)"),
    ):
        with pytest.raises(UsageFault, match=said):
            run(weights, "cav-mae", tmp_path / "x", Choices(recipe=recipes.loads(TINY, [change])))
    other = recipes.loads(TINY, ["model.audio_frames=32", "model.image_size=64"])
    done = run(weights, "cav-mae", tmp_path / "short", Choices(recipe=other))
    assert [note.split(":")[0] for note in done.notes if "positions" in note] == [
        "pos_embed_a", "pos_embed_v", "decoder_pos_embed_a", "decoder_pos_embed_v"
    ]  # fmt: skip
    whole, short = released(recipe), bits(tmp_path / "short")
    assert torch.equal(short["pos_embed_a"].reshape(8, 2, 32), whole["pos_embed_a"].reshape(8, 4, 32)[:, :2])
    assert short["pos_embed_v"].shape == (1, 16, 32)
    assert torch.equal(short["blocks_a.0.attn.qkv.weight"], whole["blocks_a.0.attn.qkv.weight"])


def test_heads_that_shapes_do_not_show_are_checked_where_they_are_known(tmp_path):
    wide = recipes.loads(TINY, ["model.width=192", "model.heads=3"])
    save_file(released(wide), tmp_path / "w.safetensors")
    other = recipes.loads(TINY, ["model.width=192", "model.heads=6"])
    with pytest.raises(UsageFault, match=r"model\.heads = 6, but these weights have 3"):
        run(tmp_path / "w.safetensors", "cav-mae", tmp_path / "x", Choices(recipe=other))
    own = Choices(overrides=("model.heads=6", SIZES[1]))
    done = run(tmp_path / "w.safetensors", "cav-mae", tmp_path / "y", own)
    assert done.recipe.model.heads == 6
    assert any("shapes do not show attention heads: 6" in note for note in done.notes)


def start(recipe: Recipe, init: Path, *changes: str) -> torch.nn.Module:
    changed = recipes.loads(recipes.to_toml(recipe), [f'model.init="{init}"', *changes])
    return pretrain.build_objective(changed)


def test_model_init_opens_an_import_and_a_bare_file_alike(tmp_path, recipe, weights, capsys):
    imported(weights, tmp_path / "out")
    for init in (tmp_path / "out", weights):
        objective = start(recipe, init)
        assert equal(merge_state(objective.encoder, objective.decoder), released(recipe))
        assert objective.encoder.norm.weight.requires_grad
    shorter = start(recipe, weights, "model.audio_frames=32")
    assert shorter.encoder.pos_embed_a.shape == (1, 16, 32)
    assert "pos_embed_a: 8 x 4 positions cropped (first columns) to 8 x 2" in capsys.readouterr().err
    imported(weights, tmp_path / "bare", decoder=False)
    assert not any(name.startswith("decoder") for name in bits(tmp_path / "bare"))
    start(recipe, tmp_path / "bare")
    assert "has no decoder, so it starts random" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.heads=4", r"model\.heads = 4, but .*out was trained with 2"),
        ("model.width=16", r"do not fit the encoder .*modality_a is \(1, 1, 32\), the recipe makes it \(1, 1, 16\)"),
        ("model.depth=2", r"missing: blocks_a\.1\.norm1\.weight"),
        ("objective.decoder.depth=2", r"do not fit the decoder .*missing: decoder_blocks\.1\.norm1\.weight"),
    ],
)
def test_model_init_refuses_weights_of_another_model(tmp_path, recipe, weights, change, said):
    imported(weights, tmp_path / "out")
    with pytest.raises(UsageFault, match=said):
        start(recipe, tmp_path / "out", change)


def test_an_export_with_a_tensor_that_nobody_knows_does_not_open(tmp_path, weights):
    from kdctool.files import sha256_file, write_json

    imported(weights, tmp_path / "out")
    save_file(bits(tmp_path / "out") | {"extra.weight": torch.ones(2)}, tmp_path / "out" / "model.safetensors")
    about = read_json(tmp_path / "out" / "kdctool.json")
    about["weights_sha256"] = sha256_file(tmp_path / "out" / "model.safetensors")
    write_json(tmp_path / "out" / "kdctool.json", about)
    with pytest.raises(UsageFault, match=r"1 unknown: extra\.weight"):
        open_model(tmp_path / "out")


def test_an_imagenet_mae_and_a_timm_vit_come_in_by_command_and_repeat(tmp_path, capsys):
    torch.manual_seed(0)
    width, shapes = 192, {"norm": (192,), "attn.qkv": (576, 192), "attn.proj": (192, 192),
                          "mlp.fc1": (768, 192), "mlp.fc2": (192, 768)}  # fmt: skip
    state = {"cls_token": torch.randn(1, 1, width), "pos_embed": torch.randn(1, 197, width)}
    state |= {"patch_embed.proj.weight": torch.randn(width, 3, 16, 16), "patch_embed.proj.bias": torch.randn(width)}
    for i in range(12):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            shape = shapes["norm" if part.startswith("norm") else part]
            state |= {
                f"blocks.{i}.{part}.weight": torch.randn(shape),
                f"blocks.{i}.{part}.bias": torch.randn(shape[:1]),
            }
    state |= {"norm.weight": torch.randn(width), "norm.bias": torch.randn(width)}
    save_file(state, tmp_path / "vit.safetensors")
    vit = str(tmp_path / "vit.safetensors")
    assert kdctool(["import", vit, "--as", "imagenet-mae", str(tmp_path / "mae")]) == 0
    assert "CC BY-NC" in capsys.readouterr().out
    assert kdctool(["import", vit, "--as", "imagenet-mae", str(tmp_path / "again")]) == 0
    assert (tmp_path / "mae" / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    command = ["import", vit, "--as", "timm", str(tmp_path / "timm"), "--tower", "audio"]
    assert kdctool(command) == 2
    assert kdctool([*command, "--model", "vit_tiny_patch16_224"]) == 0
    opened = open_model(tmp_path / "timm")
    assert (opened.recipe.model.depth, opened.recipe.model.heads) == (11, 3)
    assert torch.equal(opened.encoder.blocks_a[10].attn.qkv.weight, state["blocks.10.attn.qkv.weight"])
    assert not torch.equal(opened.encoder.blocks_v[10].attn.qkv.weight, state["blocks.10.attn.qkv.weight"])


def test_full_size_files_come_in_with_the_published_counts(tmp_path):
    """647 tensors and 191,036 K parameters, 190,130 K of them trainable, as the papers' logs say."""
    base = Recipe(name="base")
    with torch.device("meta"):
        own = merge_state(*modules(base))
        finetuned = merge_state(AVEncoder(base.model), head=AVClassifier(AVEncoder(base.model), 527, "both").mlp_head)
    assert (len(own), len(finetuned)) == (647, 478)
    assert round(sum(value.numel() for value in finetuned.values()) / 1e3) == 164_907
    row = torch.randn(1 << 20, dtype=torch.bfloat16)
    state = {
        f"module.{name}": row.repeat(value.numel() // len(row) + 1)[: value.numel()].reshape(value.shape)
        for name, value in own.items()
    }
    torch.save(state, tmp_path / "audio_model.25.pth")
    del state
    done = run(tmp_path / "audio_model.25.pth", "cav-mae", tmp_path / "base")
    assert (len(done.used), done.unused, done.fresh) == (647, {}, {})
    assert (done.parameters, round(done.parameters / 1e3)) == (191_036_160, 191_036)
    assert round(done.reference_trained / 1e3) == 190_130
    assert done.recipe.model == base.model.model_copy(update={"init": str(tmp_path / "base")})
    assert done.recipe.objective.decoder == base.objective.decoder
    assert done.notes == ("bfloat16 tensors become float32",)


def test_what_was_imported_is_scored_and_finetuned_like_a_run(tmp_path, tiny_shards, tiny_recipe):
    from kdctool.stages import evaluate, finetune

    recipe = recipes.load(tiny_recipe())
    save_file(released(recipe), tmp_path / "w.safetensors")
    run(tmp_path / "w.safetensors", "cav-mae", tmp_path / "out", Choices(recipe=recipe))
    scored = evaluate.run(tmp_path / "out", task="retrieval", shards=tiny_shards, workers=0)
    assert scored.result.n_scored == 20
    plan = finetune.run(tmp_path / "out", shards=tiny_shards, out=tmp_path / "run", device_name="cpu", dry_run=True)
    assert dict(plan.plan_rows)["classes"] == "3"
