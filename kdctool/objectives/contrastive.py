"""InfoNCE between the pooled audio and video latents of a view."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["v2a", "both"]


def similarity(audio: Tensor, video: Tensor, temperature: float) -> Tensor:
    """Cosine over temperature: audio and video (..., G, D) -> (..., G, G), rows audio, columns video."""
    return F.normalize(audio, dim=-1) @ F.normalize(video, dim=-1).transpose(-1, -2) / temperature


def info_nce(sim: Tensor, direction: Direction) -> Tensor:
    """Each video must find its audio among all clips (v2a), or also each audio its video (both: the mean).

    sim: (J, G, G), rows audio, columns video -> (J,), a mean over clips.
    """
    v2a = -_diagonal(sim.log_softmax(dim=-2)).mean(dim=-1)
    if direction == "v2a":
        return v2a
    a2v = -_diagonal(sim.log_softmax(dim=-1)).mean(dim=-1)
    return (v2a + a2v) / 2


@torch.no_grad()
def accuracy(sim: Tensor, direction: Direction) -> Tensor:
    """Share of clips whose most similar clip is their own: (J, G, G) -> (J,)."""
    own = torch.arange(sim.shape[-1], device=sim.device)
    v2a = (sim.argmax(dim=-2) == own).float().mean(dim=-1)
    if direction == "v2a":
        return v2a
    return (v2a + (sim.argmax(dim=-1) == own).float().mean(dim=-1)) / 2


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.diagonal(matrix, dim1=-2, dim2=-1)
