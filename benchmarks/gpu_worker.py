"""Measures pieces of gpu_all.py one after the other; gpu_all.py starts it and looks after it.

    python benchmarks/gpu_worker.py --out DIR --deadline MONOTONIC_S --device cuda PIECE ...

A piece that fails leaves its error, and the next one runs in the same process. After an error of the device itself
nothing more can run in it: the process ends with code 3 and is started anew for the rest.
"""

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE_LOST = 3
NOW = "now.json"
"""Which piece runs or is just over, and since when: what an earlier try left stays until there is a new row."""

Row = dict[str, Any]
Record = dict[str, Any]


@dataclass
class Settings:
    """What the pieces share."""

    smoke: bool
    device: str
    out: Path
    deadline: float
    """time.monotonic() after which no row is begun."""
    piece_end: float = 0.0

    def time_left(self) -> float:
        """Seconds for the piece that runs."""
        return min(self.deadline, self.piece_end) - time.monotonic()

    def pick(self, full: Any, smoke: Any) -> Any:
        """One of two sizes."""
        return smoke if self.smoke else full


@dataclass(frozen=True)
class Piece:
    """A measurement that yields rows."""

    name: str
    budget_s: float
    """After so long no further row is begun; twice that, and it is killed."""
    run: Callable[[Settings], Iterator[Row]]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.smoke and args.device == "cpu":
        # The path through compile is run, without waiting for a compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    errors_to(args.out / "import.stderr")
    plan = importlib.import_module(args.plan)
    measures = importlib.import_module(plan.MEASURES)
    settings = Settings(args.smoke, args.device, args.out, args.deadline)
    for name in args.pieces:
        if not run(Piece(name, plan.BUDGETS[name], getattr(measures, name)), settings):
            return DEVICE_LOST
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--plan", default="gpu_plan", help="the module that has BUDGETS and names MEASURES")
    parser.add_argument("pieces", nargs="+")
    return parser.parse_args(arguments)


def run(piece: Piece, settings: Settings) -> bool:
    """Measure a piece within its budget, its rows on disk as they come; False when the device is lost."""
    path, start = settings.out / f"{piece.name}.json", time.monotonic()
    settings.piece_end = start + piece.budget_s
    if settings.time_left() <= 0:
        return True
    errors_to(settings.out / f"{piece.name}.stderr")
    write(settings.out / NOW, {"piece": piece.name, "start": start, "over": False})
    record: Record = {"piece": piece.name, "state": "running", "rows": [], "seconds": 0.0, "tries": tries(path) + 1}
    lost = False
    try:
        for row in piece.run(settings):
            record["rows"].append(row)
            record["seconds"] = round(time.monotonic() - start, 1)
            write(path, record)
            if settings.time_left() <= 0:
                # What used up its own time keeps its rows; what the run had no time for is measured next time.
                record["state"] = "cut" if time.monotonic() > settings.piece_end else "out of time"
                break
        else:
            record["state"] = "done"
    except Exception as error:  # one card, one chance: whatever a piece dies of, the next one runs
        record["state"], record["error"] = "failed", f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
        lost = is_of_the_device(error)
    record["seconds"] = round(time.monotonic() - start, 1)
    write(path, record)
    write(settings.out / NOW, {"piece": piece.name, "start": time.monotonic(), "over": True})
    if not lost:
        tidy()
    return not lost


def is_of_the_device(error: Exception) -> bool:
    """Whether an error leaves a context behind in which every further call fails."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def tries(path: Path) -> int:
    """How often a piece was begun before and left something."""
    return int(json.loads(path.read_text())["tries"]) if path.is_file() else 0


def tidy() -> None:
    """Give the card's memory back before the next piece, and forget compiled shapes: theirs are others."""
    import gc

    if (torch := sys.modules.get("torch")) is None:
        return
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def errors_to(path: Path) -> None:
    """Send this process's stderr, that of its libraries and children too, to a file."""
    if os.environ.get("GPU_ALL_STDERR", "file") != "file":
        return
    sys.stderr.flush()
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 2)


def write(path: Path, record: Record) -> None:
    """Replace the file at once, so that a kill leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
