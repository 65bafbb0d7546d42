"""A plain ViT of timm with a classification head: what timm builds with global_pool = "avg", by our names."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.models.classifier import Head, Present
from kdctool.models.layers import init_weights
from kdctool.models.streams import Wanted
from kdctool.models.student import make_encoder, streams_of
from kdctool.models.vit_streams import BEFORE_BLOCKS, VIDEO
from kdctool.models.weights import State, load_strict
from kdctool.recipe import Recipe

EPS = 1e-6
"""Of timm's norms."""


class ImageClassifier(nn.Module):
    """The mean of the patch tokens, a fresh norm and a linear layer; the encoder's own final norm is left out.

    Has the interface of `AVClassifier` for frames alone. Finetuning trains the positional table too.
    """

    modality: Present = "video"

    def __init__(self, encoder: Any, num_classes: int, modality: Present = "video", head: Head = "linear") -> None:
        super().__init__()
        if modality != "video":
            raise UsageFault(f"an image model cannot classify {modality}: it sees frames alone", "--modality video")
        if head != "linear":
            raise UsageFault(f"finetune.head = '{head}' is for audio-visual encoders", "set finetune.head = 'linear'")
        self.streams = streams_of(encoder, "the image model")
        self.encoder = encoder
        self.num_classes = num_classes
        self.head = head
        self.stream = self.streams.streams[VIDEO]
        self.streams.listen({VIDEO: Wanted(frozenset({self.stream.layers}))})
        width = self.stream.width
        last = {"0": nn.LayerNorm(width, eps=EPS), "1": nn.Linear(width, num_classes)}
        self.mlp_head = nn.Sequential(OrderedDict[str, nn.Module](last))
        for part in last.values():
            init_weights(part)
        self.train_encoder(True)

    def train_encoder(self, trainable: bool) -> None:
        """Train all that reaches the logits, or freeze the encoder for a probe."""
        self.encoder.requires_grad_(trainable)
        self.encoder.norm.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """batch: frame (B, C, H, W) -> logits (B, classes)."""
        tokens = self.streams.run(batch, {})[VIDEO].outputs[self.stream.layers]
        logits: Tensor = self.mlp_head(tokens[:, self.stream.prefix :].mean(dim=1))
        return logits

    def lr_scales(self, layer_decay: float, head_scale: float) -> dict[str, float]:
        """Prefix of parameter names -> factor on the learning rate, as timm's layer decay counts layers.

        The head has `head_scale`, the last block layer_decay, each block below it layer_decay more; embeddings and
        positions are the bottom.
        """
        depth = self.stream.layers
        layers = {f"blocks.{i}.": i + 1 for i in range(depth)} | {name: 0 for name in BEFORE_BLOCKS}
        scales = {f"encoder.{name}": layer_decay ** (depth + 1 - layer) for name, layer in layers.items()}
        return {"mlp_head.": head_scale, **scales}


_IN_TIMM = {"0.": "fc_norm.", "1.": "head."}
"""Norm and linear layer of the head -> their names in a timm model with global_pool = "avg"."""


def to_timm(encoder: State, head: State) -> State:
    """One state dict as timm's class names it. With a head, timm has no final norm over tokens: it is left out."""
    if not head:
        return dict(encoder)
    kept = {name: value for name, value in encoder.items() if not name.startswith("norm.")}
    return kept | {_IN_TIMM[name[:2]] + name[2:]: value for name, value in head.items()}


def of_timm(state: State) -> tuple[State, State]:
    """(encoder, head) of a state dict of timm's: `to_timm` backwards; beside a head the encoder lacks its norm."""
    ours = {theirs: own for own, theirs in _IN_TIMM.items()}
    head = {
        ours[prefix] + name.removeprefix(prefix): value
        for prefix in ours
        for name, value in state.items()
        if name.startswith(prefix)
    }
    return {name: value for name, value in state.items() if not name.startswith(tuple(ours))}, head


def patch_tokens(vit: Any, frame: Tensor) -> Tensor:
    """Patch tokens after the final norm: (B, C, H, W) -> (B, L, D)."""
    tokens: Tensor = vit.forward_features(frame)
    return tokens[:, int(vit.num_prefix_tokens) :]


def image_model(recipe: Recipe, num_classes: int, encoder: State, head: State) -> tuple[Any, ImageClassifier | None]:
    """The recipe's ViT filled with `encoder`, and its classifier where `head` holds one; both in eval mode.

    What timm's tools and `diagnose` ask of the ViT, mean and deviation of its input, is the recipe's.
    """
    with torch.random.fork_rng():  # Not on the meta device: timm has buffers that no state dict fills.
        vit: Any = make_encoder(recipe)
        options = recipe.finetune
        classifier = ImageClassifier(vit, num_classes, options.modality, options.head) if head else None
    seen = {"mean": recipe.data.image_mean, "std": recipe.data.image_std}
    vit.pretrained_cfg = {**(getattr(vit, "pretrained_cfg", None) or {}), **seen}
    load_strict(vit, encoder, "encoder")
    if classifier is not None:
        load_strict(classifier.mlp_head, head, "head")
        classifier.eval()
    return vit.eval(), classifier
