"""Videos to clips: list the inputs, leave out what is done, keep the workers busy, write the manifest."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, Interrupted, UsageFault
from kdctool.files import InUse, disk_faults
from kdctool.media import engine as engines
from kdctool.media import inputs, parts, stored
from kdctool.media.engine import Engine, Runner
from kdctool.media.fetch import REASONS_OF_A_STORE
from kdctool.media.home import Home, open_home
from kdctool.media.ledger import DONE, Ledger
from kdctool.media.messages import Task
from kdctool.media.parts import Part
from kdctool.media.rows import is_there, members
from kdctool.media.sample import estimate
from kdctool.media.settings import Settings
from kdctool.places import Place, Remote, parse
from kdctool.progress import bar, say
from kdctool.stages import extract_work
from kdctool.stages.extract_summary import Summary, judge, summarise
from kdctool.stages.extract_work import Todo, Work, blank

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
    _check_alone(part, overwrite, merge)
    videos, out = parse(videos), parse(out)
    for place in (videos, out):
        if isinstance(place, Remote):
            place.check_package()
    work = Work(settings, inputs.find(videos, settings.images), part, packed)
    _check_apart(videos, out)
    tools = extract_work.tools(settings, work.found.items)
    num_workers = workers or extract_work.num_workers(work.found, out)
    with open_home(out) as home:
        home.pull(part)
        ledger = blank(home) if overwrite else work.ledger(home)
        if dry_run:
            todo = work.todo(ledger, retry_quarantined)
            told = estimate([item for item, _ in todo], settings, tools, num_workers)
            return replace(summarise(out, work, ledger, todo), part=str(part or ""), is_dry_run=True, estimate=told)
        with home.held(part), _stopped_by_signals():
            ledger = _begun(home, work, overwrite)
            todo = work.todo(ledger, retry_quarantined)
            if merge and todo:
                raise DataFault(
                    f"{len(todo)} of {len(work.found.items)} inputs are not done, the first is {todo[0][0].source!a}",
                    "run the parts that are missing, or the same command without --merge",
                )
            began, num_made = time.monotonic(), 0
            if todo:
                num_workers = min(num_workers if workers or engine == "local" else len(todo), len(todo))
                pool = engines.open_pool(engine, ray_address, num_workers, out, settings, tools)
                num_made = _make(pool, home, ledger, work, todo)
            waiting = _close(home, ledger, work)
        merged = _merged(home, settings, work.whole) if part and not waiting else None
        work, ledger = merged or (work, ledger)
        done = summarise(out, work, ledger, todo, num_made=num_made, seconds=time.monotonic() - began)
        if ledger.part is None:
            judge(done, max_bad)
        is_merged = (home.notes / DONE).exists()
    return replace(done, part=str(part or ""), is_merged=is_merged, waiting_for=tuple(waiting))


def _check_alone(part: Part | None, overwrite: bool, merge: bool) -> None:
    if part is not None and (overwrite or merge):
        raise UsageFault(
            f"--part {part} does not go with --{'overwrite' if overwrite else 'merge'}: it would touch other parts",
            "delete the folder before the parts start" if overwrite else "--merge comes alone, after all parts",
        )


def _begun(home: Home, work: Work, overwrite: bool) -> Ledger:
    """The notes once the folder is held, without what an interrupted run spoilt: another command may have ended."""
    if overwrite:
        with disk_faults(home.notes):
            home.forget()
        return Ledger(home.notes, clips=home.clips)
    home.pull(work.part)
    ledger = work.ledger(home)
    damaged = ledger.drop_damaged()
    if damaged:
        say(f"{damaged} clips of an interrupted run are not whole and are made again")
    return ledger


def _close(home: Home, ledger: Ledger, work: Work) -> list[int]:
    """Write the manifest, or of a part that it is done; the parts that are not."""
    part = work.part
    with disk_faults(home.notes):
        if part is None:
            ledger.close(work.whole.items, work.settings)
        else:
            ledger.close_part(work.settings)
    home.ended(part)
    if part is None:
        return []
    # Under the lock that parts share: nobody merges meanwhile, so of two that end together one sees both done.
    home.pull(part)
    return parts.missing(home.notes, work.whole.items, ledger.finished, part.count)


def _merged(home: Home, settings: Settings, whole: inputs.Inputs) -> tuple[Work, Ledger] | None:
    """Write the manifest when every input is done. None when not, or when another command is at it."""
    for _ in range(_MERGE_TRIES):
        try:
            with home.held(None):
                home.pull(None)
                if (home.notes / DONE).exists():
                    return None
                work = Work(settings, whole)
                ledger = work.ledger(home)
                if ledger.drop_damaged() or work.todo(ledger):
                    return None
                _close(home, ledger, work)
                return work, ledger
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


def _make(pool: AbstractContextManager[Runner], home: Home, ledger: Ledger, work: Work, todo: Todo) -> int:
    """Make what is to do; the number of rows."""
    with disk_faults(home.notes):
        ledger.open(work.settings)
    home.begun(work.part)
    try:
        with pool as runner:
            return _extract(runner, home, ledger, work, todo)
    except OSError:
        with disk_faults(home.notes, needed=_still_needed(ledger, work.settings, todo)):
            raise


def _extract(pool: Runner, home: Home, ledger: Ledger, work: Work, todo: Todo) -> int:
    """Run the pool and note what it makes; return the number of rows."""
    num_made = num_bad = 0
    began = synced = time.monotonic()
    done_before = {item.key: done for item, done in todo}
    with bar("extract", len(todo), "videos") as progress:
        for item, row in pool.run(Task(item, done) for item, done in todo):
            home.beat()
            if item.is_remote and row is not None and row["reason"] in REASONS_OF_A_STORE:
                stored.check_reachable(work.found.root, item)
            if row is None:
                ledger.finish_input(item, work.sizes[item.key], done_before[item.key])
                rate = num_made / max(time.monotonic() - began, 1e-3)
                progress.advance(note=f"{rate:.1f} clips/s" + (f", {num_bad} quarantined" if num_bad else ""))
            else:
                ledger.note(item, work.sizes[item.key], row)
                num_made += 1
                num_bad += row["status"] == "quarantined"
            if time.monotonic() - synced > SYNC_EVERY_S:
                ledger.sync()
                synced = time.monotonic()
    return num_made


def _still_needed(ledger: Ledger, settings: Settings, todo: Todo) -> int:
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
