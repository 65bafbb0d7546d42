"""`kdctool sweep`: the cells of a study, one after the other, some side by side, or one of them; then its table.

A cell goes on where it stopped, and so does the study: the same command again runs what is missing.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdctool.errors import Interrupted, KdctoolError, UsageFault
from kdctool.files import write_bytes, write_json
from kdctool.progress import bar, say
from kdctool.recipe.study import Study
from kdctool.stages import sweep_cell, sweep_jobs, sweep_notes, sweep_plan, sweep_table
from kdctool.stages.sections import Section
from kdctool.stages.sweep_best import RESULTS
from kdctool.stages.sweep_cell import Record
from kdctool.stages.sweep_plan import Cell, Plan
from kdctool.stages.sweep_values import flops_of

AGAIN = "the same command goes on where it stopped"
TABLE = "table.md"


@dataclass(frozen=True)
class Swept:
    """How a study stands."""

    out: Path
    tables: list[Section]
    notes: list[str]
    payload: dict[str, Any]
    """The contents of results.json; of a dry run, its plan."""
    states: dict[str, str]
    """Cell -> state."""
    plots: list[Path]
    fault: KdctoolError | None
    """Cells that failed, to be raised when the tables are told."""


def run(
    study: Study,
    *,
    shards: Path | None = None,
    out: Path | None = None,
    overrides: list[str] | None = None,
    arms: list[str] | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    cell: str = "",
    summary_only: bool = False,
    dry_run: bool = False,
    amend: str = "",
    minutes: float | None = None,
    device_name: str = "auto",
    workers: int | None = None,
    arguments: list[str] | None = None,
) -> Swept:
    """Run the cells that are not done, then write results.json, table.md and the plot.

    `cell` is i/n: every n-th cell from the i-th on, and no table. `arguments` is the command line that `jobs`
    processes get, with --cell. After `minutes` the work is saved and ends with exit code 75.
    """
    plan = sweep_plan.make_plan(study, shards=shards, out=out, overrides=overrides or [], arms=arms or [], seeds=seeds)
    mine = part_of(plan.todo, cell)
    if dry_run:
        return _planned(plan, mine)
    amendments = sweep_plan.guard(plan, amend)
    if not summary_only:
        with stopped(minutes):
            if jobs > 1 and not cell:
                sweep_jobs.run(plan, mine, jobs, arguments or [])
            else:
                _one_by_one(plan, mine, device_name, workers)
    return _summary(plan, amendments, is_part=bool(cell))


def part_of(cells: list[Cell], part: str) -> list[Cell]:
    """The cells of part i of n, from 1: all of them without a part, a single one where n is their number."""
    if not part:
        return cells
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageFault(
            f"--cell {part!a} is no part", f"write i/n with i from 1 to n, for example --cell 1/{len(cells)}"
        )
    if int(match[2]) > len(cells):
        raise UsageFault(f"--cell {part}: the study has {len(cells)} cells", f"--cell i/{len(cells)} is one cell each")
    return cells[int(match[1]) - 1 :: int(match[2])]


@contextmanager
def stopped(minutes: float | None = None) -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the study as they end a training, between trainings too; so do `minutes`."""

    def stop(number: int, _: Any) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}", AGAIN)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    timer = threading.Timer(60 * (minutes or 0), os.kill, (os.getpid(), signal.SIGUSR1))
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _one_by_one(plan: Plan, cells: list[Cell], device_name: str, workers: int | None) -> None:
    with bar(f"study {plan.study.name}", len(cells), "cells") as progress:
        for cell in cells:
            try:
                sweep_cell.run(plan, cell, device_name=device_name, workers=workers)
            except KdctoolError as error:
                if sweep_cell.hits_every_cell(error):
                    raise
                say(f"cell {cell.name} failed: {error.cause}; the others go on")
            progress.advance(1, cell.name)


def _summary(plan: Plan, amendments: list[dict[str, Any]], *, is_part: bool) -> Swept:
    records = {cell.name: sweep_cell.look(plan, cell) for cell in plan.cells}
    states = {name: record.state for name, record in records.items()}
    fault = _fault(plan, records)
    if is_part:
        return Swept(plan.out, [], [], {"states": states}, states, [], fault)
    told = sweep_table.make(plan, records, amendments)
    write_json(plan.out / RESULTS, told.payload)
    write_bytes(plan.out / TABLE, told.markdown().encode())
    plots = _plots(plan, told)
    return Swept(plan.out, told.sections, told.notes, told.payload, states, plots, fault)


def _plots(plan: Plan, told: sweep_table.Told) -> list[Path]:
    if not told.payload["arms"]:
        return []
    from kdctool.stages import sweep_plot

    return sweep_plot.draw(told.payload, plan.out)


def _fault(plan: Plan, records: dict[str, Record]) -> KdctoolError | None:
    """What to say of cells that ended in different states; missing cells are no fault, the table says n."""
    failed = {name: record for name, record in records.items() if record.state == "failed"}
    if not failed:
        return None
    counts: dict[str, int] = {}
    for record in records.values():
        counts[record.state] = counts.get(record.state, 0) + 1
    ended = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    rows = "\n  ".join(f"{name}: {record.cause} (exit code {record.exit_code})" for name, record in failed.items())
    return KdctoolError(
        f"the cells of {plan.study.name} ended in different states: {ended}\n  {rows}",
        "the same command tries them again; the table has the others, and says n",
    )


def _planned(plan: Plan, cells: list[Cell]) -> Swept:
    records = {cell.name: sweep_cell.look(plan, cell) for cell in plan.cells}
    states = {name: record.state for name, record in records.items()}
    rows = [[arm.name, arm.title, str(arm.steps), *flops_of(arm)] for arm in plan.arms]
    tables = [Section("arms", ["arm", "what it is", "steps", "GFLOP per clip", "PFLOP"], rows)]
    tables.append(Section("cells", ["cell", "state"], [[cell.name, states[cell.name]] for cell in cells]))
    payload = {
        "study": plan.study.name,
        "cells": [cell.name for cell in cells],
        "states": states,
        "steps": {arm.name: arm.steps for arm in plan.arms},
        "flops": {arm.name: arm.flops for arm in plan.arms},
    }
    return Swept(plan.out, tables, sweep_notes.flops_note(plan), payload, states, [], None)
