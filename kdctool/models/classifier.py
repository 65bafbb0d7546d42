"""The encoder with a classification head, as finetuning trains it and export ships it."""

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.models.av_encoder import PASSES, AVEncoder
from kdctool.models.layers import Linear, Mlp, init_weights, layer_norm

Present = Literal["audio", "video", "both"]
Head = Literal["linear", "attentive"]


class AttentivePool(nn.Module):
    """A learned query that looks at all tokens: one cross-attention block with its MLP (V-JEPA's attentive probe)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm1 = layer_norm(width)
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, 4 * width)
        init_weights(self)
        nn.init.normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, L, D) -> (B, D)."""
        batch, length, width = tokens.shape
        split = self.heads, width // self.heads
        query = self.query.expand(batch, 1, width)
        q = self.q(query).reshape(batch, 1, *split).transpose(1, 2)  # (B, heads, 1, D / heads)
        kv = self.kv(self.norm1(tokens)).reshape(batch, length, 2, *split)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, D / heads) each
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, 1, width)
        x = query + self.proj(seen)
        return (x + self.mlp(self.norm2(x))).squeeze(1)


class AVClassifier(nn.Module):
    """The encoder's tokens pooled, a norm and a linear layer.

    `both` reads the joint pass; `audio` and `video` read their own pass and never run the other tower. As in the
    reference, finetuning trains the positional tables too. What the chosen pass does not reach is frozen. A `linear`
    head takes the mean of the tokens, an `attentive` one what a learned query finds in them; norm and linear layer
    are mlp_head.0 and mlp_head.1 of both, as in released weights.
    """

    def __init__(self, encoder: AVEncoder, num_classes: int, modality: Present, head: Head = "linear") -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.modality = modality
        self.head = head
        width, heads = encoder.options.width, encoder.options.heads
        last = {"0": layer_norm(width), "1": nn.Linear(width, num_classes)}
        pool = {"pool": AttentivePool(width, heads)} if head == "attentive" else {}
        self.mlp_head = nn.Sequential(OrderedDict[str, nn.Module](pool | last))
        for part in last.values():
            init_weights(part)
        self.train_encoder(True)

    def train_encoder(self, trainable: bool) -> None:
        """Train what the classifier's pass reaches, or freeze the encoder for a probe."""
        used = {"audio": {"audio"}, "video": {"video"}, "both": {"joint"}}[self.modality]
        self.encoder.train_passes(PASSES & used if trainable else frozenset(), positions=True)

    def forward(self, batch: Batch) -> Tensor:
        """batch: fbank (B, T, F) and / or frame (B, C, H, W), as the modality needs -> logits (B, classes)."""
        if self.modality == "audio":
            return self._classify(self._pool(self.encoder.embed_audio(batch["fbank"])))
        if self.modality == "video":
            return self._classify(self._pool(self.encoder.embed_video(batch["frame"])))
        joint = self.encoder(batch["fbank"], batch["frame"], single=False).joint
        assert joint is not None
        return self._classify(self._pool(joint))

    def with_missing(self, batch: Batch, present: Literal["audio", "video"]) -> Tensor:
        """Logits (B, classes) of a model finetuned with both modalities when only one is there.

        The mean of two embeddings of it, one through the joint norms and one through its own.
        """
        if present == "audio":
            own = self.encoder.embed_audio(batch["fbank"])
            joint = self.encoder.embed_audio_as_joint(batch["fbank"])
        else:
            own = self.encoder.embed_video(batch["frame"])
            joint = self.encoder.embed_video_as_joint(batch["frame"])
        return self._classify((self._pool(own) + self._pool(joint)) / 2)

    def lr_scales(self, layer_decay: float, head_scale: float) -> dict[str, float]:
        """Prefix of parameter names -> factor on the learning rate, as timm's layer decay counts layers.

        The head has `head_scale`, the top joint block and the final norms layer_decay, each layer below it
        layer_decay more: the towers' blocks of one depth are alike, embeddings and positions are the bottom.
        """
        depth, joint = len(self.encoder.blocks_a), len(self.encoder.blocks_u)
        layers = {f"blocks_{tower}.{i}.": i + 1 for tower in "av" for i in range(depth)}
        layers |= {f"blocks_u.{i}.": depth + i + 1 for i in range(joint)}
        layers |= {f"{name}.": depth + joint for name in ("norm", "norm_a", "norm_v")}
        layers |= {name: 0 for name in ("patch_embed_", "pos_embed_", "modality_")}
        scales = {f"encoder.{name}": layer_decay ** (depth + joint + 1 - layer) for name, layer in layers.items()}
        return {"mlp_head.": head_scale, **scales}

    def _pool(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, D)."""
        return self.mlp_head.get_submodule("pool")(tokens) if self.head == "attentive" else tokens.mean(dim=1)

    def _classify(self, pooled: Tensor) -> Tensor:
        """(B, D) -> logits (B, classes)."""
        return self.mlp_head.get_submodule("1")(self.mlp_head.get_submodule("0")(pooled))
