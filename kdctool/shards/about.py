"""What is known of a clip: its JSON member, and the labels that other people's shards keep elsewhere."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kdctool.errors import DataFault

MEMBERS = ("json", "cls")
"""Members that describe a clip. `cls` holds one label, a number as a rule, as in published image shards."""
_KEYS = ("label", "cls")
_LONGEST = 200


def about(members: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The JSON of a clip, with its labels under `labels`; DataFault names `where` when it is damaged.

    Without a list `labels` they are what stands under `label` or `cls`, or in the member `cls`. Numbers become texts.
    """
    found = _parsed(members["json"], where) if "json" in members else {}
    if "labels" in found:
        return found
    for key in _KEYS:
        value = found.get(key)
        if isinstance(value, int | str | list):
            return found | {"labels": [str(label) for label in (value if isinstance(value, list) else [value])]}
    if "cls" in members:
        return found | {"labels": [_text(members["cls"], where)]}
    return found


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Labels in the order of the classes: by number where all are numbers, else by name."""
    found = set(names)
    if found and all(name.isascii() and name.isdigit() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataFault(f"{where}.json is not a JSON object: {error}", "kdctool verify SHARDS") from error


def _text(data: bytes, where: str) -> str:
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise DataFault(f"{where}.cls is no text") from error
    if not text or len(text) > _LONGEST or not text.isprintable():
        raise DataFault(f"{where}.cls holds no label: {data[:40]!a}", "it is one label: a number or a name")
    return text
