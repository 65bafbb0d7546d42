"""A worker process: takes inputs from a pipe, gives back rows. A decoder that dies takes only this process with it."""

import contextlib
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection

import av

from kdctool.errors import EnvironmentFault
from kdctool.media import limits
from kdctool.media.clip import extract, is_disk_fault
from kdctool.media.fetch import Fetcher
from kdctool.media.messages import Begin, Broken, End, Fetching, Made, Ready, Task
from kdctool.media.opener import Opener
from kdctool.media.quarantine import Rejected
from kdctool.media.rows import failed
from kdctool.media.settings import Settings, Tools
from kdctool.places import Place


def main(handle: int, parent: int) -> None:
    """Serve until the pipe closes. `handle` is a duplex pipe's descriptor, `parent` the process to die with."""
    limits.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    av.logging.set_level(av.logging.PANIC)
    with contextlib.suppress(EOFError, BrokenPipeError), Connection(handle) as connection:
        pipe = _Pipe(connection)
        out, settings, tools = pipe.recv()
        limits.fence(tools.memory_bytes, tools.file_bytes)
        pipe.send(Ready())
        with Opener(settings, Fetcher(lambda: pipe.send(Fetching()))) as opener:
            while True:
                task, opener.fetcher.folder = pipe.recv()
                _work(pipe, task, out, settings, tools, opener)


class _Pipe:
    """The parent's ear. A download reports from a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self.recv = connection.recv
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: object) -> None:
        with self._lock:
            self._connection.send(message)


def _work(pipe: _Pipe, task: Task, out: Place, settings: Settings, tools: Tools, opener: Opener) -> None:
    item = task.item
    start_ms = item.start_ms

    def begin(start: int) -> None:
        nonlocal start_ms
        start_ms = start
        pipe.send(Begin(start))

    try:
        for row in extract(task, out, settings, tools, begin, opener):
            pipe.send(Made(row))
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        if is_disk_fault(error) or isinstance(error, EnvironmentFault):
            pipe.send(Broken(error))
            return
        if isinstance(error, MemoryError):
            pipe.send(Made(failed(item, start_ms, Rejected("too_large", "more memory than the limit"))))
        else:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(last.filename)}:{last.lineno}"
            pipe.send(
                Made(failed(item, start_ms, Rejected("unexpected_error", f"{type(error).__name__}: {error} ({where})")))
            )
    pipe.send(End())
