"""What a run says about itself: metrics.jsonl always, trackers by recipe, and status.json."""

import json
import os
from pathlib import Path
from typing import Any

from kdctool.files import canonical_json, write_json
from kdctool.recipe import Log as LogOptions
from kdctool.train.trackers import open_trackers

METRICS, STATUS = "metrics.jsonl", "status.json"


class Log:
    """Rows of numbers by step. After a resume no step stands twice: later rows are cut off first."""

    def __init__(self, run: Path, start_step: int, options: LogOptions) -> None:
        self.path = run / METRICS
        self._cut(start_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._trackers = open_trackers(options, run, start_step)

    def _cut(self, start_step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # The line a killed process was writing.
            if row["step"] < start_step:
                kept.append(line)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, self.path)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Append one row; `step` counts from 0 and names the step that was just done."""
        self._file.write(canonical_json({"step": step, **row}) + "\n")
        self._file.flush()
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def write_status(
    run: Path, state: str, step: int, exit_code: int | None = None, cause: str = "", next_step: str = ""
) -> None:
    """status.json: running, done, failed or interrupted, with the exit code and what to type next."""
    write_json(run / STATUS, {"state": state, "exit_code": exit_code, "cause": cause, "step": step, "next": next_step})
