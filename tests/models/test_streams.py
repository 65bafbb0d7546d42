"""What is heard of an encoder is what its own forward pass computes, in timm's models and in ours."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from distilling import frames, rng, vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from kdctool.errors import UsageFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.av_streams import AVStreams
from kdctool.models.streams import Wanted, resolve
from kdctool.models.student import make_encoder, streams_of
from kdctool.models.vit_streams import VitStreams
from kdctool.recipe import Model, validate

SIZES: dict[str, Any] = {
    "img_size": 48,
    "patch_size": 16,
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 3,
    "num_classes": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "CLIP: norm before the blocks, QuickGELU": {"pre_norm": True, "act_layer": "quick_gelu"},
    "DeiT III: positions for patches alone, layer scale": {"no_embed_class": True, "init_values": 0.3},
    "registers": {"reg_tokens": 3},
    "normalised queries and keys": {"qk_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "stochastic depth": {"drop_path_rate": 0.4},
    "open size": {"dynamic_img_size": True},
}
EVERY = Wanted(frozenset({0, 1, 2, 3, 4}), frozenset({1, 2, 3, 4}), final=True)


def random_vit(**more: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SIZES, **more})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def own_attention(model: VisionTransformer, frame: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits q k^T of every block from timm's own unfused forward pass, before scale and softmax; and v v^T."""
    found = []

    class Listening(nn.Module):
        def __init__(self, attn: Any) -> None:
            super().__init__()
            self.attn = attn

        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            batch, tokens, _ = x.shape
            shape = (batch, tokens, 3, self.attn.num_heads, self.attn.head_dim)
            q, k, v = self.attn.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = self.attn.q_norm(q), self.attn.k_norm(k)
            found.append((q @ k.transpose(-2, -1), v @ v.transpose(-2, -1)))
            return self.attn(x, **kwargs)

    kept = [block.attn for block in model.blocks]
    for block in model.blocks:
        block.attn = Listening(block.attn)
    with torch.no_grad():
        model.forward_features(frame)
    for block, attn in zip(model.blocks, kept, strict=True):
        block.attn = attn
    return found


