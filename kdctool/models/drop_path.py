"""Stochastic depth that belongs to the clip: a function of (seed, step, row of the global batch).

timm's DropPath draws from the global generator of its process, so several ranks or micro batches train another model
than one process does.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.seeds import fold


class DropPath(nn.Module):
    """One of a block's two branches, left out for some clips in training; `draw` says for which."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate
        self.factor: Tensor | None = None
        """(B,): 0 for a clip that goes without the branch, else 1 / (1 - rate), so that the mean stays."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D) -> (B, N, D)."""
        if not self.training:
            return x
        assert self.factor is not None, "drop_path.draw comes before a forward pass in training"
        return x * self.factor.to(x.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def set_drop_path(vit: Any, rate: float) -> None:
    """Stochastic depth of a ViT of timm, rising over the blocks from 0 to `rate`."""
    rates = torch.linspace(0, rate, len(vit.blocks)).tolist()
    for block, own in zip(vit.blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(own) if own else nn.Identity())


def draw(module: nn.Module, batch: Batch, global_batch: int, rng: torch.Generator) -> None:
    """Decide which branches of `module` the clips of this micro batch go without, in training.

    batch: row (B,). Drawn for the whole global batch from the seed of `rng`, which is not advanced: masks are what they
    are without stochastic depth. It stays until the next draw, so that a backward pass may compute the blocks again.
    """
    paths = [part for part in module.modules() if isinstance(part, DropPath)]
    if not paths or not module.training:
        return
    own = torch.Generator(rng.device).manual_seed(fold(rng.initial_seed(), "drop path"))
    draws = torch.rand(global_batch, len(paths), generator=own, device=rng.device)[batch["row"]]  # (B, paths)
    for path, drawn in zip(paths, draws.unbind(dim=1), strict=True):
        path.factor = (drawn >= path.drop_prob) / (1 - path.drop_prob)
