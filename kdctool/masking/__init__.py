"""Which tokens are seen: every masking is a way to score tokens, and the lowest scores are kept.

A masking is one file with one registered class:

    @maskings.register("mine", MyOptions)
    class Mine:
        def __init__(self, options: MyOptions) -> None: ...
        def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor: ...

`noise` returns (clips, L) scores on the generator's device, drawn from that generator alone.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdctool.registry import Registry

maskings = Registry("masking", __name__)


@dataclass(frozen=True)
class Views:
    """Which tokens each view of each clip sees."""

    ids_keep: Tensor
    """(J, B, K) int64, visible tokens in the order in which they are fed to the encoder."""
    ids_restore: Tensor
    """(J, B, L) int64: gathering [visible tokens, mask tokens] with it gives the natural order of that view."""
    mask: Tensor
    """(J, B, L) float, 1 = removed, natural order."""

    def to(self, device: torch.device) -> "Views":
        """The same views on another device."""
        return Views(self.ids_keep.to(device), self.ids_restore.to(device), self.mask.to(device))


class Masking(Protocol):
    """Scores tokens; the lowest are kept."""

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) float scores on rng's device for a grid of (rows, columns) tokens, row-major."""
        ...


def build(name: str, options: dict[str, Any]) -> Masking:
    """The masking called `name`, its options validated."""
    return maskings.get(name).cls(maskings.options(name, options))
