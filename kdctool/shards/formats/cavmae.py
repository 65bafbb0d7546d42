"""CAV-MAE's data json: `{"data": [{"video_id", "wav", "video_path", "labels": "mid,mid"}]}`.

KDC-MAE's Kinetics lists say `id`, `audio` and `label`. `kdctool data convert --to cavmae` adds a `split`.
"""

import json
from collections.abc import Iterator
from typing import Any

from kdctool.errors import DataFault
from kdctool.shards.formats import LabelFile, LabelRow, formats


@formats.register("cavmae")
class CavMae:
    example = (
        '{"data": [{"video_id": "00W1lcxW-WU_40.000", "wav": "/data/audio/00W1lcxW-WU_40.000.wav", '
        '"video_path": "/data/video", "labels": "/m/09x0r,/m/05zppz"}]}\n'
    )

    def recognises(self, text: str) -> bool:
        return text.lstrip().startswith("{") and '"data"' in text

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        data = read_json(file, "data", dict)
        for place, entry in enumerate(data, start=1):
            name = entry.get("video_id", entry.get("id"))
            labels = entry.get("labels", entry.get("label", ""))
            if not isinstance(name, str) or not name or not isinstance(labels, str):
                raise file.fault(place, "an entry of `data` without video_id, or with labels that are no text")
            found = (labels,) if labels in file.known else (label.strip() for label in labels.split(","))
            split = file.split(place, str(entry.get("split", "")))
            yield LabelRow(name, "name", tuple(dict.fromkeys(label for label in found if label)), split, place)


def read_json(file: LabelFile, key: str, kind: type) -> list[dict[str, Any]]:
    """A JSON list of objects: the file itself, or what an object has under `key`."""
    try:
        value = json.loads(file.text)
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{file.path} is not JSON: {error}", "fetch it again") from error
    data = value.get(key) if kind is dict and isinstance(value, dict) else value
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise DataFault(f"{file.path} holds no list of objects", "fetch it again")
    return data
