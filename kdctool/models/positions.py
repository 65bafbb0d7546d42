"""Positional tables for another length of sound or another size of picture. Every change is told."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.models.layers import sincos_2d
from kdctool.recipe import Model

Grid = tuple[int, int]
"""(rows, columns) of tokens; for audio (frequency, time)."""

TABLES = {
    "pos_embed_a": "audio",
    "pos_embed_v": "video",
    "decoder_pos_embed_a": "audio",
    "decoder_pos_embed_v": "video",
}
"""Tables of a state dict under released names, and whose positions they are."""

_SINE_COSINE = 0.05
"""Largest difference to the sine-cosine table of a table that still counts as one, trained or rounded a little."""


def fit_positions(
    state: dict[str, Tensor], model: Model, source: Model | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """`state` with its positional tables made for `model`, and a note for each that changed.

    `source` is the model the weights were trained as, where it is known; without it audio tables are taken to have
    the mel bins of `model`, and video tables to be square. A table that fits no grid stays as it is.
    """
    fitted, notes = dict(state), []
    for name, kind in TABLES.items():
        table = state.get(name)
        if table is None or table.ndim != 3:
            continue
        wanted = model.audio_grid if kind == "audio" else model.video_grid
        had = _source_grid(table.shape[1], kind, model, source)
        if had is None or had == wanted:
            continue
        fitted[name], how = fit_audio(table, had, wanted) if kind == "audio" else fit_video(table, had, wanted)
        notes.append(f"{name}: {had[0]} x {had[1]} positions {how} {wanted[0]} x {wanted[1]}")
    return fitted, notes


def fit_audio(table: Tensor, had: Grid, wanted: Grid) -> tuple[Tensor, str]:
    """(1, L, D) for another length: columns are 10 ms frames, so they are cut or continued, never stretched.

    Only a trained table has no continuation; it is interpolated, and so is one for other mel bins.
    """
    (rows, columns), width = had, table.shape[-1]
    if rows != wanted[0]:
        return _interpolate(table, had, wanted), "interpolated to"
    cells = table.reshape(rows, columns, width)
    if wanted[1] <= columns:
        return cells[:, : wanted[1]].reshape(1, -1, width).contiguous(), "cropped (first columns) to"
    if width % 4 or (table.float() - sincos_2d(width, had)).abs().max() > _SINE_COSINE:
        return _interpolate(table, had, wanted), "interpolated to"
    longer = sincos_2d(width, wanted).to(table.dtype).reshape(rows, wanted[1], width)
    return torch.cat((cells, longer[:, columns:]), dim=1).reshape(1, -1, width), "continued as sine-cosine to"


def fit_video(table: Tensor, had: Grid, wanted: Grid) -> tuple[Tensor, str]:
    """(1, L, D) for another picture size: the picture is the same, cut finer or coarser, so it is interpolated."""
    return _interpolate(table, had, wanted), "interpolated to"


def _interpolate(table: Tensor, had: Grid, wanted: Grid) -> Tensor:
    picture = table.float().reshape(1, *had, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    larger = F.interpolate(picture, size=wanted, mode="bicubic", align_corners=False)
    return larger.flatten(2).transpose(1, 2).to(table.dtype).contiguous()


def _source_grid(tokens: int, kind: str, model: Model, source: Model | None) -> Grid | None:
    if source is not None:
        grid = source.audio_grid if kind == "audio" else source.video_grid
        return grid if grid[0] * grid[1] == tokens else None
    if kind == "audio":
        rows = model.audio_grid[0]
        return (rows, tokens // rows) if tokens % rows == 0 else None
    side = isqrt(tokens)
    return (side, side) if side * side == tokens else None
