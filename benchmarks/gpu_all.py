"""Everything to measure on a GPU, in one run on a machine without network, most important first.

    python benchmarks/gpu_all.py --out DIR --minutes 9
    python benchmarks/gpu_all.py --out DIR --smoke        tiny sizes, any machine, well under a minute

Every piece writes DIR/PIECE.json after each of its rows. A run that is killed goes on with the pieces that are not
finished when it is started again with the same --out; delete a piece's file to have it measured again. A piece that
fails writes its error, one that uses up its time keeps the rows it has, and the next one runs.
The last line of stdout is the summary that also stands in DIR/gpu_all.json.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Result, finish, hardware, report, say

PACKAGES = ("torch", "triton", "torchvision", "timm", "numpy", "soundfile", "webdataset", "pydantic")
RESERVE_S = 10.0
"""Kept for the summary."""

Row = dict[str, Any]


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
    run: Callable[[Settings], Iterator[Row]]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.smoke:
        # The path through compile is run, without waiting for a compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from gpu_pieces import PIECES

    device = "cpu" if args.smoke else "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(args.smoke, device, args.out, time.monotonic() + 60 * args.minutes - RESERVE_S)
    for piece in PIECES:
        if not args.only or piece.name in args.only:
            run(piece, settings)
    finish(summary(settings), args.out / "gpu_all.json")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results; the same one goes on")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU: does it run through?")
    parser.add_argument("--only", nargs="*", default=[], help="names of pieces")
    return parser.parse_args(arguments)


def run(piece: Piece, settings: Settings) -> None:
    """Run a piece that is not done yet, within its budget; its rows are on disk as they come."""
    path = settings.out / f"{piece.name}.json"
    if path.is_file() and json.loads(path.read_text())["state"] in ("done", "failed", "cut"):
        say(f"{piece.name}: is there")
        return
    start = time.monotonic()
    settings.piece_end = start + piece.budget_s
    record: dict[str, Any] = {"piece": piece.name, "state": "running", "rows": [], "seconds": 0.0}
    if settings.time_left() <= 0:
        record["state"] = "out of time"
        write(path, record)
        return
    try:
        for row in piece.run(settings):
            record["rows"].append(row)
            record["seconds"] = round(time.monotonic() - start, 1)
            write(path, record)
            say(f"{piece.name} {record['seconds']:.0f} s: {json.dumps(row)[:300]}")
            if settings.time_left() <= 0:
                record["state"] = "cut"
                break
        else:
            record["state"] = "done"
    except Exception as error:  # one card, one chance: whatever a piece dies of, the next one runs
        record["state"], record["error"] = "failed", f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
        say(f"{piece.name} failed: {record['error']}")
    record["seconds"] = round(time.monotonic() - start, 1)
    write(path, record)
    tidy()


def tidy() -> None:
    """Give the card's memory back before the next piece, and forget compiled shapes: theirs are others."""
    import gc

    import torch

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write(path: Path, record: dict[str, Any]) -> None:
    """Replace the file at once, so that a kill leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def summary(settings: Settings) -> dict[str, Any]:
    """Headline numbers of all pieces on disk; what failed or was cut is named."""
    from gpu_pieces import PIECES, ratios

    records = {}
    for piece in PIECES:
        path = settings.out / f"{piece.name}.json"
        if path.is_file():
            records[piece.name] = json.loads(path.read_text())
    results = [
        Result(f"{name}/{row['name']}", row["value"], row["unit"], row.get("spread", 0.0), row.get("runs", 1))
        for name, record in records.items()
        for row in record["rows"]
        if "value" in row
    ]
    states = {piece.name: records.get(piece.name, {}).get("state", "not run") for piece in PIECES}
    kind = "gpu_all_smoke" if settings.smoke else "gpu_all"
    rows = {name: record["rows"] for name, record in records.items()}
    return report(kind, hardware(settings.device), PACKAGES, results, ratios(rows), pieces=states)


if __name__ == "__main__":
    sys.exit(main())
