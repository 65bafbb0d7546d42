"""VGG-SS' `vggss.json`: `[{"file", "class", "bbox": [[x1, y1, x2, y2], ...]}]`, boxes as shares of the whole frame."""

import math
from collections.abc import Iterator
from typing import Any

from kdctool.shards.formats import Box, LabelFile, LabelRow, formats
from kdctool.shards.formats.cavmae import read_json


@formats.register("vggss")
class VggSs:
    example = '[{"file": "0BIyqJj9ZWs_000030", "class": "wind chime", "bbox": [[0.24, -0.01, 0.75, 0.88]]}]\n'

    def recognises(self, text: str) -> bool:
        return text.lstrip().startswith("[") and '"bbox"' in text and '"file"' in text

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        for place, entry in enumerate(read_json(file, "", list), start=1):
            name, label = entry.get("file"), entry.get("class")
            if not isinstance(name, str) or not name or not isinstance(label, str):
                raise file.fault(place, "an entry without file or class")
            boxes = tuple(_box(file, place, box) for box in entry.get("bbox", ()))
            yield LabelRow(name, "name", (label,), "", place, boxes=boxes)


def _box(file: LabelFile, place: int, given: Any) -> Box:
    if isinstance(given, list) and len(given) == 4 and all(isinstance(x, int | float) for x in given):
        x1, y1, x2, y2 = (float(x) for x in given)
        if all(map(math.isfinite, (x1, y1, x2, y2))):
            return x1, y1, x2, y2
    raise file.fault(place, f"{str(given)[:80]!a} is no box of four numbers")
