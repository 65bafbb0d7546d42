"""Which tokens a distilled student sees: chosen by what a teacher makes of the clip, or drawn.

Progressive redundant-token masking (Hybrid Distill; the details are those of PCAE, whose masking it says it follows):
at a few depths of the teacher, the tokens that resemble the mean of the kept ones most fall away (`mask.likeness` says
in what). One mask comes out of it, which the student has from its input on. A clip's mask depends on nothing but the
clip. Class tokens are neither ranked nor dropped, they are not among the tokens here.

A policy is one class in one file of this folder, registered under the name a recipe gives it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.masking import LearnedMasking, build, maskings
from kdctool.masking.views import draw
from kdctool.recipe.distill import TokenMask
from kdctool.registry import Registry

policies = Registry("mask policy", __package__ or "")

_SLACK = 1e-6
"""So that 100 x (1 - 0.1) keeps 90 whatever binary fractions make of it."""


class Policy(Protocol):
    """Chooses tokens; built as `cls(options, floor)` with the recipe's mask section and the least number to keep."""

    def guides(self, depth: int) -> tuple[int, ...]:
        """Blocks of the teacher, counted from 1 (0 is what goes into the first), after which tokens are looked at."""
        ...

    def keep(
        self, tokens: Mapping[int, Tensor], grid: tuple[int, int], clips: int, rng: torch.Generator, rows: Tensor
    ) -> Tensor | None:
        """Kept tokens in natural order, (B, K) int64; None keeps all.

        tokens: (B, L, D) per block of `guides`. What is drawn comes from `rng` for all `clips` of the global batch, of
        which this micro batch has `rows`.
        """
        ...


@policies.register("none")
class NoMask:
    """The student sees everything."""

    def __init__(self, options: TokenMask, floor: int) -> None:
        self.options = options

    def guides(self, depth: int) -> tuple[int, ...]:
        """None."""
        return ()

    def keep(
        self, tokens: Mapping[int, Tensor], grid: tuple[int, int], clips: int, rng: torch.Generator, rows: Tensor
    ) -> Tensor | None:
        """All."""
        return None


@policies.register("random")
class RandomMask:
    """`keep` of all tokens, drawn by the registered masking `of`."""

    def __init__(self, options: TokenMask, floor: int) -> None:
        self.options, self.floor = options, floor
        if issubclass(maskings.get(options.of).cls, LearnedMasking):
            raise UsageFault(
                f"objective.distill.mask.of = '{options.of}' learns from reconstruction, and there is none here",
                "name one that draws, such as random, time or freq",
            )
        self.drawing = build(options.of, {})

    def guides(self, depth: int) -> tuple[int, ...]:
        """None."""
        return ()

    def keep(
        self, tokens: Mapping[int, Tensor], grid: tuple[int, int], clips: int, rng: torch.Generator, rows: Tensor
    ) -> Tensor | None:
        """See `Policy`."""
        total = grid[0] * grid[1]
        # Half a token more than wanted, so that the way over a ratio and back ends at the same number.
        ratio = 1 - (share(total, self.options.keep, self.floor) + 0.5) / total
        return draw(self.drawing, clips, grid, max(ratio, 0.0), 1, True, rng, rows).ids_keep[0].sort(dim=1).values


@policies.register("direct")
class DirectMask:
    """Ranks once, at the teacher's last block."""

    def __init__(self, options: TokenMask, floor: int) -> None:
        self.options, self.floor = options, floor

    def guides(self, depth: int) -> tuple[int, ...]:
        """The last block."""
        return (depth,)

    def keep(
        self, tokens: Mapping[int, Tensor], grid: tuple[int, int], clips: int, rng: torch.Generator, rows: Tensor
    ) -> Tensor | None:
        """See `Policy`."""
        (last,) = tokens.values()
        everything = torch.arange(last.shape[1], device=last.device).expand(last.shape[:2])
        num_keep = share(last.shape[1], self.options.keep, self.floor)
        return drop_redundant(last, everything, num_keep, self.options.likeness)


@policies.register("redundancy")
class RedundancyMask:
    """Drops `drop` of what is left at each of a few blocks."""

    def __init__(self, options: TokenMask, floor: int) -> None:
        self.options, self.floor = options, floor

    def guides(self, depth: int) -> tuple[int, ...]:
        """After (or before) blocks 0, L / 3 and 2 L / 3, counted from 0."""
        blocks = self.options.layers or tuple(dict.fromkeys((0, depth // 3, 2 * depth // 3)))
        return tuple(block + (self.options.side == "output") for block in blocks)

    def keep(
        self, tokens: Mapping[int, Tensor], grid: tuple[int, int], clips: int, rng: torch.Generator, rows: Tensor
    ) -> Tensor | None:
        """See `Policy`."""
        first = next(iter(tokens.values()))
        kept = torch.arange(first.shape[1], device=first.device).expand(first.shape[:2])
        for layer in sorted(tokens):
            num_keep = share(kept.shape[1], 1 - self.options.drop, self.floor)
            kept = drop_redundant(tokens[layer], kept, num_keep, self.options.likeness)
        return kept


def share(tokens: int, kept: float, floor: int = 0) -> int:
    """How many of `tokens` stay: int(tokens * kept), but never fewer than `floor` (or all, where there are fewer)."""
    return max(int(tokens * kept + _SLACK), min(tokens, max(floor, 1)))


def drop_redundant(tokens: Tensor, kept: Tensor, num_keep: int, likeness: str = "cosine") -> Tensor:
    """The `num_keep` of the `kept` (B, K) tokens of (B, L, D) that resemble their mean least, in natural order."""
    with torch.autocast(tokens.device.type, enabled=False):
        own = tokens.float().gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        score = LIKENESS[likeness](own)  # (B, K)
    lowest = score.argsort(dim=1, stable=True)[:, :num_keep]
    return kept.gather(1, lowest).sort(dim=1).values


def _product(own: Tensor) -> Tensor:
    return (own * own.mean(dim=1, keepdim=True)).sum(dim=-1)


def _cosine(own: Tensor) -> Tensor:
    return _product(F.normalize(own, dim=-1))


def _mean_cosine(own: Tensor) -> Tensor:
    """Up to the length of the mean, which is one number for all tokens of a clip."""
    return (F.normalize(own, dim=-1) * own.mean(dim=1, keepdim=True)).sum(dim=-1)


def _distance(own: Tensor) -> Tensor:
    return -(own - own.mean(dim=1, keepdim=True)).square().sum(dim=-1)


LIKENESS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": _cosine,
    "mean_cosine": _mean_cosine,
    "product": _product,
    "distance": _distance,
}
"""`mask.likeness` -> score (B, K) of kept tokens (B, K, D); the highest resemble their mean most."""
