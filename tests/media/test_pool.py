"""A worker's death costs one retry, a second death one clip; nothing outlives the pool."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kdctool.media import binary
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.settings import Item, Settings, Tools

SETTINGS = Settings(size=64)


def workers_of(pid: int) -> list[int]:
    """Worker processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_child = entry.name.isdigit() and f"PPid:\t{pid}\n" in (entry / "status").read_text()
            if is_child and b"kdctool.media.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Killer:
    """Kills a pool's workers as often as told, each time one has begun a clip."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        original = Pool._give

        def give(pool: Pool, worker: object, task: Task) -> None:
            original(pool, worker, task)  # type: ignore[arg-type]
            if self.left and worker.is_ready:  # type: ignore[attr-defined]
                self.left -= 1
                os.kill(worker.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]

        monkeypatch.setattr(Pool, "_give", give)


def rows_of(tasks: list[Task], out: Path, size: int = 1, tools: Tools | None = None) -> tuple[list[dict], list[str]]:
    path = binary.find()
    with Pool(size, out, SETTINGS, tools or Tools(path, "test")) as pool:
        events = list(pool.run(tasks))
    return [row for _, row in events if row is not None], [item.source for item, row in events if row is None]


@pytest.fixture
def tasks(plain: Path, tmp_path: Path) -> list[Task]:
    items = []
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(plain.read_bytes())
        items.append(Item(str(tmp_path / name), name))
    return [Task(item) for item in items]


def test_every_input_ends_and_no_worker_is_left(tasks: list[Task], tmp_path: Path) -> None:
    rows, ended = rows_of(tasks, tmp_path / "out", size=2)
    assert sorted(ended) == ["a.mp4", "b.mp4", "c.mp4"]
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["decoder"] for row in rows} == {"pyav"}
    assert workers_of(os.getpid()) == []


def test_a_killed_worker_costs_nothing_but_time(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Killer(monkeypatch, 1)
    rows, ended = rows_of(tasks, tmp_path / "out")
    assert sorted(ended) == ["a.mp4", "b.mp4", "c.mp4"]
    assert sorted(row["status"] for row in rows) == ["ok"] * 3


def test_a_worker_that_dies_on_a_clip_leaves_it_to_ffmpeg(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, killed = Pool._listen, []

    def listen(pool: Pool, worker):  # type: ignore[no-untyped-def]
        yield from original(pool, worker)
        if (
            worker.task is not None
            and worker.start_ms is not None
            and worker.task.item.source == "b.mp4"
            and not killed
        ):
            killed.append(os.kill(worker.process.pid, signal.SIGKILL))

    monkeypatch.setattr(Pool, "_listen", listen)
    rows, _ = rows_of(tasks, tmp_path / "out")
    assert {row["source"]: row["decoder"] for row in rows} == {
        "a.mp4": "pyav",
        "b.mp4": "ffmpeg, after pyav died",
        "c.mp4": "pyav",
    }


def test_two_deaths_cost_one_clip(tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pool._listen

    def listen(pool: Pool, worker):  # type: ignore[no-untyped-def]
        yield from original(pool, worker)
        if worker.task is not None and worker.start_ms is not None and worker.task.item.source == "b.mp4":
            worker.process.kill()

    monkeypatch.setattr(Pool, "_listen", listen)
    rows, ended = rows_of(tasks, tmp_path / "out")
    assert sorted(ended) == ["a.mp4", "b.mp4", "c.mp4"]
    assert {row["source"]: row["reason"] for row in rows} == {"a.mp4": "", "b.mp4": "decoder_crash", "c.mp4": ""}


def test_a_worker_that_hangs_is_killed_and_its_clip_named(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Pool._listen

    def listen(pool: Pool, worker):  # type: ignore[no-untyped-def]
        yield from original(pool, worker)
        if worker.task is not None and worker.start_ms is not None and worker.task.item.source == "b.mp4":
            os.kill(worker.process.pid, signal.SIGSTOP)

    monkeypatch.setattr(Pool, "_listen", listen)
    monkeypatch.setattr("kdctool.media.pool._GRACE_S", 1.0)
    rows, ended = rows_of(tasks, tmp_path / "out", tools=Tools(binary.find(), "test", clip_timeout_s=2.0))
    assert sorted(ended) == ["a.mp4", "b.mp4", "c.mp4"]
    assert {row["source"]: row["reason"] for row in rows} == {"a.mp4": "", "b.mp4": "timeout", "c.mp4": ""}


def test_leaving_the_pool_early_ends_its_workers(tasks: list[Task], tmp_path: Path) -> None:
    with Pool(2, tmp_path / "out", SETTINGS, Tools(binary.find(), "test")) as pool:
        next(pool.run(tasks))
        assert workers_of(os.getpid())
    assert workers_of(os.getpid()) == []


def test_a_worker_dies_with_its_parent(tasks: list[Task], tmp_path: Path) -> None:
    pids: list[int] = []

    def start_and_leave() -> None:
        pool = Pool(1, tmp_path / "out", SETTINGS, Tools(binary.find(), "test"))
        pids.append(pool._start().process.pid)
        time.sleep(1.0)

    # The kernel takes the thread that started a process for its parent: the end of the thread is the end of both.
    thread = threading.Thread(target=start_and_leave)
    thread.start()
    thread.join()
    status, deadline = "", time.monotonic() + 5
    while time.monotonic() < deadline and "Z" not in status:
        status = Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[0]
        time.sleep(0.05)
    assert status == "Z"
    os.waitpid(pids[0], 0)
