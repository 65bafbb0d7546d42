"""Cells side by side, a process each: the same command with --cell i/n, as an array job runs it."""

import subprocess
import sys
import time

from kdctool.errors import Interrupted, KdctoolError
from kdctool.files import disk_faults
from kdctool.progress import bar, say
from kdctool.stages import sweep_cell
from kdctool.stages.sweep_plan import Cell, Plan

LOG = "log.txt"
EVERY_S = 0.2
GRACE_S = 120.0
"""How long a process may take to save and stop."""


def run(plan: Plan, cells: list[Cell], jobs: int, arguments: list[str]) -> None:
    """Run what is not done, at most `jobs` at a time. A cell that fails is told, the others go on."""
    waiting = [
        (place, cell) for place, cell in enumerate(cells, start=1) if sweep_cell.look(plan, cell).state != "done"
    ]
    running: dict[str, subprocess.Popen[bytes]] = {}
    fatal: KdctoolError | None = None
    try:
        with bar(f"study {plan.study.name}", len(waiting), "cells") as progress:
            while running or (waiting and fatal is None):
                while waiting and len(running) < jobs and fatal is None:
                    place, cell = waiting.pop(0)
                    running[cell.name] = _start(plan, cell, [*arguments, "--cell", f"{place}/{len(cells)}"])
                for name, process in list(running.items()):
                    if (code := process.poll()) is None:
                        continue
                    del running[name]
                    progress.advance(1, name)
                    fatal = _ended(plan, name, code) or fatal
                time.sleep(EVERY_S)
    except BaseException:
        _stop(running)
        raise
    if fatal is not None:
        raise fatal


def _start(plan: Plan, cell: Cell, arguments: list[str]) -> "subprocess.Popen[bytes]":
    folder = plan.folder(cell)
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        log = open(folder / LOG, "ab")  # noqa: SIM115
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "kdctool", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _ended(plan: Plan, name: str, code: int) -> KdctoolError | None:
    """The fault that ends the study, if the end of this cell is one that others will share."""
    if code == 0:
        return None
    log = plan.out / "cells" / name / LOG
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    cause = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
    if code in (75, 130):
        return Interrupted(f"cell {name} was stopped: {cause}", "the same command goes on", ctrl_c=code == 130)
    if code in (2, 3, 4):
        fault = KdctoolError(f"cell {name}: {cause}", f"{log} has the rest; no more cells were started")
        fault.exit_code = code
        return fault
    say(f"cell {name} failed: {cause}; {log} has the rest; the others go on")
    return None


def _stop(running: "dict[str, subprocess.Popen[bytes]]") -> None:
    """Ask every process to save; wait until they have."""
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in running.values():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
