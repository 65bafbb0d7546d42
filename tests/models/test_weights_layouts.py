"""Other people's names and shapes become ours, tensor by tensor, as the published tables say."""

import re

import pytest
import torch
from torch import Tensor

from kdctool.errors import UsageFault, VerificationFault
from kdctool.models.assemble import assemble
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.layers import sincos_2d
from kdctool.models.layouts import NAMES, detect, layout
from kdctool.models.positions import fit_audio, fit_positions, fit_video
from kdctool.models.weights import merge_state
from kdctool.objectives.reconstruction import Decoder
from kdctool.recipe import Model, Recipe, validate

BLOCK = [
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]
EXTRA_NORMS = [f"norm{i}_{m}.{kind}" for i in (1, 2) for m in "av" for kind in ("weight", "bias")]


def tiny(**model: int) -> Recipe:
    sizes = {"audio_frames": 64, "image_size": 64, "width": 32, "heads": 2, "depth": 2, **model}
    return validate({"name": "tiny", "model": sizes, "objective": {"decoder": {"width": 32, "heads": 1, "depth": 1}}})


def released(recipe: Recipe, decoder: bool = True) -> dict[str, Tensor]:
    """A state dict as published files have it, of random numbers."""
    torch.manual_seed(0)
    own = merge_state(AVEncoder(recipe.model), Decoder(recipe.model, recipe.objective.decoder) if decoder else None)
    return {name: torch.randn_like(value) for name, value in own.items()}


def vit(width: int = 32, blocks: int = 3, side: int = 4, patch: int = 16, channels: int = 3) -> dict[str, Tensor]:
    """An encoder as the ImageNet MAE and timm name it."""
    torch.manual_seed(1)
    shapes = {"norm": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
              "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}  # fmt: skip
    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, side**2 + 1, width),
        "patch_embed.proj.weight": torch.randn(width, channels, patch, patch),
        "patch_embed.proj.bias": torch.randn(width),
    }
    for i in range(blocks):
        for leaf in BLOCK:
            part, kind = leaf.rsplit(".", 1)
            shape = shapes["norm" if part.startswith("norm") else part]
            state[f"blocks.{i}.{leaf}"] = torch.randn(shape if kind == "weight" else shape[:1])
    return state | {"norm.weight": torch.randn(width), "norm.bias": torch.randn(width)}


def imagenet_mae(inner: int = 32, depth: int = 1) -> dict[str, Tensor]:
    state = vit()
    torch.manual_seed(2)
    decoder = vit(inner, depth)
    return state | {
        "mask_token": torch.randn(1, 1, inner),
        "decoder_pos_embed": torch.randn(1, 17, inner),
        "decoder_embed.weight": torch.randn(inner, 32),
        "decoder_embed.bias": torch.randn(inner),
        **{f"decoder_{name}": value for name, value in decoder.items() if name.startswith(("blocks.", "norm."))},
        "decoder_pred.weight": torch.randn(768, inner),
        "decoder_pred.bias": torch.randn(768),
    }


def complete(mapped, source, recipe: Recipe, *, decoder: bool = True):
    torch.manual_seed(3)
    fresh = merge_state(AVEncoder(recipe.model), Decoder(recipe.model, recipe.objective.decoder) if decoder else None)
    return assemble(mapped, source, {name: value.shape for name, value in fresh.items()}, lambda: fresh)


def test_the_model_has_exactly_the_tensors_that_published_files_list():
    recipe = Recipe(name="base")
    with torch.device("meta"):
        encoder, decoder = AVEncoder(recipe.model), Decoder(recipe.model, recipe.objective.decoder)
    names = {f"{stem}_{m}" for stem in ("modality", "pos_embed") for m in "av"}
    names |= {f"patch_embed_{m}.proj.{kind}" for m in "av" for kind in ("weight", "bias")}
    names |= {f"{norm}.{kind}" for norm in ("norm", "norm_a", "norm_v") for kind in ("weight", "bias")}
    blocks = {f"blocks_{m}.{i}" for m in "av" for i in range(11)} | {"blocks_u.0"}
    names |= {f"{block}.{leaf}" for block in blocks for leaf in [*BLOCK, *EXTRA_NORMS]}
    assert set(encoder.state_dict()) == names
    assert len(encoder.state_dict()) + 4 == 478
    assert len(merge_state(encoder, decoder)) == 647
    assert {name for name in decoder.state_dict() if "blocks" not in name} == {
        "mask_token", "decoder_modality_a", "decoder_modality_v", "decoder_pos_embed_a", "decoder_pos_embed_v",
        *(f"decoder_{part}.{kind}" for part in ("embed", "norm", "pred_a", "pred_v") for kind in ("weight", "bias")),
    }  # fmt: skip


