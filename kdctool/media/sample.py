"""How long an extraction will take and how much it will write, told from a few of its inputs that are really done."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdctool.files import canonical_json
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.rows import Row, members
from kdctool.media.settings import Item, Settings, Tools
from kdctool.progress import bar

_BLOCK, _TAR_BLOCK = 4096, 512


@dataclass(frozen=True)
class Estimate:
    """What all inputs will give, if they are like those that were tried."""

    num_sampled: int
    num_clips: float
    usable: float
    """Share of the rows that are clips."""
    loose_bytes: float
    """On a disk with blocks of 4 KiB."""
    tar_bytes: float
    """As shards."""
    seconds: float

    def peak_bytes(self, clips_per_shard: int = 1000) -> float:
        """The most that `--to-shards` takes at a time: all clips and one tar, or all tars."""
        one_tar = self.tar_bytes * min(1.0, clips_per_shard / max(self.num_clips, 1.0))
        return max(self.loose_bytes + one_tar, self.tar_bytes)


def estimate(
    items: Sequence[Item], settings: Settings, tools: Tools, workers: int, most: int = 8, most_seconds: float = 20.0
) -> Estimate | None:
    """Extract up to `most` of `items`, evenly spread, into a temporary folder; None where there are none.

    Stops after `most_seconds`; a long input that is under work then counts by the clips that it gave.
    """
    if not items:
        return None
    count = min(most, len(items))
    # Each for itself: reading a file for its other segments, too, is not what this one costs.
    chosen = [replace(items[place * len(items) // count], furthest_ms=None) for place in range(count)]
    with tempfile.TemporaryDirectory(prefix="kdctool-sample-") as folder:
        rows, num_done, seconds = _tried(chosen, Path(folder), settings, tools, most_seconds)
        sizes = [[os.path.getsize(Path(folder, name)) for name in members(row)] for row in rows]
    scale = len(items) / max(num_done, 1)
    usable = sum(row["status"] != "quarantined" for row in rows) / max(len(rows), 1)
    described = [len(canonical_json(row)) for row in rows]
    return Estimate(
        num_sampled=max(num_done, 1),
        num_clips=len(rows) * scale * usable,
        usable=usable,
        loose_bytes=scale * sum(_in_blocks(some, _BLOCK) + _BLOCK for some in sizes if some),
        tar_bytes=scale * sum(_in_tar([json, *some]) for json, some in zip(described, sizes, strict=True) if some),
        seconds=seconds * scale / min(workers, len(items)),
    )


def _tried(
    chosen: list[Item], folder: Path, settings: Settings, tools: Tools, most_seconds: float
) -> tuple[list[Row], int, float]:
    """The rows that were made, the inputs that were done to the end, and how long it took."""
    num_done, rows = 0, list[Row]()
    began = time.monotonic()
    with bar("trying a sample", len(chosen), "videos") as progress, Pool(1, folder, settings, tools) as pool:
        warm = False  # The first one is done twice: the start of the process is not what a video costs.
        for _, row in pool.run(Task(item) for item in (chosen[0], *chosen)):
            if row is None and not warm:
                warm, began = True, time.monotonic()
                continue
            if not warm:
                continue
            if row is None:
                num_done += 1
                progress.advance()
            else:
                rows.append(row)
            if time.monotonic() - began > most_seconds and (num_done or len(rows) > 2):
                break
    return rows, num_done, time.monotonic() - began


def _in_blocks(sizes: list[int], block: int) -> int:
    return sum(-(-size // block) * block for size in sizes)


def _in_tar(sizes: list[int]) -> int:
    return len(sizes) * _TAR_BLOCK + _in_blocks(sizes, _TAR_BLOCK)
