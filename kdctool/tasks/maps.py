"""What a heat map is worth against boxes: the definitions of LVS and EZ-VSL, and what they leave open.

A map is stretched bilinearly to 224 x 224 (corners not aligned, so that a token's value stands in the token's middle)
and its range to 0-1. A threshold rule marks pixels, and the intersection with the truth g over the union is
sum(marked * g) / (sum(g) + marked pixels where g is 0). A map of one value marks everything under every rule.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from kdctool.tasks.metrics import Floats, finite

SIDE = 224
"""Pixels of a map and of the truth along each side, whatever the model's input."""
THRESHOLDS = np.array([0.05 * i for i in range(21)])
FLAT = 1e-6
"""Cosines that differ by less are equal: float32 knows no better, and stretching would make a map of the noise."""
Bools = NDArray[np.bool_]
Agreement = Literal["union", "consensus"]


def _share(top: float) -> Callable[[Floats], Floats]:
    """The value that the `top` share of the pixels reaches; pixels equal to it are marked too."""

    def threshold(flat: Floats) -> Floats:
        place = int(flat.shape[1] * (1 - top))
        return np.partition(flat, place, axis=1)[:, place]

    return threshold


RULES: dict[str, Callable[[Floats], Floats]] = {
    "fixed": lambda flat: np.full(len(flat), 0.5),
    "top50": _share(0.5),
    "top10": _share(0.1),
}
"""Name -> from maps (B, pixels) in 0-1 the value above which a pixel is marked, (B,). fixed: half of the map's range.
top50: the brighter half of the picture (LVS' and EZ-VSL's "cIoU"). top10: the brightest tenth."""


def stretched(similarity: Any) -> Floats:
    """Maps (B, rows, columns) as (B, 224, 224), values as they are."""
    values = torch.as_tensor(finite(similarity, "similarities"))[:, None]
    return F.interpolate(values, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0].numpy()


def to_unit_range(maps: Floats) -> Floats:
    """Each map's least value to 0 and its greatest to 1; a flat map is 1 everywhere."""
    flat = maps.reshape(len(maps), -1)
    low, high = flat.min(1)[:, None, None], flat.max(1)[:, None, None]
    is_flat = high - low <= FLAT
    return np.where(is_flat, 1.0, (maps - low) / np.where(is_flat, 1.0, high - low))


def marked(unit: Floats, rule: str) -> Bools:
    """Pixels that a rule marks in maps (B, 224, 224) of range 0-1."""
    flat = unit.reshape(len(unit), -1)
    return (flat >= RULES[rule](flat)[:, None]).reshape(unit.shape)


def truth_map(boxes: Sequence[Sequence[float]], agreement: Agreement = "union") -> Floats:
    """(224, 224) of boxes in shares of the frame; corners are cut to whole pixels as in the published protocol.

    union: 1 inside any box. consensus: min(boxes / 2, 1), so that one annotator alone counts half.
    """
    total = np.zeros((SIDE, SIDE))
    for box in boxes:
        x0, y0, x1, y1 = (int(min(max(value, 0.0), 1.0) * SIDE) for value in box)
        total[y0:y1, x0:x1] += 1
    return np.minimum(total if agreement == "union" else total / 2, 1.0)


def overlap(marks: Bools, truth: Floats) -> Floats:
    """Intersection over union of marked pixels and truth, both (B, 224, 224): (B,)."""
    inside = (marks * truth).sum((1, 2))
    return inside / (truth.sum((1, 2)) + (marks & (truth == 0)).sum((1, 2)))


def success(iou: ArrayLike) -> Floats:
    """1 where the overlap is at least 0.5; its mean is "cIoU" in LVS and "AP50" in EZ-VSL's code."""
    return (np.asarray(iou) >= 0.5).astype(np.float64)


def success_area(iou: ArrayLike) -> Floats:
    """(N,) area under each clip's success over 21 thresholds from 0 to 1; its mean is the published AUC."""
    reached = (np.asarray(iou)[:, None] >= THRESHOLDS).astype(np.float64)  # (N, 21)
    return np.trapezoid(reached, THRESHOLDS, axis=1)


def pointing(maps: Floats, truth: Floats) -> Floats:
    """Whether the highest place lies in the truth: (B,), the share of those within `FLAT` of the highest that do."""
    highest = maps >= maps.max((1, 2), keepdims=True) - FLAT
    return (highest & (truth > 0)).sum((1, 2)) / highest.sum((1, 2))


def two_choice(maps: Floats, sounding: Floats, silent: Floats) -> Floats:
    """Whether the map is higher, on average, in the sounding thing than in its silent rival: (B,) 1, 0 or a tie's 0.5.

    NaN where a truth is empty.
    """
    here, there = (_mean_inside(maps, truth) for truth in (sounding, silent))
    verdict = np.where(here > there, 1.0, 0.0)
    verdict = np.where(np.abs(here - there) <= FLAT, 0.5, verdict)
    return np.where(np.isnan(here) | np.isnan(there), np.nan, verdict)


def centre_map() -> Floats:
    """(1, 224, 224) the nearer to the middle the higher, with the range of a cosine: its brighter half is a disc."""
    twice = (2 * np.arange(SIDE) + 1 - SIDE) ** 2  # Whole numbers: equally far is exactly equal.
    return -np.sqrt(twice[:, None] + twice)[None] / (2 * SIDE)


def _mean_inside(maps: Floats, truth: Floats) -> Floats:
    inside = truth > 0
    count = inside.sum((1, 2))
    total = np.where(inside, maps, 0.0).sum((1, 2))
    return np.divide(total, count, out=np.full(len(maps), np.nan), where=count > 0)
