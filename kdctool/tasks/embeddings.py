"""Pooled embeddings of clips by a frozen encoder: what probes learn on. One vector per clip, whatever its batch."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.batch import Batch
from kdctool.errors import DataFault
from kdctool.models.image_classifier import patch_tokens
from kdctool.tasks import EvalData
from kdctool.tasks.metrics import finite
from kdctool.tasks.scoring import evaluating, own_frames, read_batches

Features = Literal["audio", "video", "joint", "concat"]
"""audio, video: the retrieval path of one modality. concat: both of these. joint: the joint block on both together."""


@dataclass(frozen=True)
class Embedded:
    """Clips in the order in which they were read."""

    parts: list[Tensor]
    """(N, D) each: one, or audio and video apart."""
    target: Tensor
    """(N, classes)."""
    clip: Tensor
    """(N,) places in the EvalData."""

    @property
    def raw(self) -> Tensor:
        """(N, D) as the encoder gives them."""
        return torch.cat(self.parts, dim=1)

    @property
    def unit(self) -> Tensor:
        """(N, D) for cosines: each part of unit length, so none outweighs the other."""
        return torch.cat([F.normalize(part, dim=-1) for part in self.parts], dim=1)

    def only(self, rows: Tensor) -> "Embedded":
        """The clips of a boolean mask (N,)."""
        return Embedded([part[rows.to(part.device)] for part in self.parts], self.target[rows], self.clip[rows])


def embed(model: Any, data: EvalData, features: Features, every_frame: bool) -> Embedded:
    """Mean over tokens of every clip, float32; with `every_frame` also the mean over the clip's frames."""
    parts, target, clip = [], [], []
    with evaluating(model):
        for batch in read_batches(data):
            if "label" not in batch:
                raise DataFault("these shards carry no labels", "give kdctool shard a labels.csv")
            parts.append(pooled(model, batch, features, every_frame))
            target.append(batch["label"].cpu())
            clip.append(batch["clip"].cpu())
    if not clip:
        raise DataFault("no clip can be embedded: the split has none that could be read", "try another --split")
    joined = [torch.cat(part) for part in zip(*parts, strict=True)]
    for part in joined:
        finite(part.cpu().numpy(), "embedding values")
    return Embedded(joined, torch.cat(target), torch.cat(clip))


def pooled(model: Any, batch: Batch, features: Features, every_frame: bool) -> tuple[Tensor, ...]:
    """The parts (B, D) of a batch's embeddings."""

    def audio() -> Tensor:
        return _mean(model.embed_audio(batch["fbank"]))

    def video(frame: Tensor) -> Tensor:
        return _mean(model.embed_video(frame) if hasattr(model, "embed_video") else patch_tokens(model, frame))

    def joint(frame: Tensor) -> Tensor:
        return _mean(model(batch["fbank"], frame, single=False).joint)

    seen = joint if features == "joint" else video
    found = [audio()] if features in ("audio", "concat") else []
    if features != "audio":
        if every_frame:
            own = own_frames(batch)[:, :, None]
            # Frame by frame: all frames of a batch at once are ten times its memory.
            each = [seen(batch["frames"][:, n]) for n in range(own.shape[1])]
            found.append((torch.stack(each, dim=1) * own).sum(1) / own.sum(1))
        else:
            found.append(seen(batch["frame"]))
    return tuple(found)


def _mean(tokens: Tensor) -> Tensor:
    return tokens.float().mean(1)
