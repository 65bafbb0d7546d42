"""Where the clips of shards come from: an extraction folder of this machine, or one in a store.

Of a remote one the manifest is copied here, and each clip's files for as long as its shard needs them.
"""

import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdctool.errors import UsageFault, quoted
from kdctool.files import disk_faults
from kdctool.places import Missing, Place, Remote, many
from kdctool.places.mirror import Mirror, spoken_of
from kdctool.places.scratch import scratch
from kdctool.shards.extraction import DONE, MANIFEST, Extraction, clip_files, clip_folder, open_extraction
from kdctool.shards.plan import PlannedClip

_AHEAD, _AT_ONCE = 32, 8
"""Clips that are fetched before they are needed, and at the same time."""


class Origin:
    """A finished extraction folder of this machine."""

    def __init__(self, extraction: Extraction) -> None:
        self.extraction = extraction

    def clips(self, clips: Iterable[PlannedClip]) -> Iterator[tuple[PlannedClip, dict[str, Any]]]:
        """Each clip and its row, while its files are here. Rows are read again: so a large plan stays small."""
        with open(self.extraction.folder / MANIFEST, "rb") as manifest:
            for clip in clips:
                manifest.seek(clip.place)
                yield clip, json.loads(manifest.read(clip.length))

    def sizes(self, clips: list[PlannedClip]) -> list[list[int]]:
        """Bytes of the files of each clip."""
        return [
            [path.stat().st_size for _, path in clip_files(self.extraction.folder, row)] for _, row in self.clips(clips)
        ]

    def forget(self, uids: Iterable[str]) -> None:
        """Delete the files of clips; they are in a shard."""
        for uid in uids:
            shutil.rmtree(clip_folder(self.extraction.folder, uid), ignore_errors=True)


class RemoteOrigin(Origin):
    """A finished extraction folder in a store."""

    def __init__(self, extraction: Extraction, remote: Remote) -> None:
        super().__init__(extraction)
        self.remote = remote

    def clips(self, clips: Iterable[PlannedClip]) -> Iterator[tuple[PlannedClip, dict[str, Any]]]:
        coming: deque[tuple[PlannedClip, dict[str, Any], Future[None]]] = deque()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                for clip, row in super().clips(clips):
                    coming.append((clip, row, pool.submit(self._fetch, row)))
                    if len(coming) > _AHEAD:
                        yield from self._next(coming)
                while coming:
                    yield from self._next(coming)
            finally:
                pool.shutdown(cancel_futures=True)

    def _next(
        self, coming: deque[tuple[PlannedClip, dict[str, Any], Future[None]]]
    ) -> Iterator[tuple[PlannedClip, dict[str, Any]]]:
        clip, row, fetched = coming.popleft()
        fetched.result()
        yield clip, row
        super().forget([clip.uid])

    def _fetch(self, row: dict[str, Any]) -> None:
        """The files that the manifest names; what is not there is told by whoever looks for it."""
        names = [*row["frames"], *([row["audio"]] if row["audio"] else [])]
        with disk_faults(self.extraction.folder):
            clip_folder(self.extraction.folder, row["uid"]).mkdir(parents=True, exist_ok=True)
        for name in names:
            try:
                data = (self.remote / name).read()
            except Missing:
                continue
            with disk_faults(self.extraction.folder):
                (self.extraction.folder / name).write_bytes(data)

    def sizes(self, clips: list[PlannedClip]) -> list[list[int]]:
        def listed(clip: PlannedClip) -> list[int]:
            return [stored.size for stored in self._folder(clip.uid).children().values()]

        return many(listed, clips)

    def forget(self, uids: Iterable[str]) -> None:
        many(lambda uid: self._folder(uid).remove_tree(), uids)

    def _folder(self, uid: str) -> Remote:
        return self.remote / clip_folder(Path(), uid).as_posix()


@contextmanager
def opened(place: Place) -> Iterator[Origin]:
    """The clips of an extraction folder; DataFault when extraction has not finished there."""
    if isinstance(place, Path):
        yield Origin(open_extraction(place))
        return
    with scratch() as folder, spoken_of(folder / "out", place):
        mirror = Mirror(place, folder / "out")
        mirror.clear()
        there = place.children()
        if not there:
            raise UsageFault(f"there is nothing at {place}", f"kdctool extract VIDEOS {quoted(place)}")
        mirror.pull([name for name in (MANIFEST, DONE) if name in there])
        yield RemoteOrigin(open_extraction(mirror.local), place)
