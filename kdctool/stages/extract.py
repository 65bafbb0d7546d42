"""Videos to clips: list the inputs, leave out what is done, keep the workers busy, write the manifest."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, Interrupted, UsageFault
from kdctool.files import InUse, disk_faults
from kdctool.media import binary, inputs, parts, stored
from kdctool.media import engine as engines
from kdctool.media.engine import Engine, Runner
from kdctool.media.fetch import REASONS_OF_A_STORE
from kdctool.media.home import Home, open_home
from kdctool.media.ledger import DONE, Ledger
from kdctool.media.messages import Task
from kdctool.media.parts import Part
from kdctool.media.rows import is_there, members
from kdctool.media.sample import estimate
from kdctool.media.settings import Item, Settings, Tools
from kdctool.places import Place, Remote, parse
from kdctool.progress import bar, say
from kdctool.stages.extract_summary import Summary, judge, summarise

SYNC_EVERY_S = 30.0
_MERGE_TRIES, _MERGE_EVERY_S = 20, 0.5


def run(
    videos: str | Place,
    out: str | Place,
    settings: Settings,
    *,
    workers: int | None = None,
    retry_quarantined: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    max_bad: float = 1.0,
    part: Part | None = None,
    merge: bool = False,
    engine: Engine = "local",
    ray_address: str = "",
    packed: frozenset[str] = frozenset(),
) -> Summary:
    """Extract what is not done yet from `videos` into `out`, or a `part` of it; the last part writes the manifest.

    DataFault when nothing is usable, or when more than the share `max_bad` of the rows is quarantined; the
    manifest is written all the same. `merge` makes no clips: DataFault when some are not done.
    Clips in `packed` (uids) count as there: they are in shards.
    """
    settings.check()
    engines.check(engine, ray_address)
    if part is not None and (overwrite or merge):
        raise UsageFault(
            f"--part {part} does not go with --{'overwrite' if overwrite else 'merge'}: it would touch other parts",
            "delete the folder before the parts start" if overwrite else "--merge comes alone, after all parts",
        )
    videos, out = parse(videos), parse(out)
    for place in (videos, out):
        if isinstance(place, Remote):
            place.check_package()
    whole = inputs.find(videos, settings.images)
    found = part.of(whole) if part else whole
    _check_apart(videos, out)
    tools = _tools(settings, found.items)
    sizes = {item.key: size_of(item) for item in found.items}
    num_workers = workers or _num_workers(found, out)
    with open_home(out) as home:
        home.pull(part)
        ledger = _loaded(home, settings, whole, overwrite, part, packed)
        todo = ledger.todo(found.items, sizes, retry_quarantined)
        if dry_run:
            told = estimate([item for item, _ in todo], settings, tools, num_workers)
            plan = summarise(out, found, ledger, sizes, todo)
            return replace(plan, part=str(part or ""), is_dry_run=True, estimate=told)
        with home.held(part), _stopped_by_signals():
            if overwrite:
                with disk_faults(home.notes):
                    home.forget()
                ledger = Ledger(home.notes, clips=home.clips)
            home.pull(part)
            if not overwrite:  # Another command may have ended meanwhile.
                ledger = _loaded(home, settings, whole, overwrite, part, packed)
            damaged = ledger.drop_damaged()
            if damaged:
                say(f"{damaged} clips of an interrupted run are not whole and are made again")
            todo = ledger.todo(found.items, sizes, retry_quarantined)
            if merge and todo:
                raise DataFault(
                    f"{len(todo)} of {len(found.items)} inputs are not done, the first is {todo[0][0].source!a}",
                    "run the parts that are missing, or the same command without --merge",
                )
            began, num_made = time.monotonic(), 0
            if todo:
                with disk_faults(home.notes):
                    ledger.open(settings)
                home.begun(part)
                num_workers = min(num_workers if workers or engine == "local" else len(todo), len(todo))
                try:
                    with engines.open_pool(engine, ray_address, num_workers, out, settings, tools) as pool:
                        num_made = _extract(pool, home, ledger, sizes, todo, found.root)
                except OSError:
                    with disk_faults(home.notes, needed=_still_needed(ledger, settings, todo)):
                        raise
            waiting = _close(home, ledger, part, found, whole, settings)
        merged = _merged(home, settings, whole) if part and not waiting else None
        if merged is not None:
            ledger, found, sizes = merged, whole, {item.key: size_of(item) for item in whole.items}
        done = summarise(out, found, ledger, sizes, todo, num_made=num_made, seconds=time.monotonic() - began)
        if ledger.part is None:
            judge(done, max_bad)
        is_merged = (home.notes / DONE).exists()
    return replace(done, part=str(part or ""), is_merged=is_merged, waiting_for=tuple(waiting))


def _close(
    home: Home, ledger: Ledger, part: Part | None, found: inputs.Inputs, whole: inputs.Inputs, settings: Settings
) -> list[int]:
    """Write the manifest, or of a part that it is done; the parts that are not."""
    with disk_faults(home.notes):
        if part is None:
            ledger.close(found.items, settings)
        else:
            ledger.close_part(settings)
    home.ended(part)
    if part is None:
        return []
    # Under the lock that parts share: nobody merges meanwhile, so of two that end together one sees both done.
    home.pull(part)
    return parts.missing(home.notes, whole.items, ledger.finished, part.count)


def _merged(home: Home, settings: Settings, whole: inputs.Inputs) -> Ledger | None:
    """Write the manifest when every input is done. None when not, or when another command is at it."""
    for _ in range(_MERGE_TRIES):
        try:
            with home.held(None):
                home.pull(None)
                if (home.notes / DONE).exists():
                    return None
                ledger = _loaded(home, settings, whole, overwrite=False)
                sizes = {item.key: size_of(item) for item in whole.items}
                if ledger.drop_damaged() or ledger.todo(whole.items, sizes, retry=False):
                    return None
                with disk_faults(home.notes):
                    ledger.close(whole.items, settings)
                home.ended(None)
                return ledger
        except InUse:  # A part that is about to end, or to merge.
            time.sleep(_MERGE_EVERY_S)
    return None


def _check_apart(videos: Place, out: Place) -> None:
    """The output may not lie in the input: the next run would find its own clips there."""
    if isinstance(videos, Remote) or isinstance(out, Remote):
        listed = videos.name.lower().endswith(inputs.LIST_SUFFIXES)
        inside = not listed and f"{out}/".startswith(f"{videos}/")
    else:
        source, target = Path(os.path.realpath(videos)), Path(os.path.realpath(out))
        inside = videos.is_dir() and (source == target or source in target.parents)
    if inside:
        raise UsageFault(f"the output {out} lies inside the input {videos}", "name a folder outside of it")


def _tools(settings: Settings, items: Iterable[Item]) -> Tools:
    timeout_s = 60.0 + 6 * settings.window_s
    largest = max([Tools.file_bytes, *(item.stored_bytes or 0 for item in items)])
    if settings.decoder == "pyav" or settings.images:
        return Tools(clip_timeout_s=timeout_s, file_bytes=largest)
    path = binary.find()
    return Tools(path, binary.version(path), timeout_s, file_bytes=largest)


def _num_workers(found: inputs.Inputs, out: Place) -> int:
    """One per core; two where half of the time is waiting for a store."""
    is_remote = isinstance(out, Remote) or any(item.is_remote for item in found.items)
    return _num_cores() * (2 if is_remote else 1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loaded(
    home: Home,
    settings: Settings,
    found: inputs.Inputs,
    overwrite: bool,
    part: Part | None = None,
    packed: frozenset[str] = frozenset(),
) -> Ledger:
    out = home.notes
    ledger = Ledger(out, part, packed, home.clips)
    ledger.load()
    if overwrite:
        return Ledger(out, clips=home.clips)
    if part:
        parts.check_count(out, part)
    ledger.check_settings(settings)
    known = ledger.finished.keys() | ledger.started.keys()
    if known and known.isdisjoint(item.key for item in found.items):
        raise UsageFault(
            f"{out} holds clips of other videos, of none that is given now", "name another folder, or --overwrite"
        )
    return ledger


def size_of(item: Item) -> int:
    """Bytes of an input; by them a rerun notices that it changed. -1 where there is no file."""
    if item.stored_bytes is not None:
        return item.stored_bytes
    try:
        return os.stat(item.path).st_size
    except OSError:
        return -1


def _extract(
    pool: Runner,
    home: Home,
    ledger: Ledger,
    sizes: dict[str, int],
    todo: list[tuple[Item, frozenset[int]]],
    root: Remote | None,
) -> int:
    """Run the pool and note what it makes; return the number of rows."""
    num_made = num_bad = 0
    began = synced = time.monotonic()
    done_before = {item.key: done for item, done in todo}
    with bar("extract", len(todo), "videos") as progress:
        for item, row in pool.run(Task(item, done) for item, done in todo):
            home.beat()
            if item.is_remote and row is not None and row["reason"] in REASONS_OF_A_STORE:
                stored.check_reachable(root, item)
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
    some = [row for row in clips[:50] if is_there(ledger.out, row)]
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
