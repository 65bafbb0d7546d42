"""Opens inputs for a worker. A file of which several segments are wanted is read once and stays open between them."""

import hashlib
import time
from fractions import Fraction

from kdctool.media.container import check_file
from kdctool.media.fetch import Fetcher
from kdctool.media.plan import shared_until, until
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Item, Settings
from kdctool.media.source import Source

_TRANSIENT = frozenset({"changed", "io_error", "missing"})
_TRY_AGAIN_AFTER_S = 0.2


class Opener:
    """Holds at most one file open, from one `open` to the next. Use as a context manager, or `close`."""

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None) -> None:
        self.settings, self.fetcher = settings, fetcher or Fetcher()
        self._source: Source | None = None
        self._path = ""
        self._sha256 = ""

    def __enter__(self) -> "Opener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.fetcher.drop()

    def open(self, item: Item) -> Source:
        """The file of an item with its packets read; Rejected where it is not data.

        What other segments need is read with it. Where that fails, only what this one needs: what becomes of a
        segment does not depend on the others.
        """
        own, shared = until(self.settings, item.segment), shared_until(self.settings, item)
        if self._source is not None and self._path == item.path and _covers(self._source.read_until, own):
            try:
                unchanged(self._source)
                return self._source
            except Rejected:
                pass  # Opened anew, which tells how.
        self.close()
        try:
            self._source = self._opened(item, shared)
        except Rejected:
            if shared == own:
                raise
            self._source = self._opened(item, own)
        self._path = item.path
        return self._source

    def release(self, item: Item) -> None:
        """The item is done; its file is closed unless other segments of it are wanted."""
        if item.furthest_ms is None:
            self.close()
            self.fetcher.drop()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source, self._path, self._sha256 = None, "", ""

    def sha256(self) -> str:
        """Hash of the open file's bytes; computed once."""
        assert self._source is not None
        if not self._sha256:
            try:
                with open(self._source.path, "rb") as file:
                    self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise Rejected("io_error", error.strerror or "") from error
        return self._sha256

    def _opened(self, item: Item, wanted: Fraction | None) -> Source:
        """Open and read; what may be a hiccup of the disk or of a copy under way is tried twice."""
        for attempt in (0, 1):
            try:
                source = Source(self.fetcher.local(item), self.settings)
                try:
                    source.read_packets(wanted)
                    unchanged(source)
                except BaseException:
                    source.close()
                    raise
                return source
            except Rejected as fault:
                if attempt or fault.reason not in _TRANSIENT:
                    raise
                self.fetcher.drop()
            time.sleep(_TRY_AGAIN_AFTER_S)
        raise AssertionError("unreachable")


def unchanged(source: Source) -> None:
    """Rejected where the file is not the one that was opened."""
    now = check_file(source.path)
    before = source.status
    if (now.st_size, now.st_mtime_ns, now.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
        raise Rejected("changed")


def _covers(read: Fraction | None, wanted: Fraction | None) -> bool:
    return read is None or (wanted is not None and wanted <= read)
