"""The networks that try to cheat. Small, supervised, and without the other sense."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avdigits.gate_clips import Drawn
from avdigits.protocol import LARGEST, SIDE

CELLS = 14
"""Cells along each side of the map that sound is asked for."""
BATCH = 64


class WhichDigit(nn.Module):
    """From one frame: does the first of two digits sound, or the second? Exchanging them turns the answer's sign."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.all = _pictures(32), _pictures(16)
        self.decide = nn.Sequential(nn.Linear(2 * (32 + 3) + 16, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, frame: Tensor, boxes: Tensor, places: Tensor) -> Tensor:
        """frame uint8 (B, 3, H, W), boxes (B, 2, 4), places (B, 2, 2) -> (B,) logit of the first digit."""
        picture = frame.float() / 127.5 - 1
        whole = self.all(F.avg_pool2d(picture, 2))
        geometry = torch.cat([places / SIDE, (boxes[..., 2:3] - boxes[..., :1]) / LARGEST], dim=-1)  # (B, 2, 3)
        each = [torch.cat([self.near(crops(picture, places[:, i])), geometry[:, i]], dim=-1) for i in range(2)]
        first, second = (self.decide(torch.cat([a, b, whole], dim=-1))[:, 0] for a, b in (each, each[::-1]))
        return first - second


class WhereFrom(nn.Module):
    """From the sound: a map of where the sounding digit may be."""

    def __init__(self) -> None:
        super().__init__()
        self.listen = nn.Sequential(_pictures(64, channels=1), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, CELLS**2))

    def forward(self, fbank: Tensor) -> Tensor:
        """(B, T, F) -> logits (B, cells)."""
        return self.listen(((fbank + 6) / 4)[:, None])


def fit(sense: str, clips: Drawn, epochs: int, seed: int) -> nn.Module:
    """Train on drawn clips with the answers."""
    torch.manual_seed(seed)
    network = WhichDigit() if sense == "video" else WhereFrom()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * -(-len(clips.places) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(clips.places)).split(BATCH):
            optimizer.zero_grad()
            _loss(sense, network, clips, rows).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def correct(sense: str, network: nn.Module, clips: Drawn) -> float:
    """Right answers to: which of the two digits sounds? A tie counts half."""
    total = 0.0
    for rows in torch.arange(len(clips.places)).split(BATCH):
        if sense == "video":
            score = network(clips.seen[rows], clips.boxes[rows], clips.places[rows])
        else:
            heat = network(clips.seen[rows]).softmax(-1).reshape(-1, 1, CELLS, CELLS)
            full = F.interpolate(heat, size=(SIDE, SIDE), mode="bilinear")[:, 0]
            inside = [_mean_inside(full, clips.boxes[rows, digit]) for digit in range(2)]
            score = inside[0] - inside[1]
        total += float((score > 0).sum()) + 0.5 * float((score == 0).sum())
    return total


def crops(picture: Tensor, centre: Tensor) -> Tensor:
    """The largest box around each centre: (B, 3, H, W), (B, 2) -> (B, 3, 48, 48)."""
    half = LARGEST // 2
    return torch.stack(
        [p[:, y - half : y + half, x - half : x + half] for p, (x, y) in zip(picture, centre.tolist(), strict=True)]
    )


def _loss(sense: str, network: Any, clips: Drawn, rows: Tensor) -> Tensor:
    if sense == "sound":
        cell = (clips.places[rows, 0] * CELLS // SIDE).clamp(max=CELLS - 1)  # (B, 2) x, y of the sounding digit
        return F.cross_entropy(network(clips.seen[rows]), cell[:, 1] * CELLS + cell[:, 0])
    # The answer never depends on the order, as the network turns its sign with it.
    logit = network(clips.seen[rows], clips.boxes[rows], clips.places[rows])
    return F.softplus(-logit).mean()


def _mean_inside(heat: Tensor, boxes: Tensor) -> Tensor:
    return torch.stack([h[y0:y1, x0:x1].mean() for h, (x0, y0, x1, y1) in zip(heat, boxes.tolist(), strict=True)])


def _pictures(width: int, channels: int = 3) -> nn.Sequential:
    """Convolutions to a vector of `width`."""
    layers: list[nn.Module] = []
    for out, stride in ((16, 2), (32, 2), (64, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(4, out), nn.GELU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(64 * 9, width), nn.GELU())
