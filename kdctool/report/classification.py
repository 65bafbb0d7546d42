"""Which classes are taken for which, and how well each is found."""

from typing import Any

import numpy as np
from markupsafe import Markup

from kdctool.report.draft import ASKED, Draft, Part
from kdctool.report.inputs import Evaluation
from kdctool.report.matrices import confusion
from kdctool.report.names import shown
from kdctool.report.pictures import counts as counts_picture
from kdctool.report.tables import Cell, Table, count, free, said, score

DRAWN = 40
"""Classes up to which the matrix is a drawing; beyond, it is a picture of one pixel or more per cell."""
WORST = 25
"""Rows of the table of what is taken for what."""


def part(evaluation: Evaluation, draft: Draft, anchor: str) -> Part | None:
    """Confusion and per-class numbers, where the task kept them."""
    data: dict[str, Any] = {}
    payload: dict[str, Any] = {}
    matrix = evaluation.found.get("confusion")
    if matrix:
        labels, counts = [str(label) for label in matrix["labels"]], np.asarray(matrix["counts"], dtype=np.int64)
        if counts.shape != (len(labels), len(labels)):
            raise ValueError(f"a confusion of {counts.shape} for {len(labels)} labels")
        data |= _matrix(labels, counts, draft, anchor)
        payload["confusion"] = {"labels": [shown(label) for label in labels], "counts": counts.tolist()}
    classes = evaluation.found.get("per_class")
    if classes:
        data["classes"] = _classes(classes, draft, anchor)
    return Part("classification.html", data, payload) if data else None


def _matrix(labels: list[str], counts: Any, draft: Draft, anchor: str) -> dict[str, Any]:
    taken = [(int(counts[i, j]), i, j) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    taken.sort(key=lambda row: (-row[0], row[1], row[2]))
    rows = [
        [said(labels[i]), said(labels[j]), count(number), score("", number / counts[i].sum())]
        for number, i, j in taken[:WORST]
    ]
    columns = ("true class", "taken for", "clips", "share of the class")
    right, total = int(np.trace(counts)), int(counts.sum())
    made: dict[str, Any] = {
        "mistakes": draft.table(f"{anchor}-mistakes", "What is most often taken for what", columns, rows),
        "num_mistakes": len(taken),
        "right": right,
        "total": total,
        "num_classes": len(labels),
        "drawing": Markup(),
        "picture": "",
    }
    if len(labels) <= DRAWN:
        made["drawing"] = confusion(labels, counts.tolist())
    else:
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        cell = max(1, 640 // len(labels))
        made["picture"] = draft.media.add(
            f"{anchor} confusion", "picture", ASKED, lambda edge: counts_picture(shares, cell)
        )
    return made


def _classes(classes: list[dict[str, Any]], draft: Draft, anchor: str) -> Table:
    columns = ("label", "positives", "ap", "auc", "recall")

    def row(one: dict[str, Any]) -> list[Cell]:
        positives = one.get("positives")
        numbers = [score("", one[name]) if one.get(name) is not None else free(None) for name in columns[2:]]
        return [said(one.get("label", "")), count(positives if isinstance(positives, int) else None), *numbers]

    return draft.table(f"{anchor}-classes", "Every class", columns, [row(one) for one in classes], sortable=True)
