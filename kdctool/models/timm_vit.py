"""A vision transformer of timm for a tower, or for both and the joint block."""

import re
from typing import Any

import torch
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.models.imagenet_mae import (
    BLOCK,
    fresh_audio_and_norms,
    put_blocks,
    put_norms,
    put_patches,
    vit_sizes,
)
from kdctool.models.layouts import Mapped, Plan, Sizes, State, count_blocks, require
from kdctool.recipe import Model

TOWERS = {"audio": ("a",), "video": ("v",), "both": ("a", "v")}
_HEAD = re.compile(r"(head|fc_norm|head_drop|attn_pool)\..*")
_LAYER_SCALE = {"attn.proj": "ls1", "mlp.fc2": "ls2"}


class TimmVit:
    """A state dict of `timm.create_model(name)`, from a local file; the name says what shapes do not."""

    preset = "kdc_mae"
    licence = "timm's code is Apache-2.0; the terms of the weights stand in their model card on the hub"

    def __init__(self, name: str, tower: str = "both") -> None:
        if tower not in TOWERS:
            raise UsageFault(f"--tower {tower} is not known", "audio, video or both")
        self.tower, self.towers = tower, TOWERS[tower]
        self.name = name
        self.model = _skeleton(name)
        self.prefix_tokens = int(self.model.num_prefix_tokens)

    def sizes(self, state: State) -> Sizes:
        require(state, ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"], f"timm's {self.name}")
        own = {name: value.shape for name, value in self.model.state_dict().items() if not _HEAD.fullmatch(name)}
        given = {name: value.shape for name, value in state.items() if not _HEAD.fullmatch(name)}
        wrong = [f"{name} missing" for name in own if name not in given]
        wrong += [f"{name} unknown" for name in given if name not in own]
        wrong += [
            f"{name} is {tuple(given[name])}, {self.name} has {tuple(own[name])}"
            for name in own
            if name in given and name != "pos_embed" and given[name] != own[name]
        ]
        if wrong:
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise UsageFault(
                f"these weights are not timm's {self.name}: {'; '.join(wrong[:4])}{more}", "name the model they are of"
            )
        found = vit_sizes(state, self._before_positions)
        return Sizes({**found, "heads": self.model.blocks[0].attn.num_heads}, heads_are_sure=True)

    def translate(self, state: State, model: Model) -> Mapped:
        plain, notes = _fold(state)
        plan = Plan(plain)
        self._refuse_foreign(plain)
        put_blocks(plan, model, self.towers)
        put_norms(plan, (*(f"norm_{tower}" for tower in self.towers), "norm"), self._final_norm(plain))
        if "v" in self.towers and plain["patch_embed.proj.weight"].shape[1] != 3:
            raise UsageFault("these weights see no colours, so they are no video tower", "--tower audio")
        put_patches(plan, self.towers)
        unused = {name: "the encoder has no such head" for name in state if _HEAD.fullmatch(name)}
        for name in self._norm_names(plain):
            unused.pop(name, None)
        unused |= {
            name: "the towers have no class or register tokens"
            for name in ("cls_token", "reg_token", "dist_token")
            if name in state
        }
        if "v" in self.towers:
            plan.put("pos_embed", "pos_embed_v", value=plain["pos_embed"][:, self._before_positions :])
        else:
            unused["pos_embed"] = "positions of a picture mean nothing to sound"
        if self.prefix_tokens:
            notes.append(f"{self.prefix_tokens} class or register tokens dropped: outputs are close, not equal")
        notes.append("norms use an epsilon of 1e-5, timm's 1e-6; audio positions are a fresh sine-cosine table")
        fresh = fresh_audio_and_norms("pos_embed_a")
        if self.tower != "both":
            other = "v" if self.tower == "audio" else "a"
            fresh |= {
                rf"(patch_embed|blocks|norm)_{other}\..*": f"random: these weights are for the {self.tower} tower",
                rf"pos_embed_{other}": "the sine-cosine table",
            }
            notes.append("the other tower is random; the joint block and its norms come from the last block")
        # Scales and absent biases were folded into other tensors; their names are used all the same.
        folded = {name: (name.replace(".ls1.gamma", ".attn.proj").replace(".ls2.gamma", ".mlp.fc2"),)
                  for name in state if name.endswith(".gamma")}  # fmt: skip
        plan.used = {name: targets for name, targets in plan.used.items() if name in state} | folded
        return plan.done(unused, fresh, notes)

    @property
    def _before_positions(self) -> int:
        """Rows of the positional table that belong to no patch."""
        return 0 if self.model.no_embed_class else self.prefix_tokens

    def _final_norm(self, state: State) -> str:
        name = "norm" if "norm.weight" in state else "fc_norm"
        require(state, [f"{name}.weight", f"{name}.bias"], f"timm's {self.name} with a final norm")
        return name

    def _norm_names(self, state: State) -> tuple[str, str]:
        name = self._final_norm(state)
        return f"{name}.weight", f"{name}.bias"

    def _refuse_foreign(self, state: State) -> None:
        known = {f"blocks.{i}.{leaf}" for i in range(count_blocks(state, "blocks")) for leaf in BLOCK}
        known |= {"cls_token", "reg_token", "dist_token", "pos_embed", "norm.weight", "norm.bias"}
        known |= {"patch_embed.proj.weight", "patch_embed.proj.bias"}
        foreign = [name for name in state if name not in known and not _HEAD.fullmatch(name)]
        if foreign:
            raise UsageFault(
                f"timm's {self.name} computes what this encoder cannot: {', '.join(foreign[:4])}"
                + (f" and {len(foreign) - 4} more" if len(foreign) > 4 else ""),
                "take a plain ViT, for example vit_base_patch16_224",
            )


def _skeleton(name: str) -> Any:
    """The model without memory or weights."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not name:
        raise UsageFault("--as timm needs the name of the model", "for example --model vit_base_patch16_224")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError, TypeError) as error:
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3]) or "vit_base_patch16_224"
        raise UsageFault(
            f"timm has no model '{name}' that can be built here: {error}", f"for example {near}"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise UsageFault(f"timm's {name} is a {type(model).__name__}, not a ViT", "take a plain ViT")
    if getattr(model, "norm_pre", None) is not None and not isinstance(model.norm_pre, torch.nn.Identity):
        raise UsageFault(f"timm's {name} normalises before its blocks, which this encoder does not", "take a plain ViT")
    activation = type(model.blocks[0].mlp.act).__name__  # type: ignore[union-attr]
    if activation != "GELU":
        raise UsageFault(f"timm's {name} uses {activation}, this encoder GELU", "take a plain ViT")
    return model


def _fold(state: State) -> tuple[State, list[str]]:
    """Layer scales multiplied into the layers before them and absent biases as zeros: exact."""
    plain: State = {name: value for name, value in state.items() if not name.endswith((".ls1.gamma", ".ls2.gamma"))}
    notes = []
    for i in range(count_blocks(state, "blocks")):
        for layer, scale in _LAYER_SCALE.items():
            gamma: Tensor | None = state.get(f"blocks.{i}.{scale}.gamma")
            if gamma is not None:
                weight, bias = f"blocks.{i}.{layer}.weight", f"blocks.{i}.{layer}.bias"
                plain[weight] = state[weight] * gamma[:, None]
                plain[bias] = state[bias] * gamma
        qkv = state.get(f"blocks.{i}.attn.qkv.weight")
        if qkv is not None and f"blocks.{i}.attn.qkv.bias" not in state:
            plain[f"blocks.{i}.attn.qkv.bias"] = torch.zeros(qkv.shape[0], dtype=qkv.dtype)
    if len(plain) != len(state) or plain.keys() != state.keys():
        notes.append("layer scales are multiplied into the layers they scale, absent biases are zeros: exact")
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and "patch_embed.proj.bias" not in state:
        plain["patch_embed.proj.bias"] = torch.zeros(kernel.shape[0], dtype=kernel.dtype)
    return plain, notes
