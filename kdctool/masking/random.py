"""Random masking: every token has the same chance, tokens fall independently (MAE)."""

import torch
from torch import Tensor

from kdctool.masking import maskings
from kdctool.registry import Section


@maskings.register("random")
class RandomMasking:
    """Uniform noise per token."""

    def __init__(self, options: Section) -> None:
        self.options = options

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) scores in [0, 1)."""
        return torch.rand(clips, grid[0] * grid[1], generator=rng, device=rng.device)
