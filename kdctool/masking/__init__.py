"""Which tokens are seen: every masking is a way to score tokens, and the lowest scores are kept.

A masking is one file with one registered class:

    @maskings.register("mine", MyOptions)
    class Mine:
        def __init__(self, options: MyOptions) -> None: ...
        def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor: ...

`noise` returns (clips, L) scores on the generator's device, drawn from that generator alone. One that learns where to
look is a `LearnedMasking` instead.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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
    ids_predict: Tensor | None = None
    """(J, B, N) int64, the removed tokens that a light decoder predicts; None = it is not asked for a share."""
    log_prob: Tensor | None = None
    """(B, L) with gradient: log-probability of each token to be seen first, where the masking is learned."""

    def to(self, device: torch.device) -> "Views":
        """The same views on another device."""
        moved = {field.name: x.to(device) for field in fields(self) if (x := getattr(self, field.name)) is not None}
        return replace(self, **moved)


class Masking(Protocol):
    """Scores tokens; the lowest are kept."""

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) float scores on rng's device for a grid of (rows, columns) tokens, row-major."""
        ...


class LearnedMasking(nn.Module):
    """A masking with parameters: what a clip shows shifts the scores of its tokens.

    Built as `cls(options, width)` with the width of the encoder's tokens. Views keep the lowest of
    `noise - log_prob`; the objective trains `forward` by how hard the removed patches were to predict.
    """

    weight: float
    """Weight of the term that trains it."""

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) float scores: all that is random."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        """Embedded tokens with positions (B, L, D) -> log-probability of each to be seen first (B, L), float32."""
        raise NotImplementedError


def build(name: str, options: dict[str, Any], width: int | None = None) -> Masking:
    """The masking called `name`, its options validated; `width` is that of the tokens a learned one looks at."""
    cls, given = maskings.get(name).cls, maskings.options(name, options)
    if not issubclass(cls, LearnedMasking):
        return cls(given)
    assert width is not None, f"masking '{name}' learns and needs the width of the tokens"
    return cls(given, width)
