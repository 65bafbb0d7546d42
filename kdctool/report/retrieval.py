"""The gallery: what was asked, what the model answered, and where the right answer stands."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdctool.report.draft import Draft, Part, Tile
from kdctool.report.inputs import Evaluation, strings
from kdctool.report.tables import free, known, said

WAYS = {
    "a2v": ("A sound asks", "Each sound looks for its own picture; the model saw no picture of the query."),
    "v2a": ("A picture asks", "Each picture looks for its own sound; the model heard no sound of the query."),
}


@dataclass(frozen=True)
class Answer:
    """One of the first five, or the true one behind them."""

    tile: Tile
    place: str
    score: float | None
    is_true: bool


@dataclass(frozen=True)
class Query:
    """A clip that asks; `found` is first, five or later."""

    tile: Tile
    rank: float
    rank_text: str
    found: str
    answers: tuple[Answer, ...]
    truth: Answer | None
    """The clip's own partner where it is not among the answers."""


@dataclass(frozen=True)
class Way:
    """One direction."""

    name: str
    title: str
    meaning: str
    queries: tuple[Query, ...]


def part(evaluation: Evaluation, draft: Draft, anchor: str) -> Part | None:
    """The gallery of a retrieval evaluation; None where the task kept none."""
    there = [way for way in WAYS if f"gallery.query_{way}" in evaluation.assets]
    if not there:
        return None
    ways = [_way(way, evaluation, draft) for way in there]
    rows = [
        [
            said(way.name),
            said(query.tile.uid),
            free(query.rank),
            said(answer.place),
            said(answer.tile.uid),
            free(answer.score),
            said("yes" if answer.is_true else "no"),
        ]
        for way in ways
        for query in way.queries
        for answer in query.answers
    ]
    columns = ("way", "query", "rank of its own", "place", "answer", "score", "own partner")
    table = draft.table(f"{anchor}-gallery", "The gallery as a table", columns, rows)
    data = {"ways": ways, "table": table, "n": evaluation.results.get("n_scored")}
    return Part("retrieval.html", data, {"gallery": {way: _stored(way, evaluation) for way in there}})


def banners(evaluation: Evaluation) -> list[str]:
    """A model whose every answer is a tie has collapsed: its mean rank is exactly that of guessing."""
    metrics = evaluation.metrics
    means = [metrics[name] for name in ("a2v_mean_rank", "v2a_mean_rank") if name in metrics]
    pairs = [(known(m.get("value")), known(m.get("chance"))) for m in means]
    n = evaluation.results.get("n_scored") or 0
    if n < 2 or not pairs or any(value is None or value != chance for value, chance in pairs):
        return []
    return [
        "Collapsed: the model ranks every clip exactly as guessing would, so all its answers are ties. "
        "Its embeddings are most likely one point; the curves of rank and uniformity tell since when."
    ]


def _way(way: str, evaluation: Evaluation, draft: Draft) -> Way:
    asked = strings(evaluation.assets, f"gallery.query_{way}")
    top = strings(evaluation.assets, f"gallery.top_{way}")
    scores = np.asarray(evaluation.assets[f"gallery.score_{way}"], dtype=np.float64)
    ranks = np.asarray(evaluation.assets[f"gallery.rank_{way}"], dtype=np.float64)
    if not len(asked) == len(top) == len(scores) == len(ranks):
        raise ValueError(f"the arrays of gallery.*_{way} differ in length")
    queries = []
    for place, uid in enumerate(asked):
        answers = tuple(
            Answer(
                draft.tile(evaluation.clip(answer), place, answer == uid),
                str(i + 1),
                known(float(scores[place][i])),
                answer == uid,
            )
            for i, answer in enumerate(top[place])
            if answer
        )
        rank = float(ranks[place])
        tile = draft.tile(evaluation.clip(uid), place, True)
        truth = None
        if not any(answer.is_true for answer in answers):
            truth = Answer(tile, f"{rank:g}", None, True)
        found = "first" if rank == 1 else "five" if rank <= 5 else "later"
        queries.append(Query(tile, rank, f"{rank:g}", found, answers, truth))
    title, meaning = WAYS[way]
    return Way(way, title, meaning, tuple(queries))


def _stored(way: str, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "query": strings(evaluation.assets, f"gallery.query_{way}"),
        "top": strings(evaluation.assets, f"gallery.top_{way}"),
        "score": np.asarray(evaluation.assets[f"gallery.score_{way}"], dtype=np.float64).tolist(),
        "rank": np.asarray(evaluation.assets[f"gallery.rank_{way}"], dtype=np.float64).tolist(),
    }