def close(found: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the largest value."""
    found, wanted = found.detach(), wanted.detach()
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_relations_of_a_vit_are_those_of_timms_forward_pass(kind: str) -> None:
    model, frame = random_vit(**KINDS[kind]), frames(2, 48)["frame"]
    with torch.no_grad():
        features = model.forward_features(frame)
        _, blocks = model.forward_intermediates(frame, output_fmt="NLC", return_prefix_tokens=True)
    logits = own_attention(model, frame)
    streams = VitStreams(model, "it")
    streams.listen({"video": EVERY})
    with torch.no_grad():
        heard = streams.run({"frame": frame}, {})["video"]
    assert heard.final is not None
    close(heard.final, features)
    for layer, block in enumerate(blocks, start=1):
        patches = block[0] if isinstance(block, tuple) else block
        close(heard.outputs[layer][:, streams.stream.prefix :], patches)
        q, k, v = heard.qkv[layer]
        close(q @ k.transpose(-2, -1), logits[layer - 1][0])
        close(v @ v.transpose(-2, -1), logits[layer - 1][1])


def test_fused_and_written_out_attention_give_the_same_queries_and_keys() -> None:
    heard = []
    for fused in (True, False):
        model = random_vit()
        for block in model.blocks:
            block.attn.fused_attn = fused
        streams = VitStreams(model, "it")
        streams.listen({"video": EVERY})
        heard.append(streams.run({"frame": frames(2, 48)["frame"]}, {})["video"].qkv)
    for layer in (1, 2, 3, 4):
        for one, other in zip(heard[0][layer], heard[1][layer], strict=True):
            close(one, other)


def test_attention_rebuilt_from_what_was_heard_gives_the_blocks_own_output() -> None:
    model, frame = random_vit(), frames(2, 48)["frame"]
    streams = VitStreams(model, "it")
    streams.listen({"video": EVERY})
    with torch.no_grad():
        heard = streams.run({"frame": frame}, {})["video"]
        block = model.blocks[2]
        attended = F.scaled_dot_product_attention(*heard.qkv[3]).transpose(1, 2).flatten(2)
        x = heard.outputs[2] + block.attn.proj(attended)
        close(x + block.mlp(block.norm2(x)), heard.outputs[3])


def test_kept_tokens_have_their_own_positions_and_no_others() -> None:
    model, frame = random_vit(), frames(2, 48)["frame"]
    streams = VitStreams(model, "it")
    keep = torch.tensor([[0, 4, 8], [1, 2, 7]])
    whole, part = streams.embed(frame), streams.embed(frame, keep)
    assert part.shape == (2, 4, 24)
    assert torch.equal(part[:, 0], whole[:, 0])
    for clip in range(2):
        assert torch.equal(part[clip, 1:], whole[clip, 1 + keep[clip]])


def test_mask_tokens_stand_where_nothing_is_kept_with_the_positions_of_their_places() -> None:
    model, frame = random_vit(), frames(2, 48)["frame"]
    streams, token = VitStreams(model, "it"), torch.full((1, 1, 24), 3.0)
    keep = torch.tensor([[0, 4, 8], [1, 2, 7]])
    whole, filled = streams.embed(frame), streams.embed(frame, keep, token)
    for clip in range(2):
        for place in range(9):
            expected = whole[clip, 1 + place] if place in keep[clip] else 3.0 + model.pos_embed[0, 1 + place]
            assert torch.equal(filled[clip, 1 + place], expected)


def test_the_final_norm_runs_only_where_it_is_wanted_and_blocks_only_as_far_as_needed() -> None:
    model, ran = random_vit(), []
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda module, inputs, output, number=number: ran.append(number))
    streams = VitStreams(model, "it")
    streams.listen({"video": Wanted(frozenset({1}), frozenset({2}))})
    heard = streams.run({"frame": frames(2, 48)["frame"]}, {})["video"]
    assert ran == [1, 2]
    assert heard.final is None
    assert heard.outputs.keys() == {1}
    assert heard.qkv.keys() == {2}


def av(joint_depth: int = 1) -> AVEncoder:
    torch.manual_seed(0)
    sizes = {"audio_frames": 32, "mel_bins": 16, "image_size": 16, "audio_patch": 8, "video_patch": 4}
    encoder = AVEncoder(Model(**sizes, width=16, heads=2, depth=3, joint_depth=joint_depth))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


@pytest.mark.parametrize("joint_depth", [1, 2])
def test_streams_of_the_audio_visual_encoder_are_its_own_passes(joint_depth: int) -> None:
    encoder = av(joint_depth)
    clip = {"fbank": torch.randn(2, 32, 16, generator=rng()), "frame": torch.randn(2, 3, 16, 16, generator=rng(1))}
    keep = {"audio": torch.tensor([[0, 3, 7], [1, 2, 6]]), "video": torch.tensor([[0, 15], [3, 4]])}
    wanted = encoder(clip["fbank"], clip["frame"], keep["audio"][None], keep["video"][None])
    streams = AVStreams(encoder)
    last = 3 + joint_depth
    every = Wanted(frozenset({0, 1, 3, last}), frozenset({2, last}), final=True)
    streams.listen({"audio": every, "video": every, "joint": Wanted(frozenset({last}), frozenset({last}), True)})
    heard = streams.run(clip, keep)
    for name in ("audio", "video", "joint"):
        final, own = heard[name].final, getattr(wanted, name)
        assert final is not None
        assert torch.equal(final, own)
    tower = encoder.blocks_a[1]
    with torch.no_grad():
        x = encoder.blocks_a[0](heard["audio"].outputs[0])
        qkv = tower.attn.qkv(tower.norm1(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        joint = encoder.blocks_u[-1]
        before = heard["video"].outputs[3]
        for block in encoder.blocks_u[:-1]:
            before = block(before, "v")
        of_video = joint.attn.qkv(joint.norm1_v(before)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    assert torch.equal(torch.stack(heard["audio"].qkv[2]), qkv)
    assert torch.equal(torch.stack(heard["video"].qkv[last]), of_video)
    assert heard["joint"].qkv[last].q.shape == (2, 2, 5, 8)


def test_a_modality_that_nobody_asked_for_does_not_run() -> None:
    encoder = av()
    streams = AVStreams(encoder)
    streams.listen({"video": Wanted(frozenset({4}))})
    heard = streams.run({"frame": torch.randn(2, 3, 16, 16)}, {})
    assert heard.keys() == {"video"}
    assert not any(name.startswith(("blocks_a", "patch_embed_a")) for name in streams.reached())


def test_layers_count_from_1_or_from_the_end() -> None:
    stream = VitStreams(random_vit(), "it").stream
    assert [resolve(layer, stream) for layer in (1, 4, -1, -3)] == [1, 4, 4, 2]
    for layer in (5, -5):
        with pytest.raises(ValueError, match=f"layer {layer}: there are 4 blocks"):
            resolve(layer, stream)


@pytest.mark.parametrize(
    ("arch", "cause"),
    [("resnet18", "not a ViT"), ("test_vit2", "no final norm over tokens"), ("mixer_s32_224", "not a")],
)
def test_models_that_cannot_be_followed_are_refused(arch: str, cause: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0)
    with pytest.raises(UsageFault, match=cause) as caught:
        VitStreams(model, "it")
    assert "plain ViT" in caught.value.next_step


def test_a_block_without_a_qkv_layer_is_named() -> None:
    model = random_vit()
    model.blocks[2].attn.qkv = nn.Identity()
    with pytest.raises(UsageFault, match=r"block 3 .* has no attn\.qkv layer"):
        VitStreams(model, "it")


def student(**options: Any) -> Any:
    section = {"teachers": {"c": {"id": "x"}}, "losses": [{"kind": "feature", "teacher": "c"}]}
    recipe = validate(
        {
            "name": "s",
            "model": {"image_size": 112},
            "objective": {"name": "hybrid_distill", "distill": {**section, "student": options}},
        }
    )
    torch.manual_seed(0)
    return make_encoder(recipe)


def test_an_image_student_is_timms_own_model_to_the_name_and_shape() -> None:
    made = student(arch="test_vit")
    other = vit(1)
    other.load_state_dict(made.state_dict(), strict=True)
    frame = frames(2)["frame"]
    with torch.no_grad():
        close(made.eval().forward_features(frame), other.forward_features(frame))
    assert not made.pos_embed.requires_grad
    assert float(made.pos_embed[:, 0].abs().sum()) == 0
    streams_of(made)
    with torch.no_grad():  # Blocks became a list the trainer knows; timm still calls them.
        close(made.forward_features(frame), other.forward_features(frame))


def test_positions_may_be_learned_or_relative() -> None:
    assert student(arch="test_vit", pos="learned").pos_embed.requires_grad
    relative = student(arch="test_vit", pos="relbias", input="full").eval()
    frame = frames(2)["frame"]
    streams = VitStreams(relative, "it")
    streams.listen({"video": Wanted(frozenset({6}), final=True)})
    with torch.no_grad():
        final = streams.run({"frame": frame}, {})["video"].final
        assert final is not None
        close(final, relative.forward_features(frame))
    assert "shared_rel_pos.relative_position_bias_table" in streams.reached()
    assert "pos_embed" not in dict(relative.named_parameters())


def test_an_unknown_student_is_told_with_the_nearest_names() -> None:
    with pytest.raises(UsageFault, match=r"student\.arch = 'test_vitt': timm cannot build it"):
        student(arch="test_vitt")
