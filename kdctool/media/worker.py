"""A worker process: takes inputs from a pipe, gives back rows. A decoder that dies takes only this process with it."""

import contextlib
import os
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import av

from kdctool.media import limits
from kdctool.media.clip import extract, is_disk_fault
from kdctool.media.messages import Begin, Broken, End, Made, Ready, Task
from kdctool.media.opener import Opener
from kdctool.media.quarantine import Rejected
from kdctool.media.rows import failed
from kdctool.media.settings import Settings, Tools

LARGEST_FILE = 1 << 30


def main(handle: int, parent: int) -> None:
    """Serve until the pipe closes. `handle` is a duplex pipe's descriptor, `parent` the process to die with."""
    limits.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    av.logging.set_level(av.logging.PANIC)
    with contextlib.suppress(EOFError, BrokenPipeError), Connection(handle) as pipe:
        out, settings, tools = pipe.recv()
        limits.fence(tools.memory_bytes, LARGEST_FILE)
        pipe.send(Ready())
        with Opener(settings) as opener:
            while True:
                _work(pipe, pipe.recv(), out, settings, tools, opener)


def _work(pipe: Connection, task: Task, out: Path, settings: Settings, tools: Tools, opener: Opener) -> None:
    item = task.item
    start_ms = item.start_ms

    def begin(start: int) -> None:
        nonlocal start_ms
        start_ms = start
        pipe.send(Begin(start))

    try:
        for row in extract(item, out, settings, tools, task.done, task.with_ffmpeg, begin, opener):
            pipe.send(Made(row))
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        if is_disk_fault(error):
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
