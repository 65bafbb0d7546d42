"""One vision transformer for both towers and the joint block: CAV-MAE's initialisation from the ImageNet MAE."""

from math import isqrt

from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.models.layouts import Mapped, Plan, Sizes, State, count_blocks, decoder_heads, heads_of, require
from kdctool.recipe import Model

BLOCK = tuple(
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)
"""Tensors of a plain transformer block."""
MEL_BINS, AUDIO_FRAMES = 128, 1024
DEFAULT_NORMS = "starts at 1 and 0, as in CAV-MAE"
FRESH_MODALITY = "random: an image model has no modalities"


class ImageNetMae:
    """`mae_pretrain_vit_*.pth` and `mae_pretrain_vit_*_full.pth`; only the latter has the decoder."""

    preset = "kdc_mae"
    licence = "the ImageNet-MAE weights are CC BY-NC 4.0: no commercial use, of what is trained from them neither"

    def sizes(self, state: State) -> Sizes:
        require(state, ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "norm.weight"],
                "an ImageNet MAE")  # fmt: skip
        decoder = {}
        if "decoder_embed.weight" in state:
            inner = state["decoder_embed.weight"].shape[0]
            decoder = {"width": inner, **decoder_heads(inner), "depth": count_blocks(state, "decoder_blocks")}
        return Sizes(vit_sizes(state, prefix_tokens=1), decoder)

    def translate(self, state: State, model: Model) -> Mapped:
        plan = Plan(state)
        put_blocks(plan, model, ("a", "v"))
        put_norms(plan, ("norm_a", "norm_v", "norm"), "norm")
        put_patches(plan, ("a", "v"))
        plan.put("pos_embed", "pos_embed_v", value=state["pos_embed"][:, 1:])
        unused = {name: "the towers have no class token" for name in ("cls_token",) if name in state}
        fresh = fresh_audio_and_norms("pos_embed_a")
        if "decoder_embed.weight" in state:
            _put_decoder(plan, model)
            fresh |= {
                r"decoder_pos_embed_a": "the sine-cosine table of the audio grid",
                r"decoder_modality_[av]": FRESH_MODALITY,
                r"decoder_blocks\.\d+\.norm[12]_[av]\..*": DEFAULT_NORMS,
            }
            return plan.done(unused, fresh)
        return plan.done(unused, fresh, ["the file has no decoder: pre-training will start with a random one"])


def vit_sizes(state: State, prefix_tokens: int) -> dict[str, int | float]:
    """Keys of [model] that a vision transformer with `prefix_tokens` rows before its positions decides."""
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    blocks = count_blocks(state, "blocks")
    if blocks < 2:
        raise UsageFault("a transformer with one block is no tower and joint block", "take one with two or more")
    return {
        "width": width,
        **heads_of(width),
        "depth": blocks - 1,
        "joint_depth": 1,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "audio_patch": patch,
        "video_patch": patch,
        "mel_bins": MEL_BINS,
        "audio_frames": AUDIO_FRAMES,
        "image_size": isqrt(state["pos_embed"].shape[1] - prefix_tokens) * patch,
    }


def put_blocks(plan: Plan, model: Model, towers: tuple[str, ...], joint: bool = True) -> None:
    """Blocks 0, 1, ... to the towers, the ones after them to the joint block with all its norms."""
    blocks = count_blocks(plan.source, "blocks")
    if blocks != model.depth + model.joint_depth:
        raise UsageFault(
            f"model.depth = {model.depth} and model.joint_depth = {model.joint_depth} need "
            f"{model.depth + model.joint_depth} blocks, the file has {blocks}",
            f"set model.depth = {blocks - model.joint_depth}",
        )
    for i in range(model.depth):
        for leaf in BLOCK:
            plan.put(f"blocks.{i}.{leaf}", *(f"blocks_{tower}.{i}.{leaf}" for tower in towers))
    for j in range(model.joint_depth if joint else 0):
        for leaf in BLOCK:
            norm, _, kind = leaf.partition(".")
            copies = (norm, f"{norm}_a", f"{norm}_v") if norm.startswith("norm") else (norm,)
            plan.put(f"blocks.{model.depth + j}.{leaf}", *(f"blocks_u.{j}.{copy}.{kind}" for copy in copies))


def put_norms(plan: Plan, targets: tuple[str, ...], source: str) -> None:
    """The final norm to each of `targets`."""
    for kind in ("weight", "bias"):
        plan.put(f"{source}.{kind}", *(f"{target}.{kind}" for target in targets))


def put_patches(plan: Plan, towers: tuple[str, ...]) -> None:
    """The patch embedding; for sound the kernels of the colours are added up."""
    kernel = plan.source["patch_embed.proj.weight"]
    if "v" in towers:
        plan.put("patch_embed.proj.weight", "patch_embed_v.proj.weight")
    if "a" in towers:
        plan.put("patch_embed.proj.weight", "patch_embed_a.proj.weight", value=kernel.sum(dim=1, keepdim=True))
    plan.put("patch_embed.proj.bias", *(f"patch_embed_{tower}.proj.bias" for tower in towers))


def fresh_audio_and_norms(positions: str) -> dict[str, str]:
    """What no image model fills of the towers."""
    return {
        positions: "the sine-cosine table of the audio grid",
        r"modality_[av]": FRESH_MODALITY,
        r"blocks_[av]\.\d+\.norm[12]_[av]\..*": DEFAULT_NORMS,
    }


def _put_decoder(plan: Plan, model: Model) -> None:
    state = plan.source
    for name in state:
        if name.startswith(("decoder_embed.", "decoder_blocks.", "decoder_norm.")) or name == "mask_token":
            plan.put(name, name)
    if "decoder_pos_embed" in state:
        plan.put("decoder_pos_embed", "decoder_pos_embed_v", value=state["decoder_pos_embed"][:, 1:])
    for kind in ("weight", "bias"):
        if (name := f"decoder_pred.{kind}") in state:
            rows: Tensor = state[name][: model.audio_patch**2]
            plan.put(name, f"decoder_pred_v.{kind}")
            plan.put(name, f"decoder_pred_a.{kind}", value=rows)
