"""The audio-visual encoder: a tower per modality and a joint block with a set of norms per modality.

Attribute names are those of the released CAV-MAE, so its weights load without renaming.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdctool.models.layers import Block, Modality, PatchEmbed, init_weights, layer_norm, sincos_2d
from kdctool.recipe import Model

PASSES = frozenset({"joint", "audio", "video"})


class Encoded(NamedTuple):
    """What the encoder makes of the visible tokens; views lie on the batch axis, view-major (J * B).

    A pass that was not asked for is None.
    """

    joint: Tensor | None
    """(J * B, Ka + Kv, D), audio tokens first."""
    audio: Tensor | None
    """(J * B, Ka, D), audio alone through the joint block's audio norms."""
    video: Tensor | None
    """(J * B, Kv, D), video alone through the joint block's video norms."""


class AVEncoder(nn.Module):
    """Two towers and a joint encoder that runs on both modalities together and on each alone.

    `model.released_joint_order` repeats a slip of the released pre-training code: with more than one joint block, the
    passes of one modality feed every block the tower's output, so only the last block counts. Retrieval and
    finetuning chain the blocks there too. No difference with one joint block.
    """

    def __init__(self, options: Model) -> None:
        super().__init__()
        self.options = options
        self.released_joint_order = options.released_joint_order
        width, heads, ratio = options.width, options.heads, options.mlp_ratio
        self.patch_embed_a = PatchEmbed(1, width, options.audio_patch)
        self.patch_embed_v = PatchEmbed(3, width, options.video_patch)
        self.modality_a = nn.Parameter(torch.empty(1, 1, width))
        self.modality_v = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed_a = nn.Parameter(sincos_2d(width, options.audio_grid), requires_grad=False)
        self.pos_embed_v = nn.Parameter(sincos_2d(width, options.video_grid), requires_grad=False)
        self.blocks_a = nn.ModuleList(Block(width, heads, ratio) for _ in range(options.depth))
        self.blocks_v = nn.ModuleList(Block(width, heads, ratio) for _ in range(options.depth))
        self.blocks_u = nn.ModuleList(Block(width, heads, ratio) for _ in range(options.joint_depth))
        self.norm_a = layer_norm(width)
        self.norm_v = layer_norm(width)
        self.norm = layer_norm(width)
        init_weights(self)
        nn.init.normal_(self.modality_a, std=0.02)
        nn.init.normal_(self.modality_v, std=0.02)
        self.train_passes(PASSES)

    def tokens(self, fbank: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens before masking, (B, La, D) and (B, Lv, D); audio is frequency-major: index = f * columns + t."""
        return self.audio_tokens(fbank), self.video_tokens(frame)

    def audio_tokens(self, fbank: Tensor) -> Tensor:
        """fbank: (B, T, F) -> (B, La, D)."""
        return self.patch_embed_a(fbank.unsqueeze(1).transpose(2, 3)) + self.pos_embed_a + self.modality_a

    def video_tokens(self, frame: Tensor) -> Tensor:
        """frame: (B, C, H, W) -> (B, Lv, D)."""
        return self.patch_embed_v(frame) + self.pos_embed_v + self.modality_v

    def forward(
        self,
        fbank: Tensor,
        frame: Tensor,
        keep_a: Tensor | None = None,
        keep_v: Tensor | None = None,
        *,
        joint: bool = True,
        single: bool = True,
    ) -> Encoded:
        """Encode all views in one pass.

        fbank: (B, T, F), frame: (B, C, H, W), keep_*: (J, B, K) token indices in the order in which they are fed,
        or None for all tokens of one view. `joint` and `single` say which passes of the joint block to run.
        """
        a, v = self.tokens(fbank, frame)
        a, v = visible(a, keep_a), visible(v, keep_v)  # (J * B, K, D)
        for block in self.blocks_a:
            a = block(a)
        for block in self.blocks_v:
            v = block(v)
        chain = not self.released_joint_order
        return Encoded(
            joint=self.norm(self._joint(torch.cat((a, v), dim=1))) if joint else None,
            audio=self.norm_a(self._joint(a, "a", chain)) if single else None,
            video=self.norm_v(self._joint(v, "v", chain)) if single else None,
        )

    def embed_audio(self, fbank: Tensor) -> Tensor:
        """Retrieval path: all audio tokens, joint block with the audio norms, (B, La, D)."""
        return self.norm_a(self._joint(self.tower_audio(fbank), "a"))

    def embed_video(self, frame: Tensor) -> Tensor:
        """Retrieval path: all video tokens, joint block with the video norms, (B, Lv, D)."""
        return self.norm_v(self._joint(self.tower_video(frame), "v"))

    def embed_audio_as_joint(self, fbank: Tensor) -> Tensor:
        """All audio tokens through the joint norms, as if the video were missing, (B, La, D)."""
        return self.norm(self._joint(self.tower_audio(fbank)))

    def embed_video_as_joint(self, frame: Tensor) -> Tensor:
        """All video tokens through the joint norms, as if the audio were missing, (B, Lv, D)."""
        return self.norm(self._joint(self.tower_video(frame)))

    def tower_audio(self, fbank: Tensor) -> Tensor:
        """All audio tokens after the audio tower, (B, La, D)."""
        a = self.audio_tokens(fbank)
        for block in self.blocks_a:
            a = block(a)
        return a

    def tower_video(self, frame: Tensor) -> Tensor:
        """All video tokens after the video tower, (B, Lv, D)."""
        v = self.video_tokens(frame)
        for block in self.blocks_v:
            v = block(v)
        return v

    def train_passes(self, passes: frozenset[str], *, positions: bool = False) -> None:
        """Make trainable exactly the parameters that get a gradient when only `passes` contribute to the loss.

        DDP waits for ever for a gradient that never comes. `positions` trains the tables of the towers that run.
        """
        for name, parameter in self.named_parameters():
            used = bool(passes & passes_of(name))
            parameter.requires_grad_(used and (positions or not name.startswith("pos_embed")))

    def _joint(self, x: Tensor, modality: Modality | None = None, chain: bool = True) -> Tensor:
        # Always through __call__: FSDP2's hooks do not fire on a method.
        if not chain:
            return self.blocks_u[-1](x, modality)
        for block in self.blocks_u:
            x = block(x, modality)
        return x


def passes_of(name: str) -> frozenset[str]:
    """The passes (joint, audio, video) whose result depends on a parameter of the encoder."""
    parts = name.split(".")
    top = parts[0]
    leaf = parts[2] if top.startswith("blocks_") else top  # blocks_u.0.norm1_a.weight -> norm1_a
    if leaf.startswith("norm"):
        if top in ("blocks_a", "blocks_v"):
            return PASSES & _passes_of_tower(top) if leaf in ("norm1", "norm2") else frozenset()
        return frozenset({"audio" if leaf.endswith("_a") else "video" if leaf.endswith("_v") else "joint"})
    return PASSES if top == "blocks_u" else _passes_of_tower(top)


def _passes_of_tower(top: str) -> frozenset[str]:
    return frozenset({"joint", "audio" if top.endswith("_a") else "video"})


def visible(tokens: Tensor, keep: Tensor | None) -> Tensor:
    """Pick the kept tokens of every view: (B, L, D) and (J, B, K) -> (J * B, K, D), view-major; None keeps all."""
    if keep is None:
        return tokens
    views, batch, kept = keep.shape
    width = tokens.shape[-1]
    index = keep.unsqueeze(-1).expand(views, batch, kept, width)
    return tokens.expand(views, *tokens.shape).gather(2, index).reshape(views * batch, kept, width)