def test_a_released_file_tells_its_sizes():
    recipe = tiny()
    sizes = layout("cav-mae").sizes(released(recipe))
    given = recipe.model.model_dump()
    assert {key: given[key] for key in sizes.model} == sizes.model
    assert sizes.decoder == {"width": 32, "heads": 1, "depth": 1}
    with torch.device("meta"):
        base = layout("cav-mae").sizes(dict(AVEncoder(Model()).state_dict()))
    assert base.model == {key: value for key, value in Model().model_dump().items() if key in base.model}
    assert base.model["heads"] == 12


def test_imagenet_mae_goes_to_both_towers_as_the_published_table_says():
    recipe, state = tiny(), imagenet_mae()
    mapped = layout("imagenet-mae").translate(state, recipe.model)
    made = complete(mapped, state, recipe)
    ours = made.state

    def same(name: str, value: Tensor) -> None:
        assert torch.equal(ours[name], value), name

    for i in range(2):
        for leaf in BLOCK:
            for tower in "av":
                same(f"blocks_{tower}.{i}.{leaf}", state[f"blocks.{i}.{leaf}"])
    for leaf in BLOCK:
        same(f"blocks_u.0.{leaf}", state[f"blocks.2.{leaf}"])
        part, kind = leaf.rsplit(".", 1)
        if part.startswith("norm"):
            for m in "av":
                same(f"blocks_u.0.{part}_{m}.{kind}", state[f"blocks.2.{leaf}"])
    for norm in ("norm", "norm_a", "norm_v"):
        for kind in ("weight", "bias"):
            same(f"{norm}.{kind}", state[f"norm.{kind}"])
    same("patch_embed_v.proj.weight", state["patch_embed.proj.weight"])
    red, green, blue = state["patch_embed.proj.weight"].unbind(1)
    torch.testing.assert_close(ours["patch_embed_a.proj.weight"][:, 0], red + green + blue)
    for m in "av":
        same(f"patch_embed_{m}.proj.bias", state["patch_embed.proj.bias"])
    same("pos_embed_v", state["pos_embed"][:, 1:])
    same("pos_embed_a", sincos_2d(32, (8, 4)))
    same("decoder_pos_embed_v", state["decoder_pos_embed"][:, 1:])
    same("decoder_pos_embed_a", sincos_2d(32, (8, 4)))
    for name in ("decoder_embed.weight", "decoder_embed.bias", "mask_token", "decoder_norm.weight"):
        same(name, state[name])
    for leaf in BLOCK:
        same(f"decoder_blocks.0.{leaf}", state[f"decoder_blocks.0.{leaf}"])
    same("decoder_pred_v.weight", state["decoder_pred.weight"])
    same("decoder_pred_a.weight", state["decoder_pred.weight"][:256])
    same("decoder_pred_a.bias", state["decoder_pred.bias"][:256])
    for block in ("blocks_a.0", "blocks_v.1", "decoder_blocks.0"):
        for leaf in EXTRA_NORMS:
            same(f"{block}.{leaf}", torch.ones(32) if leaf.endswith("weight") else torch.zeros(32))
    assert mapped.unused == {"cls_token": "the towers have no class token"}
    modality = {"modality_a", "modality_v", "decoder_modality_a", "decoder_modality_v"}
    assert {name for name in made.fresh if not re.search(r"norm[12]_[av]|pos_embed_a", name)} == modality
    assert set(mapped.used) | set(mapped.unused) == set(state)
    places = [value.untyped_storage().data_ptr() for value in ours.values()]
    assert len(set(places)) == len(places), "towers that share memory would be trained as one"


