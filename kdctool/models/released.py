"""Files of the CAV-MAE family, whose names are ours: they only differ in what they carry beside the model."""

import re
from dataclasses import dataclass
from math import isqrt

from kdctool.errors import UsageFault
from kdctool.models.layouts import Mapped, Plan, Sizes, State, count_blocks, decoder_heads, heads_of, require
from kdctool.recipe import Model

MEL_BINS = 128
"""Of every published model; shapes alone do not tell rows from columns."""

KDC_EXTRAS = re.compile(
    r"((decoder_embed|mask_token)_(audio|video)|latent_projection|kld_mlp|log_noise_\w+|dw_fc\d*|fc"
    r"|pos_embed_probs_[av]|probability_network|get_token_probs)(\..*)?"
)
"""Tensors of the KDC-MAE release that no published loss reaches."""
SYNC_EXTRAS = re.compile(r"(register_tokens|cls_token_[av]|constrative_head_(audio|visual))(\..*)?")
"""Tensors of CAV-MAE Sync that this encoder has no place for (`constrative` is their spelling)."""


@dataclass(frozen=True)
class Released:
    """A state dict by released names, with or without a classification head."""

    name: str
    preset: str
    licence: str
    extras: re.Pattern[str] | None = None
    why_unused: str = ""
    note: str = ""
    classifies: bool = False

    def sizes(self, state: State) -> Sizes:
        need = ["modality_a", "pos_embed_a", "pos_embed_v", "patch_embed_a.proj.weight", "patch_embed_v.proj.weight"]
        require(state, [*need, "blocks_a.0.mlp.fc1.weight", "blocks_u.0.norm1.weight"], f"in the layout {self.name}")
        width = state["modality_a"].shape[-1]
        patch_a = state["patch_embed_a.proj.weight"].shape[-1]
        patch_v = state["patch_embed_v.proj.weight"].shape[-1]
        rows = max(1, MEL_BINS // patch_a)
        model = {
            "width": width,
            **heads_of(width),
            "depth": count_blocks(state, "blocks_a"),
            "joint_depth": count_blocks(state, "blocks_u"),
            "mlp_ratio": state["blocks_a.0.mlp.fc1.weight"].shape[0] / width,
            "audio_patch": patch_a,
            "video_patch": patch_v,
            "mel_bins": MEL_BINS,
            "audio_frames": state["pos_embed_a"].shape[1] // rows * patch_a,
            "image_size": isqrt(state["pos_embed_v"].shape[1]) * patch_v,
        }
        decoder = {}
        if "decoder_embed.weight" in state:
            inner = state["decoder_embed.weight"].shape[0]
            decoder = {"width": inner, **decoder_heads(inner), "depth": count_blocks(state, "decoder_blocks")}
        head = state.get("mlp_head.1.weight")
        return Sizes(model, decoder, 0 if head is None else head.shape[0])

    def translate(self, state: State, model: Model) -> Mapped:
        has_head = any(name.startswith("mlp_head.") for name in state)
        if has_head and not self.classifies:
            raise UsageFault(f"these weights have a classification head, so they are not {self.name}",
                             "--as cav-mae-finetuned")  # fmt: skip
        if self.classifies and not has_head:
            raise UsageFault("these weights have no classification head (mlp_head.*), so they are not finetuned",
                             "--as cav-mae")  # fmt: skip
        unused = {name: self.why_unused for name in state if self.extras and self.extras.fullmatch(name)}
        plan = Plan(state)
        for name in state:
            if name not in unused:
                plan.put(name, name)
        notes = [self.note] if self.note and unused else []
        if not self.classifies and not any(name.startswith("decoder_") for name in plan.state):
            notes.append("the file has no decoder: pre-training will start with a random one")
        return plan.done(unused, {}, notes)


RELEASED = {
    layout.name: layout
    for layout in (
        Released(
            "cav-mae",
            "cav_mae",
            "CAV-MAE's code is BSD-2; its published weights start from ImageNet-MAE, which is CC BY-NC 4.0",
        ),
        Released(
            "kdc-mae",
            "kdc_mae",
            "KDC-MAE's release names a licence file that it does not contain: ask its authors before you pass these on",
            KDC_EXTRAS,
            "the release stores it, no published loss reaches it",
        ),
        Released(
            "cav-mae-sync",
            "cav_mae",
            "see the repository of CAV-MAE Sync; its weights start from CAV-MAE's, which start from ImageNet-MAE's "
            "(CC BY-NC 4.0)",
            SYNC_EXTRAS,
            "this encoder has no registers, class tokens or contrastive blocks",
            "registers and class tokens took part in Sync's attention: without them this is a good start for training, "
            "not the same model, and its published scores do not carry over",
        ),
        Released(
            "cav-mae-finetuned",
            "cav_mae",
            "CAV-MAE's code is BSD-2; its published weights start from ImageNet-MAE, which is CC BY-NC 4.0",
            KDC_EXTRAS,
            "the KDC-MAE release stores it, its classifier does not use it",
            classifies=True,
        ),
    )
}
