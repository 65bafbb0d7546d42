"""Structured masking of the spectrogram: whole columns (time), whole rows (freq) or both (tf) are removed.

The reference gives removed columns the score 1.1 above noise in [0, 1). Here columns are dealt into blocks as large
as the first view's and block b scores 1.1 * b + noise: the first block is exactly the reference's rule, and a later
complementary view finds whole columns too instead of what a tie leaves over.
"""

import torch
from torch import Tensor

from kdctool.masking import maskings
from kdctool.registry import Section

_TF_SHARE = 0.7
"""The reference removes this share of `ratio` along each axis in tf mode, so that about `ratio` falls together."""


@maskings.register("time")
class TimeMasking:
    """int(columns * ratio) columns of the grid are removed whole."""

    def __init__(self, options: Section) -> None:
        self.options = options

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) scores for a grid of (rows, columns)."""
        rows, columns = grid
        block, _ = _blocks(clips, columns, int(columns * ratio), rng)  # (clips, columns)
        return _scores(block[:, None, :].expand(clips, rows, columns), rng)


@maskings.register("freq")
class FreqMasking:
    """int(rows * ratio) rows of the grid are removed whole."""

    def __init__(self, options: Section) -> None:
        self.options = options

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) scores for a grid of (rows, columns)."""
        rows, columns = grid
        block, _ = _blocks(clips, rows, int(rows * ratio), rng)  # (clips, rows)
        return _scores(block[:, :, None].expand(clips, rows, columns), rng)


@maskings.register("tf")
class TimeFreqMasking:
    """int(columns * ratio * 0.7) columns and int(rows * ratio * 0.7) rows are marked for removal.

    Where fewer unmarked tokens are left than a view keeps (124 of 128 for 8 x 64 at ratio 0.75), the rest comes
    from the marked region, as in the reference.
    """

    def __init__(self, options: Section) -> None:
        self.options = options

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) scores for a grid of (rows, columns)."""
        rows, columns = grid
        column_block, _ = _blocks(clips, columns, int(columns * ratio * _TF_SHARE), rng)
        row_block, row_blocks = _blocks(clips, rows, int(rows * ratio * _TF_SHARE), rng)
        return _scores(column_block[:, None, :] * row_blocks + row_block[:, :, None], rng)


def _blocks(clips: int, lines: int, removed: int, rng: torch.Generator) -> tuple[Tensor, int]:
    """Deal the lines of every clip at random into blocks of `lines - removed`: (clips, lines) and the block count."""
    kept = lines - removed
    draw = torch.rand(clips, lines, generator=rng, device=rng.device)
    rank = draw.argsort(dim=1, stable=True).argsort(dim=1)
    return rank // kept, -(-lines // kept)


def _scores(block: Tensor, rng: torch.Generator) -> Tensor:
    """block: (clips, rows, columns) -> (clips, L)."""
    return (1.1 * block + torch.rand(block.shape, generator=rng, device=rng.device)).flatten(1)