def test_an_imagenet_mae_of_another_depth_is_refused_with_the_depth_that_fits():
    state = imagenet_mae()
    with pytest.raises(UsageFault, match=r"depth = 4 and model\.joint_depth = 1 need 5 blocks, the file has 3") as told:
        layout("imagenet-mae").translate(state, tiny(depth=4).model)
    assert told.value.next_step == "set model.depth = 2"


def test_what_the_kdc_release_carries_along_is_named_and_left_out():
    recipe = tiny()
    state = released(recipe)
    extras = [
        "decoder_embed_audio.weight", "mask_token_video", "latent_projection.bias", "kld_mlp.0.weight", "log_noise_AV",
        "dw_fc1.weight", "dw_fc.bias", "fc.weight", "pos_embed_probs_a", "probability_network.2.weight",
        "get_token_probs.0.norm1.weight",
    ]  # fmt: skip
    full = state | {name: torch.ones(2) for name in extras}
    mapped = layout("kdc-mae").translate(full, recipe.model)
    assert set(mapped.unused) == set(extras)
    assert complete(mapped, full, recipe).state.keys() == state.keys()
    with pytest.raises(UsageFault, match="11 unknown"):
        complete(layout("cav-mae").translate(full, recipe.model), full, recipe)
    split = full | {"decoder_blocks_a.0.norm1.weight": torch.ones(2)}
    with pytest.raises(UsageFault, match=r"1 unknown: decoder_blocks_a\.0\.norm1\.weight"):
        complete(layout("kdc-mae").translate(split, recipe.model), split, recipe)


def test_sync_maps_but_for_its_registers_and_says_what_that_means():
    recipe = tiny()
    extras = {"register_tokens": torch.ones(16, 32), "cls_token_a": torch.ones(1, 1, 32)}
    state = released(recipe) | extras | {"constrative_head_audio.0.norm1.weight": torch.ones(32)}
    mapped = layout("cav-mae-sync").translate(state, recipe.model)
    assert set(mapped.unused) == {*extras, "constrative_head_audio.0.norm1.weight"}
    assert any("not the same model" in note for note in mapped.notes)
    with torch.device("meta"):
        sync = AVEncoder(Model(audio_frames=416)).state_dict()
    assert sync["pos_embed_a"].shape[1] == 208
    assert layout("cav-mae-sync").sizes(dict(sync)).model["audio_frames"] == 416


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda s: s.pop("blocks_v.1.attn.qkv.bias"), r"1 missing: blocks_v\.1\.attn\.qkv\.bias"),
        (lambda s: s.pop("decoder_norm.weight"), r"1 missing: decoder_norm\.weight"),
        (lambda s: s.update(odd=torch.ones(1)), "1 unknown: odd"),
        (
            lambda s: s.update({"patch_embed_v.proj.weight": torch.ones(32, 3, 14, 14)}),
            r"patch_embed_v\.proj\.weight is \(32, 3, 14, 14\), the recipe makes it \(32, 3, 16, 16\)",
        ),
    ],
)
def test_a_file_with_one_thing_wrong_is_refused_by_name(broken, said):
    recipe = tiny()
    state = released(recipe)
    broken(state)
    with pytest.raises(UsageFault, match=said):
        complete(layout("cav-mae").translate(state, recipe.model), state, recipe)


def test_a_value_that_is_not_finite_is_refused_by_name():
    recipe = tiny()
    state = released(recipe)
    state["blocks_u.0.mlp.fc1.weight"][3, 4] = float("nan")
    with pytest.raises(VerificationFault, match=r"1 tensors of the file .*: blocks_u\.0\.mlp\.fc1\.weight"):
        complete(layout("cav-mae").translate(state, recipe.model), state, recipe)


