"""Every query against its gallery, in blocks of rows: rank of the partner, marks of the best, the best five."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdctool.tasks.metrics import Floats, Places, places

ROWS = 512
TOLERANCE = 1e-12
"""Cosines this close are equal: the order in which a matrix product adds up must not decide between them."""
TOP = 5


@dataclass(frozen=True)
class Ranking:
    """What one direction of a retrieval found. Query i belongs to gallery item i."""

    places: Places
    candidates: NDArray[np.int64]
    """(Q,) gallery items that the query was ranked against, the right one among them."""
    precision: dict[str, Floats]
    """Kind of mark -> (Q,) share of the best-scored candidates that share a mark with the query; NaN for a query that
    has none."""
    precision_chance: dict[str, Floats]
    """The same over all candidates."""
    top: NDArray[np.int64]
    """(S, 5) best candidates of the shown queries, -1 where there are fewer; equals in the order of the gallery."""
    score: Floats
    """(S, 5) their cosines."""


@dataclass(frozen=True)
class Known:
    """What is known of the clips beside their embeddings."""

    groups: NDArray[np.int64] | None = None
    """(N,) clips of one group are no candidates for each other; None: every clip is one."""
    marks: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Kind of mark (label, speaker) -> (N, values) 1 where the clip has the value: precision is counted by each."""
    shown: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(S,) rising: queries whose best candidates are kept."""


def rank_all(queries: Floats, gallery: Floats, known: Known) -> Ranking:
    """Rank of gallery item i for query i by dot product; both (N, D)."""
    blocks = [_block(queries, gallery, known, first) for first in range(0, len(queries), ROWS)]
    joined = {
        name: np.concatenate([getattr(block, name) for block in blocks]) for name in ("candidates", "top", "score")
    }
    precision, chance = (
        {kind: np.concatenate([getattr(block, name)[kind] for block in blocks]) for kind in known.marks}
        for name in ("precision", "precision_chance")
    )
    greater = np.concatenate([block.places.greater for block in blocks])
    equal = np.concatenate([block.places.equal for block in blocks])
    return Ranking(Places(greater, equal), precision=precision, precision_chance=chance, **joined)


def _block(queries: Floats, gallery: Floats, known: Known, first: int) -> Ranking:
    similarity = queries[first : first + ROWS] @ gallery.T  # (R, N)
    rows = np.arange(first, first + len(similarity))
    excluded = np.zeros(similarity.shape, dtype=bool)
    if known.groups is not None:
        excluded = known.groups[rows][:, None] == known.groups[None]
        excluded[np.arange(len(rows)), rows] = False
    found = places(similarity, rows, TOLERANCE, excluded)
    candidate = np.where(excluded, -np.inf, similarity)
    counted = {kind: _precision(candidate, marks, rows) for kind, marks in known.marks.items()}
    precision, chance = ({kind: both[i] for kind, both in counted.items()} for i in range(2))
    top, score = _best(candidate[known.shown[(known.shown >= first) & (known.shown < first + ROWS)] - first])
    return Ranking(found, np.count_nonzero(~excluded, axis=1), precision, chance, top, score)


def _precision(candidate: Floats, marks: NDArray[np.float32], rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    is_open = np.isfinite(candidate)
    same = (marks[rows] @ marks.T > 0) & is_open
    best = candidate >= candidate.max(1, keepdims=True) - TOLERANCE
    marked = marks[rows].any(1)
    share = np.count_nonzero(best & same, axis=1) / np.count_nonzero(best, axis=1)
    chance = np.count_nonzero(same, axis=1) / np.count_nonzero(is_open, axis=1)
    return np.where(marked, share, np.nan), np.where(marked, chance, np.nan)


def _best(candidate: Floats) -> tuple[NDArray[np.int64], Floats]:
    order = np.argsort(-candidate, axis=1, kind="stable")[:, :TOP]
    score = np.take_along_axis(candidate, order, axis=1)
    gone = np.isinf(score)
    order, score = np.where(gone, -1, order), np.where(gone, np.nan, score)
    room = ((0, 0), (0, TOP - order.shape[1]))
    return np.pad(order, room, constant_values=-1), np.pad(score, room, constant_values=np.nan)
