"""Teachers see the clip as they were trained to and never learn; weights that do not fit are refused with a fix."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distilling import ARCH, CLIP, SIDE, frames, vit

from kdctool.errors import UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.streams import Wanted
from kdctool.models.teachers import NON_COMMERCIAL, About, Seen, Teacher, fill, from_timm, licence
from kdctool.recipe import Data, Model

LAST = {"video": Wanted(frozenset({6}), final=True)}


def opened(state: dict[str, torch.Tensor] | None, model: str = ARCH, **more: Any) -> Teacher:
    return from_timm(
        "m", model, state, "w.safetensors", "0" * 64, Data(), image_size=more.pop("image_size", SIDE), **more
    )


def test_a_clip_teacher_sees_clip_normalised_frames() -> None:
    data, picture = Data(), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def normalised(mean: Any, std: Any) -> torch.Tensor:
        return (picture - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    teacher = opened(vit(1).state_dict(), mean=tuple(CLIP["mean"]), std=tuple(CLIP["std"]))
    seen = teacher.frames(normalised(data.image_mean, data.image_std))
    torch.testing.assert_close(seen, normalised(CLIP["mean"], CLIP["std"]), atol=2e-6, rtol=1e-5)
    same = opened(vit(1).state_dict(), mean=data.image_mean, std=data.image_std)
    frame = normalised(data.image_mean, data.image_std)
    assert same.frames(frame) is frame


@pytest.mark.parametrize(
    ("model", "mean", "words"),
    [
        ("vit_base_patch16_224.mae", (0.485, 0.456, 0.406), "CC-BY-NC-4.0"),
        ("vit_base_patch16_clip_quickgelu_224.openai", tuple(CLIP["mean"]), "apache-2.0"),
        ("deit_base_patch16_224.fb_in1k", (0.485, 0.456, 0.406), "apache-2.0"),
        ("vit_large_patch16_224.mae", (0.485, 0.456, 0.406), "CC-BY-NC-4.0"),
        ("vit_large_patch14_clip_quickgelu_224.openai", tuple(CLIP["mean"]), "apache-2.0"),
    ],
)
def test_the_papers_teachers_come_with_their_normalisation_their_licence_and_a_grid_of_14_by_14(
    model: str, mean: tuple[float, ...], words: str
) -> None:
    side = 196 if "patch14" in model else 224
    with torch.device("meta"):
        teacher = opened(None, model, image_size=side)
    assert teacher.own.image_mean == mean
    assert words in teacher.about.licence
    assert (NON_COMMERCIAL in teacher.about.licence) == ("mae" in model)
    stream = teacher.streams.streams["video"]
    assert stream.grid == (14, 14)
    assert (stream.layers, stream.width, stream.heads) == ((24, 1024, 16) if "large" in model else (12, 768, 12))
    if "quickgelu" in model:
        assert "QuickGELU" in type(teacher.encoder.blocks[0].mlp.act).__name__
        assert teacher.encoder.norm_pre.weight.shape == (stream.width,)


def test_clip_weights_in_a_model_with_another_activation_are_refused() -> None:
    with pytest.raises(UsageFault, match="trained with QuickGELU") as caught, torch.device("meta"):
        opened(None, "vit_base_patch16_clip_224.openai", image_size=224)
    assert "vit_base_patch16_clip_quickgelu_224.openai" in caught.value.next_step


def test_a_teacher_computes_what_timm_computes_with_the_same_file() -> None:
    model = vit(1)
    teacher = opened(dict(model.state_dict()), mean=Data().image_mean, std=Data().image_std)
    teacher.listen(LAST)
    batch = frames(2)
    final = teacher(batch)["video"].final
    assert final is not None
    with torch.no_grad():
        torch.testing.assert_close(final, model.forward_features(batch["frame"]), rtol=1e-5, atol=1e-5)


def test_a_teacher_neither_learns_nor_drops() -> None:
    teacher = opened(vit(1).state_dict()).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher.listen(LAST)
    frame = frames(1)["frame"].requires_grad_()
    final = teacher({"frame": frame})["video"].final
    assert final is not None
    assert not final.requires_grad


def test_positions_are_fitted_to_the_size_at_which_the_teacher_looks_and_frames_are_resized() -> None:
    teacher = opened(vit(1, side=160).state_dict(), image_size=64)
    assert teacher.streams.streams["video"].grid == (4, 4)
    frame = frames(1)["frame"]
    assert teacher.frames(frame).shape == (1, 3, 64, 64)
    data = Data()
    small = F.interpolate(frame, (64, 64), mode="bicubic", antialias=True, align_corners=False)
    scale = torch.tensor(data.image_std) / torch.tensor(teacher.own.image_std)
    shift = (torch.tensor(data.image_mean) - torch.tensor(teacher.own.image_mean)) / torch.tensor(teacher.own.image_std)
    torch.testing.assert_close(teacher.frames(frame), small * scale.view(3, 1, 1) + shift.view(3, 1, 1))


def test_heads_and_the_decoder_of_a_full_mae_file_are_left_out() -> None:
    state = dict(vit(1).state_dict())
    more = {"head.weight": torch.ones(10, 64), "head.bias": torch.ones(10), "mask_token": torch.ones(1, 1, 32),
            "decoder_embed.weight": torch.ones(32, 64), "decoder_pos_embed": torch.ones(1, 50, 32)}  # fmt: skip
    teacher = opened({**state, **more})
    assert teacher.encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in teacher.encoder.state_dict().items())


def test_weights_in_openais_names_are_translated() -> None:
    model = vit(1, arch="test_vit", pre_norm=True)
    plain, found = model.state_dict(), {}
    names = (("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."),
             ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("norm1", "ln_1"), ("norm2", "ln_2"),
             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"))  # fmt: skip
    for name, value in plain.items():
        theirs = name
        for ours, other in names:
            theirs = theirs.replace(ours, other)
        found[f"visual.{theirs}"] = value
    found["visual.ln_post.weight"] = found.pop("visual.norm.weight")
    found["visual.ln_post.bias"] = found.pop("visual.norm.bias")
    found["visual.positional_embedding"] = found.pop("visual.pos_embed")[0]
    found["visual.class_embedding"] = found.pop("visual.cls_token")[0, 0]
    target = vit(2, arch="test_vit", pre_norm=True)
    fill(target, found, "clip", "openai.pt", "teacher 'c'", "no fix")
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, plain[name], msg=name)


def test_weights_of_another_model_are_refused_with_the_names_that_differ() -> None:
    short = {name: value for name, value in vit(1).state_dict().items() if not name.startswith("blocks.5")}
    with pytest.raises(UsageFault, match=r"does not hold the weights of test_vit .*missing: blocks\.5") as caught:
        opened(short)
    assert "objective.distill.teachers.m.id" in caught.value.next_step
    wide = {name: value for name, value in vit(1, "test_vit3").state_dict().items() if "attn_pool" not in name}
    with pytest.raises(UsageFault, match=r"of another shape: .*test_vit has"):
        opened({name: value for name, value in wide.items() if name in vit(1).state_dict()})
    with pytest.raises(UsageFault, match="does not hold the weights"):
        opened({"something.else": torch.ones(3)})


def test_another_patch_size_is_refused_and_not_resampled() -> None:
    state = dict(vit(1).state_dict())
    state["patch_embed.proj.weight"] = torch.randn(64, 3, 14, 14)
    with pytest.raises(UsageFault, match="patches of 14 pixels, test_vit has 16"):
        opened(state)


def test_weights_that_are_not_finite_are_refused() -> None:
    state = {name: value.clone() for name, value in vit(1).state_dict().items()}
    state["blocks.3.mlp.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(VerificationFault, match=r"blocks\.3\.mlp\.fc1\.weight"):
        opened(state)


def test_an_audio_visual_teacher_hears_with_its_own_mean_and_deviation() -> None:
    encoder = AVEncoder(Model(audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=4, width=16,
                              heads=2, depth=1))  # fmt: skip
    given, own = Seen.of(Data()), Seen(fbank_mean=-4.0, fbank_std=2.0)
    teacher = Teacher(encoder, About("run", "", "", ""), own, given, fbank=True)
    raw = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)) * 5 - 6
    seen = teacher.view({"fbank": (raw - Data().fbank_mean) / Data().fbank_std, "frame": torch.zeros(2, 3, 16, 16)})
    torch.testing.assert_close(seen["fbank"], (raw + 4) / 2, rtol=1e-5, atol=1e-5)


def test_an_image_teacher_needs_no_sound() -> None:
    assert opened(vit(1).state_dict()).view(frames(1)).keys() == {"frame"}


def test_non_commercial_licences_are_said_in_words() -> None:
    assert NON_COMMERCIAL in licence("cc-by-nc-4.0")
    assert licence("apache-2.0") == "apache-2.0"
    assert "not stated" in licence(None)
