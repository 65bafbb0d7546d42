"""What a run's folder says, read so that nothing in it can stop the reader: half-written, damaged or foreign files.

Each fault becomes a sentence in `problems`. Ages come from file times: clocks of two processes cannot be compared in
any other way.
"""

import json
import os
import re
import shlex
import socket
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from kdctool.files import PARTIAL
from kdctool.stages.run_folder import RECIPE_FILE, RUN_FILE
from kdctool.train.log import METRICS, STATUS

CHECKPOINTS, LOCK = "checkpoints", ".lock"
STATES = ("running", "done", "failed", "interrupted")
SILENT_S = 900.0
"""A run on another machine whose files have not changed for this long is `running?`."""
TAIL_BYTES = 256 * 1024
"""How much of metrics.jsonl is read to find the last value of every metric."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint folder. Complete says that its manifest is there; hashes are not computed."""

    name: str
    size: int
    complete: bool


@dataclass(frozen=True)
class RunState:
    """A run as its files tell it."""

    path: Path
    kind: str
    state: str
    """running, running?, done, failed, interrupted, broken (status.json cannot be read) or unknown (there is none)."""
    step: int | None
    last: dict[str, float]
    """The newest value of every metric; rows of a probe do not hide the loss of the step."""
    silent_s: float | None
    """Seconds since metrics.jsonl (or status.json) changed, by file times; negative when its clock is ahead."""
    status: dict[str, Any]
    about: dict[str, Any]
    problems: tuple[str, ...]
    note: str
    """Why the state is `running?`; the cause of a failure."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def alive(self) -> bool:
        return self.state in ("running", "running?")

    @cached_property
    def next_step(self) -> str:
        """What to type next."""
        if self.state == "running":
            return f"kdctool runs watch {shlex.quote(str(self.path))}"
        said = self.status.get("next")
        if self.state == "done" and isinstance(said, str):
            return said
        if self.state in ("interrupted", "failed", "running?", "unknown"):
            return self._resume()
        return ""

    def _resume(self) -> str:
        recipe, out = self.path / RECIPE_FILE, shlex.quote(str(self.path))
        if not recipe.is_file():
            return ""
        if self.kind == "pretrain":
            return f"kdctool pretrain {shlex.quote(str(recipe))} --out {out}"
        source = self.about.get("source")
        if self.kind == "finetune" and isinstance(source, str):
            return f"kdctool finetune {shlex.quote(source)} --recipe {shlex.quote(str(recipe))} --out {out}"
        return ""


def read(run: Path) -> RunState:
    """The state of one run; never raises over what is in the folder."""
    problems: list[str] = []
    about = _object(run / RUN_FILE, problems)
    status = _object(run / STATUS, problems)
    last, step = _last(run / METRICS, problems)
    if about is None:
        problems.append(f"no {RUN_FILE}: it stopped before it began, or is no run")
    if not (run / RECIPE_FILE).is_file():
        problems.append(f"no {RECIPE_FILE}")
    state, note = "unknown", ""
    if status is None:
        state = "broken" if (run / STATUS).exists() else "unknown"
    elif status.get("state") not in STATES:
        problems.append(f"{STATUS}: state is {status.get('state')!r}, not one of {', '.join(STATES)}")
        state = "broken"
    else:
        state, note = str(status["state"]), str(status.get("cause") or "")
    silent = _silent_s(run)
    if state == "running" and (doubt := _doubt(run, silent)):
        state, note = "running?", doubt
    said = _int((status or {}).get("step"))
    # status.json knows the saved step and the end; the last row is step - 1, and newer while it runs.
    done = said if step is None or (said is not None and state not in ("running", "running?")) else step + 1
    kind = (about or {}).get("kind")
    return RunState(
        path=run,
        kind=kind if isinstance(kind, str) else "?",
        state=state,
        step=done,
        last=last,
        silent_s=silent,
        status=status or {},
        about=about or {},
        problems=tuple(problems),
        note=note,
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything that a run writes."""
    return any((folder / name).exists() for name in (RUN_FILE, STATUS, METRICS, CHECKPOINTS))


def saved(run: Path) -> list[Saved]:
    """The checkpoints of a run, oldest first, with those that were being written when something ended."""
    found = []
    try:
        folders = sorted(path for path in (run / CHECKPOINTS).iterdir() if path.is_dir())
    except OSError:
        return []
    for folder in folders:
        size = 0
        for path in folder.rglob("*"):
            try:
                size += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue  # Purged while we looked.
        complete = not folder.name.endswith(PARTIAL) and (folder / "manifest.json").is_file()
        found.append(Saved(folder.name, size, complete))
    return found


def age_text(seconds: float | None) -> str:
    """90 -> '1 min'; for columns."""
    if seconds is None:
        return ""
    if seconds < -1:
        return "in the future"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a row of metrics.jsonl."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool)
    }


def parse_row(line: str) -> dict[str, Any] | None:
    """A row of metrics.jsonl, or None when the line is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and _int(row.get("step")) is not None else None


def _object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}")
        return None
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no object")
        return None
    return found


def _last(path: Path, problems: list[str]) -> tuple[dict[str, float], int | None]:
    """Newest value of every metric in the tail of the file, and the newest step."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return {}, None
    whole = lines[1 if size > TAIL_BYTES else 0 : -1]  # The last has no end yet: it is being written, or was.
    found: dict[str, float] = {}
    step, bad = None, 0
    for line in whole:
        row = parse_row(line.decode("utf-8", "replace"))
        if row is None:
            bad += 1
            continue
        found.update(numbers(row))
        step = int(row["step"])
    if bad:
        problems.append(f"{path.name}: {bad} line{'s are' if bad > 1 else ' is'} no row")
    return found, step


def _silent_s(run: Path) -> float | None:
    times = []
    for name in (METRICS, STATUS):
        try:
            times.append((run / name).stat().st_mtime)
        except OSError:
            continue
    # File times are all that another process leaves behind; this is never used to decide what is newer.
    return time.time() - max(times) if times else None


def _doubt(run: Path, silent: float | None) -> str:
    """Why a run that says `running` may not be; empty when its process is there, or could be."""
    ago = f"its files changed {age_text(silent)} ago by file time" if silent is not None else "it wrote nothing yet"
    if silent is not None and silent < -1:
        ago = "its files carry times in the future, so when they changed is not known"
    try:
        owner = re.fullmatch(r"process (\d+) on (\S+)\s*", (run / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        owner = None
    if owner is not None and owner[2] == socket.gethostname():
        if _holds(int(owner[1]), run / LOCK):
            return ""
        return f"process {owner[1]} that trained it is gone; {ago}"
    if silent is not None and -1 <= silent < SILENT_S:
        return ""
    where = f"it trains on {owner[2]}, which cannot be asked from here" if owner else "no process is known to train it"
    return f"{where}; {ago}"


def _holds(pid: int, lock: Path) -> bool:
    """Whether process `pid` has the lock file open; numbers of processes are used again, open files tell."""
    try:
        return any(os.path.samefile(file.path, lock) for file in psutil.Process(pid).open_files())
    except psutil.AccessDenied:
        return True  # Another user's process with that number: most likely the one.
    except (psutil.Error, OSError):
        return False


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
