"""Videos to clips: list the inputs, leave out what is done, keep the workers busy, write the manifest."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, Interrupted, UsageFault
from kdctool.files import disk_faults, locked
from kdctool.media import binary, inputs
from kdctool.media.ledger import Ledger, forget
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.rows import members
from kdctool.media.sample import Estimate, estimate
from kdctool.media.settings import Item, Settings, Tools
from kdctool.progress import bar, say

SYNC_EVERY_S = 30.0
_MODALITIES = {"audio", "video"}


@dataclass(frozen=True)
class Summary:
    """What an extraction found, left out and made."""

    out: Path
    num_inputs: int
    num_bytes: int
    """Of the inputs that are not done."""
    num_todo: int
    """Inputs that were not done when the command began."""
    num_ignored: int
    num_duplicates: int
    num_absent: int = 0
    """Inputs whose clips are in the folder, but which were not given this time."""
    num_made: int = 0
    """Rows made by this command."""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of the manifest by status."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by reason, the most frequent first."""
    flags: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, int] = field(default_factory=dict)
    """Clips that were kept without sound or without picture."""
    num_same_bytes: int = 0
    """Sources that are copies of another one, to the byte."""
    num_look_alike: int = 0
    """Groups of clips of different sources that look alike."""
    is_dry_run: bool = False
    estimate: Estimate | None = None
    """Of a dry run: what is to do costs, told from a sample."""

    @property
    def clips_per_s(self) -> float:
        return self.num_made / self.seconds if self.seconds else 0.0


def run(
    videos: Path,
    out: Path,
    settings: Settings,
    *,
    workers: int | None = None,
    retry_quarantined: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    max_bad: float = 1.0,
) -> Summary:
    """Extract what is not done yet from `videos` into `out`.

    DataFault when nothing is usable, or when more than the share `max_bad` of the rows is quarantined; the
    manifest is written all the same.
    """
    settings.check()
    found = inputs.find(videos)
    _check_apart(videos, out)
    tools = _tools(settings)
    ledger = _loaded(out, settings, found, overwrite)
    sizes = {item.key: _size(item) for item in found.items}
    todo = ledger.todo(found.items, sizes, retry_quarantined)
    num_workers = workers or _num_cores()
    if dry_run:
        told = estimate([item for item, _ in todo], settings, tools, num_workers)
        return replace(_summary(out, found, ledger, sizes, todo), is_dry_run=True, estimate=told)
    with locked(out), _stopped_by_signals():
        if overwrite:
            with disk_faults(out):
                forget(out)
        ledger = _loaded(out, settings, found, overwrite)  # Another command may have ended meanwhile.
        damaged = ledger.drop_damaged()
        if damaged:
            say(f"{damaged} clips of an interrupted run are not whole and are made again")
        todo = ledger.todo(found.items, sizes, retry_quarantined)
        began, num_made = time.monotonic(), 0
        if todo:
            with disk_faults(out):
                ledger.open(settings)
            try:
                with Pool(min(num_workers, len(todo)), out, settings, tools) as pool:
                    num_made = _extract(pool, ledger, sizes, todo)
            except OSError:
                with disk_faults(out, needed=_still_needed(ledger, settings, todo)):
                    raise
        with disk_faults(out):
            ledger.close(found.items, settings)
    done = _summary(out, found, ledger, sizes, todo, num_made=num_made, seconds=time.monotonic() - began)
    _judge(done, max_bad)
    return done


def _check_apart(videos: Path, out: Path) -> None:
    """The output may not lie in the input: the next run would find its own clips there."""
    source, target = Path(os.path.realpath(videos)), Path(os.path.realpath(out))
    if videos.is_dir() and (source == target or source in target.parents):
        raise UsageFault(f"the output {out} lies inside the input {videos}", "name a folder outside of it")


def _tools(settings: Settings) -> Tools:
    timeout_s = 60.0 + 6 * settings.window_s
    if settings.decoder == "pyav":
        return Tools(clip_timeout_s=timeout_s)
    path = binary.find()
    return Tools(path, binary.version(path), timeout_s)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loaded(out: Path, settings: Settings, found: inputs.Inputs, overwrite: bool) -> Ledger:
    ledger = Ledger(out)
    ledger.load()
    if overwrite:
        return Ledger(out)
    ledger.check_settings(settings)
    known = ledger.finished.keys() | ledger.started.keys()
    if known and known.isdisjoint(item.key for item in found.items):
        raise UsageFault(
            f"{out} holds clips of other videos, of none that is given now", "name another folder, or --overwrite"
        )
    return ledger


