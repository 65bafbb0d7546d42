"""Which inputs are the same file, and which clips look alike. A report: nothing is left out because of it."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdctool.media.likeness import BITS
from kdctool.media.rows import Row

CLOSEST = 18
"""Clips look alike when their frame hashes differ in at most so many bits (strangers: about 80), and in at most an
eighth of the bits that are set in both together: two dark clips with few edges are not copies."""
_BANDS = 12
"""Only hashes that are equal in one of 12 bands of 16 bits are compared. Up to 11 differing bits that is certain,
at 18 it holds for 19 pairs of 20."""
_MOST_NEIGHBOURS = 2000
"""Of an enormous crowd with one band in common each is compared with so many others."""
_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)


def report(rows: Iterable[Row]) -> dict[str, Any]:
    """The content of duplicates.json: groups of sources with equal bytes, groups of clips that look alike.

    Clips of one source, or of sources with equal bytes, are not told twice.
    """
    kept = [row for row in rows if row["status"] != "quarantined"]
    return {
        "rule": {"bits": BITS, "differ_at_most": CLOSEST},
        "same_bytes": _same_bytes(kept),
        "look_alike": _look_alike([row for row in kept if row.get("frame_hash")]),
    }


def _same_bytes(rows: list[Row]) -> list[dict[str, Any]]:
    sources: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.get("source_sha256"):
            sources[row["source_sha256"]].add(row["source"])
    return [
        {"source_sha256": sha256, "sources": sorted(found, key=_name_order)}
        for sha256, found in sorted(sources.items())
        if len(found) > 1
    ]


def _look_alike(rows: list[Row]) -> list[dict[str, Any]]:
    by_hash: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_hash[row["frame_hash"]].append(row)
    hashes = sorted(by_hash)
    groups = _joined(len(hashes), _close_pairs(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8)))
    found = []
    for group in groups:
        alike = sorted((row for place in group for row in by_hash[hashes[place]]), key=lambda row: str(row["uid"]))
        if len({row["source_sha256"] for row in alike}) > 1:
            sources = sorted({row["source"] for row in alike}, key=_name_order)
            found.append({"clips": [row["uid"] for row in alike], "sources": sources})
    return sorted(found, key=lambda group: str(group["clips"][0]))


def _close_pairs(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(pairs, 2): places of hashes that differ in at most CLOSEST bits. Linear in the hashes, but for crowds."""
    table = data.reshape(-1, BITS // 8)  # (hashes, bytes)
    ones = _ONES[table].sum(axis=1, dtype=np.int64)
    pairs = [np.zeros((0, 2), np.int64)]
    for band in range(_BANDS):
        # Every twelfth bit comes from another row or picture: black bars above and below fill no band.
        chosen = range(band, BITS, _BANDS)
        bits = np.stack([table[:, bit // 8] >> (7 - bit % 8) & 1 for bit in chosen], axis=1)  # (hashes, 16)
        keys = np.packbits(bits, axis=1).view(np.uint16)[:, 0]  # (hashes,)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        places = np.arange(len(keys))
        for step in range(1, _MOST_NEIGHBOURS):
            places = places[places + step < len(keys)]
            places = places[keys[places] == keys[places + step]]
            if not len(places):
                break
            one, other = order[places], order[places + step]
            apart = _ONES[table[one] ^ table[other]].sum(axis=1, dtype=np.int64)
            close = (apart <= CLOSEST) & (8 * apart <= ones[one] + ones[other])
            pairs.append(np.stack([one[close], other[close]], axis=1))
    return np.concatenate(pairs)


def _joined(count: int, pairs: NDArray[np.int64]) -> list[list[int]]:
    """Places 0 .. count - 1 in groups that the pairs connect, single ones too."""
    leader = list(range(count))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for one, other in pairs.tolist():
        low, high = sorted((find(one), find(other)))
        leader[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(count):
        groups[find(place)].append(place)
    return list(groups.values())


def _name_order(source: str) -> bytes:
    return source.encode("utf-8", "surrogateescape")
