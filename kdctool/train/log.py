"""What a run says about itself: metrics.jsonl always, TensorBoard by recipe, and status.json."""

import json
import os
from pathlib import Path
from typing import Any

from kdctool.files import canonical_json, write_json

METRICS, STATUS = "metrics.jsonl", "status.json"


class Log:
    """Rows of numbers by step. After a resume no step stands twice: later rows are cut off first."""

    def __init__(self, run: Path, start_step: int, tensorboard: bool) -> None:
        self.path = run / METRICS
        self._cut(start_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tb"), purge_step=start_step)

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
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def write_status(
    run: Path, state: str, step: int, exit_code: int | None = None, cause: str = "", next_step: str = ""
) -> None:
    """status.json: running, done, failed or interrupted, with the exit code and what to type next."""
    write_json(run / STATUS, {"state": state, "exit_code": exit_code, "cause": cause, "step": step, "next": next_step})
