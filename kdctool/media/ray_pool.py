"""The work items on a Ray cluster. Every node needs kdctool, and must see videos and output under the same names.

On a node a worker process of the local pool does the work, so limits, blame and second tries are the same as there; a
Ray worker that is killed takes only the clip under work with it, and that one is made again.
"""

import importlib
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdctool import __version__
from kdctool.errors import EnvironmentFault
from kdctool.media import binary
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.rows import Row
from kdctool.media.settings import Item, Settings, Tools
from kdctool.places import Place, parse

_LARGEST_BATCH = 16
"""Inputs in one Ray task: a worker process is started for each task, which costs as much as two or three clips."""
_MOST_LOSSES = 4
"""So many workers may be lost one after another without a single clip made in between."""


@dataclass
class _Batch:
    tasks: dict[str, Task]
    """What is left of it, by input."""
    num_losses: int = 0


class RayPool:
    """Runs tasks on the cluster at `address`, at most `size` at a time, and never more than it has cores.

    Without an address: the cluster of RAY_ADDRESS, or else a Ray of its own on this machine.
    """

    def __init__(self, address: str, size: int, out: Place, settings: Settings, tools: Tools) -> None:
        self.address, self.size = address, size
        self.out = out.absolute() if isinstance(out, Path) else out
        self.settings, self.tools = settings, tools
        self._running: dict[Any, _Batch] = {}
        self._is_ours = False

    def __enter__(self) -> "RayPool":
        ray = _ray()
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            is_main = threading.current_thread() is threading.main_thread()
            before = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=self.address or None, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = f"the Ray cluster at {self.address}" if self.address else "Ray"
                raise EnvironmentFault(
                    f"cannot reach {where}: {str(error).strip().splitlines()[0]}",
                    "does `ray status` work here? Its versions of Ray and Python must be those of this machine",
                ) from error
            if is_main:  # Ray would end this process before the notes are written.
                signal.signal(signal.SIGTERM, before)
            self._is_ours = True
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise EnvironmentFault("the Ray cluster has no cores", "start a node with `ray start --num-cpus`")
        self.size = min(self.size, cores)
        return self

    def __exit__(self, *_: object) -> None:
        ray = _ray()
        for stream in self._running:
            ray.cancel(stream, force=True)
        self._running.clear()
        if self._is_ours:
            ray.shutdown()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Item, Row | None]]:
        """(input, row) for each row as it is made, and (input, None) when an input is done."""
        ray = _ray()
        # max_retries 0: Ray's own retry would repeat clips that are noted already.
        remote = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(work)
        given = ray.put((str(self.out), self.settings, self.tools, __version__))
        todo = deque(self._batches(list(tasks)))
        while todo or self._running:
            while todo and len(self._running) < self.size:
                batch = todo.popleft()
                tasks_left = [*batch.tasks.values()]
                files = [task.item.path for task in tasks_left if not task.item.is_remote]
                seen = [path for path in files if os.path.lexists(path)]
                self._running[remote.remote(tasks_left, seen, given)] = batch
            for stream in ray.wait(list(self._running), num_returns=1)[0]:
                try:
                    message = ray.get(next(stream))
                except StopIteration:
                    del self._running[stream]
                except ray.exceptions.RayTaskError:  # A fault of ours, not of the cluster.
                    raise
                except ray.exceptions.RayError as error:
                    todo.append(self._lost(stream, error))
                else:
                    yield self._heard(self._running[stream], message)

    def _batches(self, tasks: list[Task]) -> Iterator[_Batch]:
        size = max(1, min(_LARGEST_BATCH, len(tasks) // (4 * self.size)))
        for first in range(0, len(tasks), size):
            yield _Batch({task.item.key: task for task in tasks[first : first + size]})

    def _heard(self, batch: _Batch, message: dict[str, Any]) -> tuple[Item, Row | None]:
        if "fault" in message:
            raise EnvironmentFault(*message["fault"])
        if "disk" in message:
            raise OSError(*message["disk"])
        task, row = batch.tasks[message["input"]], message["row"]
        batch.num_losses = 0
        if row is None:
            del batch.tasks[message["input"]]
        else:
            batch.tasks[message["input"]] = replace(task, done=task.done | {round(row["start_s"] * 1000)})
        return task.item, row

    def _lost(self, stream: Any, error: Exception) -> _Batch:
        """What a worker that is gone had left to do."""
        batch = self._running.pop(stream)
        batch.num_losses += 1
        if batch.num_losses > _MOST_LOSSES:
            first = next(iter(batch.tasks.values())).item.source
            raise EnvironmentFault(
                f"Ray lost {batch.num_losses} workers at {first!a}, one after another ({type(error).__name__})",
                "have the nodes enough memory? The same command goes on where it stopped",
            )
        return batch


def _ray() -> Any:
    return importlib.import_module("ray")


def work(tasks: list[Task], seen: list[str], given: tuple[str, Settings, Tools, str]) -> Iterator[dict[str, Any]]:
    """On a node: the messages of a batch, small dictionaries. Clips go straight to the output folder.

    `seen` are the files that are there for the machine that asks.
    """
    target, settings, tools, version = given
    out = parse(target)
    fault = _unfit(seen, out, tools, version)
    if fault:
        yield {"fault": fault}
        return
    try:
        here = replace(tools, ffmpeg=binary.find()) if tools.ffmpeg else tools
        with Pool(1, out, settings, here) as pool:
            for item, row in pool.run(tasks):
                yield {"input": item.key, "row": row}
    except EnvironmentFault as error:
        yield {"fault": (f"{socket.gethostname()}: {error.cause}", error.next_step)}
    except OSError as error:
        yield {"disk": (error.errno, error.strerror, error.filename)}


def _unfit(seen: list[str], out: Place, tools: Tools, version: str) -> tuple[str, str] | None:
    """Why this node would give other clips than the machine that asks, or none."""
    node = socket.gethostname()
    if version != __version__:
        return f"{node} has kdctool {__version__}, not {version}", "install the same version on every node"
    if tools.ffmpeg:
        try:
            found = binary.version(binary.find())
        except EnvironmentFault as error:
            return f"{node}: {error.cause}", error.next_step
        if found != tools.ffmpeg_version:
            return f"{node} has ffmpeg {found}, not {tools.ffmpeg_version}", "use the same ffmpeg on every node"
    if isinstance(out, Path) and not out.is_dir():
        return f"{node} does not see {out}", "name a folder that all nodes share, or a URL"
    lost = [path for path in seen if not os.path.lexists(path)]
    if lost:
        return f"{node} does not see {lost[0]!a}", "put the videos where all nodes find them under the same path"
    return None