def test_a_name_tells_which_layout_a_file_has():
    recipe = tiny()
    state = released(recipe)
    assert detect(state) == "cav-mae"
    assert detect(state | {"fc.weight": torch.ones(1)}) == "kdc-mae"
    assert detect(state | {"register_tokens": torch.ones(1)}) == "cav-mae-sync"
    assert detect(state | {"mlp_head.1.weight": torch.ones(1)}) == "cav-mae-finetuned"
    assert detect(imagenet_mae()) == "imagenet-mae"
    assert detect({"conv1.weight": torch.ones(1)}) == ""
    with pytest.raises(UsageFault, match="not an ImageNet MAE") as told:
        layout("imagenet-mae").sizes(state)
    assert told.value.next_step == "they look like --as cav-mae"
    with pytest.raises(UsageFault, match="cavmae"):
        layout("cavmae")
    assert set(NAMES) == {"cav-mae", "kdc-mae", "cav-mae-sync", "cav-mae-finetuned", "imagenet-mae", "timm"}


def test_heads_or_no_head_must_be_as_said():
    recipe = tiny()
    state = released(recipe, decoder=False)
    with pytest.raises(UsageFault, match="no classification head"):
        layout("cav-mae-finetuned").translate(state, recipe.model)
    with pytest.raises(UsageFault, match="have a classification head"):
        layout("cav-mae").translate(state | {"mlp_head.1.weight": torch.ones(3, 32)}, recipe.model)


VIT = "vit_tiny_patch16_224"


def timm_state(**changes) -> dict[str, Tensor]:
    state = vit(192, 12, 14)
    return {**state, "head.weight": torch.ones(5, 192), **changes}


def test_a_timm_vit_becomes_both_towers_and_computes_what_timm_computes():
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(VIT, num_classes=0, class_token=False, global_pool="avg").eval()
    state = {name.replace("fc_norm", "norm"): value.detach() for name, value in theirs.state_dict().items()}
    frame = torch.randn(1, 3, 224, 224)
    how = layout("timm", timm_model=VIT)
    full = state | {"cls_token": torch.zeros(1, 1, 192)}
    full["pos_embed"] = torch.cat((torch.zeros(1, 1, 192), state["pos_embed"]), dim=1)
    recipe = validate({"name": "x", "model": {**how.sizes(full).model, "audio_frames": 64}})
    mapped = how.translate(full, recipe.model)
    encoder = AVEncoder(recipe.model)
    with torch.no_grad():
        encoder.modality_v.zero_()
    own = encoder.state_dict()
    made = assemble(mapped, full, {name: value.shape for name, value in own.items()}, lambda: dict(own))
    encoder.load_state_dict(made.state)
    with torch.inference_mode():
        expected = theirs.forward_features(frame)
        ours = encoder.norm(encoder.blocks_u[0](encoder.tower_video(frame)))
    # timm's global-average model normalises after pooling: compare token by token before and with its norm.
    expected = torch.nn.functional.layer_norm(expected, (192,), state["norm.weight"], state["norm.bias"])
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-3)
    assert set(mapped.used) | set(mapped.unused) == set(full)
    assert mapped.unused["cls_token"] == "the towers have no class or register tokens"
    assert any("class or register tokens dropped" in note for note in mapped.notes)


