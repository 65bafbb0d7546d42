"""Find the video of a sound and the sound of a video, among all clips of the split.

Protocol `retrieval/frame-mid@1`: pre-trained weights, one frame per clip (N // 2), nothing masked, the joint
block with each modality's own norms, mean over tokens, cosine; the clip's own partner is the only right answer.
"""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.errors import DataFault
from kdctool.registry import Section
from kdctool.tasks import EvalData, Metric, Result, tasks
from kdctool.tasks.intervals import bootstrap, weighted_mean, weighted_median
from kdctool.tasks.metrics import Floats, Places, finite, places, ranks, recall_at
from kdctool.tasks.scoring import clusters, evaluating, read_batches

__all__ = ["Retrieval", "cosine_places", "ranks", "recall_at", "unit_embedding"]

KS = (1, 5, 10)
_ROWS = 512
_TOLERANCE = 1e-12
"""Cosines this close are equal: the order in which a matrix product adds up must not decide between them."""


def unit_embedding(tokens: Tensor) -> Tensor:
    """(B, L, D) tokens -> (B, D): mean over tokens, L2-normalised, float32."""
    return F.normalize(tokens.float().mean(1), dim=-1)


def cosine_places(queries: Floats, gallery: Floats) -> Places:
    """Places of gallery item i for query i; both (N, D), unit norm. Works in blocks of rows."""
    blocks = []
    for first in range(0, len(queries), _ROWS):
        similarity = queries[first : first + _ROWS] @ gallery.T
        blocks.append(places(similarity, np.arange(first, first + len(similarity)), _TOLERANCE))
    return Places(np.concatenate([b.greater for b in blocks]), np.concatenate([b.equal for b in blocks]))


@tasks.register("retrieval")
class Retrieval:
    """Recall at 1, 5 and 10, median and mean rank, in both directions (a2v: a sound asks for its video)."""

    protocol = "retrieval/frame-mid@1"
    needs: tuple[str, ...] = ("audio", "video")
    wants: Literal["encoder", "classifier", "objective"] = "encoder"
    frames: Literal["mid", "all"] = "mid"

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or Section()

    def run(self, model: Any, data: EvalData) -> Result:
        """`model` offers embed_audio(fbank) and embed_video(frame), each giving (B, L, D) tokens."""
        audio, video, clip = [], [], []
        with evaluating(model):
            for batch in read_batches(data):
                audio.append(unit_embedding(model.embed_audio(batch["fbank"])).cpu())
                video.append(unit_embedding(model.embed_video(batch["frame"])).cpu())
                clip.append(batch["clip"].cpu())
        if not clip:
            raise DataFault(
                "no clip has both sound and picture, so there is nothing to retrieve", "try another --split"
            )
        embedded_a = finite(torch.cat(audio).numpy(), "audio embedding values")
        embedded_v = finite(torch.cat(video).numpy(), "video embedding values")
        sources = clusters(data, torch.cat(clip))
        metrics = {}
        for way, (queries, gallery) in {"a2v": (embedded_a, embedded_v), "v2a": (embedded_v, embedded_a)}.items():
            metrics.update(_directed(way, cosine_places(queries, gallery), sources))
        return Result("retrieval", self.protocol, metrics, len(sources), data.n_total, dict(data.missing))


def _directed(way: str, found: Places, sources: list[str]) -> dict[str, Metric]:
    num = len(sources)
    middle = found.rank("mid")
    means = np.stack([*(found.within(k) for k in KS), middle], axis=1)  # (N, recalls and mean rank)
    # Queries are resampled, the gallery stays: recall depends on its size.
    low, high = bootstrap(means, sources, weighted_mean)
    median_low, median_high = bootstrap(middle, sources, weighted_median)
    metrics = {
        f"{way}_r{k}": Metric(float(means[:, i].mean()), float(low[i]), float(high[i]), min(k, num) / num)
        for i, k in enumerate(KS)
    }
    guess = (num + 1) / 2
    metrics[f"{way}_median_rank"] = Metric(float(np.median(middle)), float(median_low), float(median_high), guess)
    metrics[f"{way}_mean_rank"] = Metric(float(middle.mean()), float(low[-1]), float(high[-1]), guess)
    return metrics
