"""What distillation trains: the audio-visual encoder of [model], or a plain ViT under timm's names.

The ViT is timm's own class, so its state dict is what timm, MMDetection and MMSegmentation load.
"""

import difflib
from typing import Any

import torch
from torch import nn

from kdctool.errors import UsageFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.av_streams import AVStreams
from kdctool.models.drop_path import set_drop_path
from kdctool.models.layers import sincos_2d
from kdctool.models.streams import Streams
from kdctool.models.vit_streams import PLAIN, VitStreams
from kdctool.recipe import Recipe


def make_encoder(recipe: Recipe) -> nn.Module:
    """The encoder that the recipe trains, random; its weights come from torch's global generator."""
    if not recipe.objective.student_sees_frames_alone:
        return AVEncoder(recipe.model)
    options, size = recipe.objective.distill.student, recipe.model.image_size
    make = _relative if options.pos == "relbias" else _absolute
    vit = make(options.arch, size)
    set_drop_path(vit, options.drop_path)
    if options.pos == "sincos":
        _fix_positions(vit, options.arch)
    return vit


def streams_of(encoder: nn.Module, who: str = "the student") -> Streams:
    """`encoder` as streams that can be listened to."""
    return AVStreams(encoder) if isinstance(encoder, AVEncoder) else VitStreams(encoder, who)


def create(arch: str, key: str, **more: Any) -> Any:
    """timm's model without weights and without a classifier; UsageFault that names the recipe's `key`."""
    import timm

    try:
        return timm.create_model(arch, pretrained=False, num_classes=0, **more)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        base = arch.split(".")[0]
        near = "" if timm.is_model(base) else ", ".join(difflib.get_close_matches(base, timm.list_models("*vit*"), n=3))
        raise UsageFault(
            f"{key} = '{arch}': timm cannot build it: {str(error).splitlines()[0]}",
            f"did you mean {near}?" if near else PLAIN,
        ) from error


def _absolute(arch: str, size: int) -> Any:
    return create(arch, "objective.distill.student.arch", img_size=size)


def _relative(arch: str, size: int) -> Any:
    """A ViT of the same sizes without positions but with one relative bias for all blocks, as FD's students."""
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    with torch.device("meta"):
        like = create(arch, "objective.distill.student.arch", img_size=size)
    stream = VitStreams(like, f"objective.distill.student.arch = '{arch}'").stream
    return VisionTransformerRelPos(
        img_size=size,
        patch_size=like.patch_embed.patch_size[0],
        num_classes=0,
        global_pool="token" if stream.has_class else "avg",
        embed_dim=stream.width,
        depth=stream.layers,
        num_heads=stream.heads,
        mlp_ratio=stream.mlp_ratio,
        init_values=None,
        class_token=stream.has_class,
        rel_pos_type="bias",
        shared_rel_pos=True,
    )


def _fix_positions(vit: Any, arch: str) -> None:
    """A fixed sine-cosine table in place of the learned one, zero for the class token, as MAE has it."""
    table = getattr(vit, "pos_embed", None)
    if table is None:
        raise UsageFault(f"objective.distill.student.arch = '{arch}' has no table of positions", PLAIN)
    if table.shape[-1] % 4:
        raise UsageFault(
            f"objective.distill.student.arch = '{arch}' is {table.shape[-1]} wide, sine-cosine positions need a "
            "multiple of 4",
            "set objective.distill.student.pos = 'learned'",
        )
    with torch.no_grad():
        grid = tuple(vit.patch_embed.grid_size)
        table.zero_()
        table[:, table.shape[1] - grid[0] * grid[1] :] = sincos_2d(table.shape[-1], grid)
    table.requires_grad_(False)
