"""A fixed pool of masks: another masking draws a few once, and every clip gets one of these.

This is what `restrict_randomness` of the KDC-MAE release is for: how much of the gain comes from never seeing the same
mask twice. The release steps through its stored shuffles by epoch; here every clip draws its own from the pool.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.masking import LearnedMasking, build, maskings
from kdctool.registry import Section
from kdctool.seeds import fold


class PoolOptions(Section):
    """How many masks there are, and which masking draws them."""

    size: Annotated[int, Field(gt=0)] = 4
    """Masks in the pool (the release has 4 for both modalities)."""
    of: str = "random"
    """The masking that draws them."""
    of_options: dict[str, Any] = {}
    """Its options, where it has any."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The pool follows from it and from the grid: the same in every run, step and process."""


@maskings.register("pool", PoolOptions)
class PoolMasking:
    """Scores of `size` masks that never change; a clip takes one at random."""

    def __init__(self, options: PoolOptions) -> None:
        if options.of == "pool" or issubclass(maskings.get(options.of).cls, LearnedMasking):
            raise UsageFault(
                f"masking option of = '{options.of}': a pool holds masks that are drawn once",
                "name a masking that neither learns nor is a pool, such as random or time",
            )
        self.options = options
        self.drawing = build(options.of, options.of_options)
        self._known: dict[tuple[tuple[int, int], float, torch.device], Tensor] = {}

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) scores."""
        pool = self._sent(grid, ratio, rng.device)
        choice = torch.randint(len(pool), (clips,), generator=rng, device=rng.device)
        return pool[choice]

    def _sent(self, grid: tuple[int, int], ratio: float, device: torch.device) -> Tensor:
        """`pool` on the device, sent there once: a step must not wait for it."""
        key = (grid, ratio, device)
        if key not in self._known:
            self._known[key] = self.pool(grid, ratio).to(device)
        return self._known[key]

    def pool(self, grid: tuple[int, int], ratio: float) -> Tensor:
        """All scores, (size, L), on the CPU: so that a pool is the same on any device."""
        seed = fold(self.options.seed, "mask pool", *grid)
        return self.drawing.noise(self.options.size, grid, ratio, torch.Generator().manual_seed(seed))
