"""Which of a clip's stored frames are seen, and how four of them become one picture."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdctool.data.frames import tile
from kdctool.errors import DataFault
from kdctool.recipe import Data
from kdctool.seeds import fold

TILES = 4


def choose(options: Data, stored: int, epoch: int | None, seed: int, where: str) -> list[int]:
    """Places among `stored` frames: one, or four with `data.tiling`.

    In training `epoch` counts and `seed` is the clip's in that epoch: one at random or by the epoch, four at random
    without repetition. `epoch` None is evaluation: the middle one, or four evenly spread from the first.
    """
    if options.tiling:
        if stored < TILES:
            raise DataFault(
                f"{where} has {stored} frames, a collage needs {TILES}",
                "extract with more frames, or set data.tiling = false",
            )
        if epoch is None:
            return [place * stored // TILES for place in range(TILES)]
        return np.random.default_rng(fold(seed, "tiles")).permutation(stored)[:TILES].tolist()
    if epoch is None:
        return [stored // 2]
    return [epoch % stored if options.frame == "cycle" else fold(seed, "frame") % stored]


def collage(frames: Sequence[Tensor], size: int) -> Tensor:
    """Four uint8 frames (3, H, W) of any size as a 2 x 2 picture, uint8 (3, size, size); `size` is even."""
    picture = tile([frame.permute(1, 2, 0).contiguous().numpy() for frame in frames], size // 2)
    return torch.from_numpy(picture).permute(2, 0, 1)


def arranged(tiles: Tensor) -> Tensor:
    """Squeezed tiles, four for each of B clips, as collages: (4 * B, 3, S, S) -> (B, 3, 2 * S, 2 * S)."""
    _, channels, side, _ = tiles.shape
    grid = tiles.view(-1, 2, 2, channels, side, side)  # (B, columns, rows, C, S, S): they fill column by column
    return grid.permute(0, 3, 2, 4, 1, 5).reshape(-1, channels, 2 * side, 2 * side)