@pytest.mark.parametrize(("tower", "mine", "other"), [("audio", "a", "v"), ("video", "v", "a")])
def test_a_timm_vit_for_one_tower_leaves_the_other_fresh(tower, mine, other):
    state = timm_state()
    how = layout("timm", timm_model=VIT, tower=tower)
    recipe = validate({"name": "x", "model": how.sizes(state).model})
    mapped = how.translate(state, recipe.model)
    own = {name: torch.zeros_like(value) for name, value in AVEncoder(recipe.model).state_dict().items()}
    made = assemble(mapped, state, {name: value.shape for name, value in own.items()}, lambda: own)
    assert torch.equal(made.state[f"blocks_{mine}.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
    assert torch.equal(made.state[f"norm_{mine}.weight"], state["norm.weight"])
    assert not made.state[f"blocks_{other}.3.attn.qkv.weight"].any()
    assert {f"patch_embed_{other}.proj.weight", f"norm_{other}.bias", f"pos_embed_{other}"} <= made.fresh.keys()
    assert ("pos_embed" in mapped.unused) == (tower == "audio")
    assert mapped.unused["head.weight"] == "the encoder has no such head"


def test_layer_scales_are_folded_in_exactly():
    state = {f"blocks.{i}.{leaf}": value for i in (0, 1) for leaf, value in {
        "attn.proj.weight": torch.randn(4, 4), "attn.proj.bias": torch.randn(4), "ls1.gamma": torch.randn(4),
        "mlp.fc2.weight": torch.randn(4, 8), "mlp.fc2.bias": torch.randn(4), "ls2.gamma": torch.randn(4),
    }.items()}  # fmt: skip
    from kdctool.models.timm_vit import _fold

    plain, notes = _fold(state)
    x = torch.randn(3, 4)
    scaled = state["blocks.1.ls1.gamma"] * (x @ state["blocks.1.attn.proj.weight"].T + state["blocks.1.attn.proj.bias"])
    torch.testing.assert_close(x @ plain["blocks.1.attn.proj.weight"].T + plain["blocks.1.attn.proj.bias"], scaled)
    assert not any("gamma" in name for name in plain)
    assert notes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "needs the name"),
        ("vit_nowhere", "has no model 'vit_nowhere'"),
        ("resnet18", "is a ResNet, not a ViT"),
        ("vit_base_patch32_clip_224", "normalises before its blocks"),
    ],
)
def test_timm_models_that_are_no_plain_vit_are_refused(name, said):
    with pytest.raises(UsageFault, match=said):
        layout("timm", timm_model=name)


def test_timm_weights_of_another_model_are_refused():
    with pytest.raises(UsageFault, match=r"norm\.weight is \(192,\), vit_base_patch16_224 has \(768,\)|192"):
        layout("timm", timm_model="vit_base_patch16_224").sizes(timm_state())
    with pytest.raises(UsageFault, match="mean nothing to --as cav-mae"):
        layout("cav-mae", tower="audio")


def test_audio_positions_are_cropped_to_the_first_columns_and_continued_as_sine_cosine():
    table = sincos_2d(32, (8, 64))
    shorter, how = fit_audio(table, (8, 64), (8, 26))
    assert torch.equal(shorter, sincos_2d(32, (8, 26)))
    assert "cropped" in how
    trained = table + 0.01 * torch.randn_like(table)
    longer, how = fit_audio(trained, (8, 64), (8, 80))
    cells = longer.reshape(8, 80, 32)
    assert torch.equal(cells[:, :64], trained.reshape(8, 64, 32))
    assert torch.equal(cells[:, 64:], sincos_2d(32, (8, 80)).reshape(8, 80, 32)[:, 64:])
    assert "continued" in how
    _, how = fit_audio(torch.randn(1, 512, 32), (8, 64), (8, 80))
    assert "interpolated" in how


def test_video_positions_are_interpolated_over_the_picture():
    ramp = torch.arange(4.0).repeat(4)[None, :, None].expand(1, 16, 8)  # the column number
    finer, _ = fit_video(ramp, (4, 4), (8, 8))
    columns = finer.reshape(8, 8, 8)[:, :, 0]
    torch.testing.assert_close(columns, columns[:1].expand(8, 8), atol=1e-5, rtol=0)
    assert (columns[0].diff() > 0).all()
    torch.testing.assert_close(columns[0].mean(), torch.tensor(1.5), atol=1e-5, rtol=0)


def test_fitting_tells_every_table_that_changed_and_leaves_the_rest():
    recipe = tiny()
    state = released(recipe)
    same, notes = fit_positions(state, recipe.model)
    assert notes == []
    assert all(same[name] is value for name, value in state.items())
    fitted, notes = fit_positions(state, tiny(audio_frames=32, image_size=96).model)
    assert [note.split(":")[0] for note in notes] == [
        "pos_embed_a", "pos_embed_v", "decoder_pos_embed_a", "decoder_pos_embed_v"
    ]  # fmt: skip
    assert fitted["pos_embed_a"].shape == (1, 16, 32)
    assert fitted["decoder_pos_embed_v"].shape == (1, 36, 32)
    assert torch.equal(fitted["pos_embed_a"].reshape(8, 2, 32), state["pos_embed_a"].reshape(8, 4, 32)[:, :2])
