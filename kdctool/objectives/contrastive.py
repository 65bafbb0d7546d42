"""InfoNCE between the pooled audio and video latents of a view."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kdctool.recipe import Contrastive

Direction = Literal["v2a", "a2v", "both"]


def similarity(audio: Tensor, video: Tensor, temperature: float | Tensor) -> Tensor:
    """Cosine over temperature: audio and video (..., G, D) -> (..., G, G), rows audio, columns video."""
    return F.normalize(audio, dim=-1) @ F.normalize(video, dim=-1).transpose(-1, -2) / temperature


def info_nce(sim: Tensor, direction: Direction) -> Tensor:
    """Each video must find its audio among all clips (v2a), each audio its video (a2v), or the mean of both.

    sim: (J, G, G), rows audio, columns video -> (J,), a mean over clips.
    """
    # Softmax over the candidates: audios (rows) for a video, videos (columns) for an audio.
    found = [-_diagonal(sim.log_softmax(dim=dim)).mean(dim=-1) for dim in _candidates(direction)]
    return torch.stack(found).mean(dim=0)


@torch.no_grad()
def accuracy(sim: Tensor, direction: Direction) -> Tensor:
    """Share of clips whose most similar clip is their own: (J, G, G) -> (J,)."""
    own = torch.arange(sim.shape[-1], device=sim.device)
    hits = [(sim.argmax(dim=dim) == own).float().mean(dim=-1) for dim in _candidates(direction)]
    return torch.stack(hits).mean(dim=0)


def _candidates(direction: Direction) -> tuple[int, ...]:
    return {"v2a": (-2,), "a2v": (-1,), "both": (-2, -1)}[direction]


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.diagonal(matrix, dim1=-2, dim2=-1)


class ContrastiveTerm(nn.Module):
    """The term and what it learns itself: a temperature, where the recipe says so."""

    def __init__(self, options: Contrastive) -> None:
        super().__init__()
        self.options = options
        own = "own_" if options.own_ratio else ""
        self.needs = (f"{own}audio", f"{own}video")
        """Pooled latents (J, G, D) that `forward` reads."""
        self.couples = options.negatives == "global"
        # One element and not a scalar, which FSDP2 cannot shard.
        start = torch.tensor([math.log(options.temperature)])
        self.log_temperature = nn.Parameter(start) if options.learn_temperature else None

    def forward(self, pooled: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raw term (summed over views) and meters."""
        sim = similarity(pooled[self.needs[0]], pooled[self.needs[1]], self.temperature())  # (J, G, G)
        hits = accuracy(sim, self.options.direction).mean()
        return {"contrastive": info_nce(sim, self.options.direction).sum()}, {"contrastive_accuracy": hits}

    def temperature(self) -> float | Tensor:
        """The fixed one, or the learned one (1,) with gradient."""
        value = self.log_temperature
        if value is None:
            return self.options.temperature
        # Outside a forward pass, where the trainer calls `coupled`, FSDP2 holds only a shard.
        return (value.full_tensor() if isinstance(value, DTensor) else value).exp()

    def state(self) -> dict[str, Tensor]:
        """A learned temperature, as a meter."""
        return {} if self.log_temperature is None else {"temperature": self.log_temperature.detach().exp()[0]}

    @torch.no_grad()
    def hold(self) -> None:
        """Put a learned temperature back into its range; clamping it in the loss would stop its gradient instead."""
        if self.log_temperature is not None:
            low, high = self.options.temperature_range
            self.log_temperature.clamp_(math.log(low), math.log(high))