def _size(item: Item) -> int:
    """Bytes of an input; by them a rerun notices that it changed. -1 where there is no file."""
    try:
        return os.stat(item.path).st_size
    except OSError:
        return -1


def _extract(pool: Pool, ledger: Ledger, sizes: dict[str, int], todo: list[tuple[Item, frozenset[int]]]) -> int:
    """Run the pool and note what it makes; return the number of rows."""
    num_made = num_bad = 0
    began = synced = time.monotonic()
    done_before = {item.key: done for item, done in todo}
    with bar("extract", len(todo), "videos") as progress:
        for item, row in pool.run(Task(item, done) for item, done in todo):
            if row is None:
                ledger.finish_input(item, sizes[item.key], done_before[item.key])
                rate = num_made / max(time.monotonic() - began, 1e-3)
                progress.advance(note=f"{rate:.1f} clips/s" + (f", {num_bad} quarantined" if num_bad else ""))
            else:
                ledger.note(item, sizes[item.key], row)
                num_made += 1
                num_bad += row["status"] == "quarantined"
            if time.monotonic() - synced > SYNC_EVERY_S:
                ledger.sync()
                synced = time.monotonic()
    return num_made


def _still_needed(ledger: Ledger, settings: Settings, todo: list[tuple[Item, frozenset[int]]]) -> int:
    """About how many bytes the inputs that are not done will take: as many as those that are, per input."""
    clips = [row for row in ledger.rows.values() if row["frames"] or row["audio"]]
    some = clips[:50]
    size = sum(os.path.getsize(ledger.out / name) for row in some for name in members(row)) / max(len(some), 1)
    if not some:
        sound = 2 * settings.sample_rate * settings.window_s
        size = len(settings.moments(Fraction(settings.window_s))) * settings.size**2 / 4 + sound
    left = sum(item.key not in ledger.finished for item, _ in todo)
    return round(size * left * max(1.0, len(clips) / max(len(ledger.finished), 1)))


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the command as Ctrl-C does: every finished clip is noted, the next run goes on."""
    again = "the same command goes on where it stopped"

    def stop(number: int, _: Any) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}", again)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)} if is_main else {}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", again, ctrl_c=True) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(
    out: Path,
    found: inputs.Inputs,
    ledger: Ledger,
    sizes: dict[str, int],
    todo: list[tuple[Item, frozenset[int]]],
    num_made: int = 0,
    seconds: float = 0.0,
) -> Summary:
    rows = ledger.rows.values()
    usable = [row for row in rows if row["status"] != "quarantined"]
    given = {item.key for item in found.items}
    return Summary(
        out=out,
        num_inputs=len(found.items),
        num_bytes=sum(max(0, sizes[item.key]) for item, _ in todo),
        num_todo=len(todo),
        num_ignored=found.num_ignored,
        num_duplicates=found.num_duplicates,
        num_absent=sum(key not in given for key in ledger.finished),
        num_made=num_made,
        seconds=seconds,
        counts=dict(Counter(row["status"] for row in rows)),
        reasons=dict(Counter(row["reason"] for row in rows if row["status"] == "quarantined").most_common()),
        flags=dict(Counter(flag for row in rows if row["status"] == "flagged" for flag in row["reason"].split("+"))),
        lacking=dict(Counter(f"without {kind}" for row in usable for kind in _MODALITIES - {*row["modalities"]})),
        num_same_bytes=sum(len(group["sources"]) - 1 for group in ledger.duplicates.get("same_bytes", [])),
        num_look_alike=len(ledger.duplicates.get("look_alike", [])),
    )


def _judge(done: Summary, max_bad: float) -> None:
    num_bad, num_rows = done.counts.get("quarantined", 0), sum(done.counts.values())
    told = ", ".join(f"{count} {reason}" for reason, count in done.reasons.items())
    look = f"{done.out / 'quarantine.jsonl'} says why for each; --retry-quarantined tries them again"
    if num_bad == num_rows:
        raise DataFault(f"none of {num_rows} clips is usable: {told}", look)
    if num_bad > max_bad * num_rows:
        raise DataFault(f"{num_bad} of {num_rows} clips are quarantined, more than --max-bad {max_bad:g}: {told}", look)
