"""Keeps one worker process per core busy, and survives their deaths: one clip is lost at most, and tried once more."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from kdctool.errors import EnvironmentFault
from kdctool.media.messages import Begin, Broken, End, Fetching, Made, Ready, Task
from kdctool.media.quarantine import Rejected
from kdctool.media.rows import Row, failed
from kdctool.media.settings import Item, Settings, Tools
from kdctool.places import Place
from kdctool.places.scratch import scratch

_GRACE_S = 30.0
"""A worker is given this much longer than its own limits before it is killed."""
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kdctool.media.worker import main; main({}, {})"


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    pipe: Connection
    task: Task | None = None
    start_ms: int | None = None
    """The clip under work; None while the file is opened and read."""
    made: set[int] = field(default_factory=set)
    """Starts of the task that have their row."""
    deadline: float = float("inf")
    is_ready: bool = False
    copies: Path | None = None
    """Where it puts the inputs that it has to fetch."""


class Pool:
    """Runs tasks in `size` processes. Use as a context manager: leaving it, however, ends every worker."""

    def __init__(self, size: int, out: Place, settings: Settings, tools: Tools) -> None:
        self.size, self.out, self.settings, self.tools = size, out, settings, tools
        self._exit = ExitStack()
        self._scratch: Path | None = None
        self._workers: list[_Worker] = []
        self._again: deque[Task] = deque()
        self._deaths: dict[tuple[str, int | None], int] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            _end(worker)
        self._workers.clear()
        self._exit.close()
        self._scratch = None

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Item, Row | None]]:
        """(input, row) for each row as it is made, and (input, None) when an input is done."""
        todo = iter(tasks)
        for task in todo:
            self._workers.append(self._start())
            self._give(self._workers[-1], task)
            if len(self._workers) == self.size:
                break
        while self._workers:
            due = min(worker.deadline for worker in self._workers)
            ready = wait([worker.pipe for worker in self._workers], max(0.0, min(due - time.monotonic(), 5.0)))
            for worker in list(self._workers):
                if worker.pipe in ready:
                    yield from self._listen(worker)
                elif time.monotonic() > worker.deadline:
                    yield from self._lost(worker, "timeout")
            for worker in list(self._workers):
                if worker.task is None:
                    self._next(worker, todo)

    def _next(self, worker: _Worker, todo: Iterator[Task]) -> None:
        task = self._again.popleft() if self._again else next(todo, None)
        if task is None:
            _end(worker)
            self._workers.remove(worker)
        else:
            self._give(worker, task)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        paths = json.dumps([path or os.getcwd() for path in sys.path])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT.format(theirs.fileno(), os.getpid()), paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            )
        ours.send((self.out, self.settings, self.tools))
        return _Worker(process, ours)

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.task, worker.start_ms, worker.made = task, None, set()
        self._renew(worker)
        if task.item.is_remote and worker.copies is None:
            self._scratch = self._scratch or self._exit.enter_context(scratch())
            worker.copies = self._scratch / str(worker.process.pid)
        with suppress(BrokenPipeError):  # A worker that died idle is noticed when its pipe is read.
            worker.pipe.send((task, worker.copies))

    def _renew(self, worker: _Worker) -> None:
        worker.deadline = time.monotonic() + self.tools.clip_timeout_s + _GRACE_S

    def _listen(self, worker: _Worker) -> Iterator[tuple[Item, Row | None]]:
        assert worker.task is not None
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            yield from self._lost(worker, "decoder_crash")
            return
        self._renew(worker)
        match message:
            case Begin(start_ms):
                worker.start_ms = start_ms
            case Ready():
                worker.is_ready = True
            case Fetching():
                pass
            case Made(row):
                worker.made.add(round(row["start_s"] * 1000))
                yield worker.task.item, row
            case End():
                item, worker.task, worker.deadline = worker.task.item, None, float("inf")
                yield item, None
            case Broken(error):
                raise error

    def _lost(self, worker: _Worker, reason: str) -> Iterator[tuple[Item, Row | None]]:
        """Replace a worker that died or hangs. Its clip is tried once more, with ffmpeg; one that hangs is not."""
        assert worker.task is not None
        task, start_ms = worker.task, worker.start_ms
        _end(worker)
        if not worker.is_ready:
            raise EnvironmentFault(
                f"a worker process ended before it began ({_exit_text(worker)})",
                f"see what `{sys.executable} -c 'import kdctool.media.worker'` says; is there enough memory?",
            )
        self._workers[self._workers.index(worker)] = self._start()
        blamed = (task.item.key, start_ms)
        self._deaths[blamed] = self._deaths.get(blamed, 0) + 1
        made = worker.made
        if reason == "decoder_crash" and self._deaths[blamed] == 1:
            retried = task.with_ffmpeg | ({start_ms} if start_ms is not None and self.tools.ffmpeg else set())
            self._again.append(replace(task, done=task.done | made, with_ffmpeg=retried))
            return
        detail = f"longer than {self.tools.clip_timeout_s:.0f} s" if reason == "timeout" else _exit_text(worker)
        at = task.item.start_ms if start_ms is None else start_ms
        yield task.item, failed(task.item, at, Rejected(reason, detail))
        if start_ms is None:
            yield task.item, None
        else:
            self._again.append(replace(task, done=task.done | made | {start_ms}))


def _exit_text(worker: _Worker) -> str:
    code = worker.process.returncode
    return signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    if worker.process.poll() is None and worker.task is not None:
        worker.process.kill()
    try:
        worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()
    if worker.copies is not None:
        shutil.rmtree(worker.copies, ignore_errors=True)
