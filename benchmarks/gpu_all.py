"""Everything to measure on a GPU, in one run on a machine without network, most important first.

    python benchmarks/gpu_all.py --out DIR --minutes 9
    python benchmarks/gpu_all.py --out DIR --smoke                  tiny sizes on the CPU, about a minute
    python benchmarks/gpu_all.py --out DIR --smoke --device cuda    tiny sizes on the card: does every line run?

Every piece writes DIR/PIECE.json after each of its rows, and its stderr to DIR/PIECE.stderr. They are measured in a
process of their own, which is started anew when a piece takes it down or uses up twice its time. The same command
goes on with what is missing; what failed is tried once more, last. Delete a piece's file to have it measured again.
The last line of stdout is the summary. DIR/gpu_all.json has it too, beside all that the pieces wrote: it is written
after every piece, and it is all that has to be kept. --copy FILE writes it there as well, and goes on from it.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_worker import NOW, Record, write
from harness import Result, finish, hardware, report, say

PACKAGES = ("torch", "triton", "torchvision", "timm", "numpy", "soundfile", "webdataset", "pydantic")
RESERVE_S = 10.0
"""Kept for the summary."""
LEAST_S = 15.0
"""With less than this no process is started."""
BETWEEN_S = 90.0
"""To import torch, or to put a piece away."""
TRIES = 2
KEPT = ("done", "cut")
"""States of a piece that is not measured again."""
TAIL = 3000
"""Characters of stderr that are kept of a piece that did not end well."""
BUNDLE = "gpu_all.json"


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    deadline = time.monotonic() + 60 * args.minutes - RESERVE_S
    args.out.mkdir(parents=True, exist_ok=True)
    for source in (args.out / BUNDLE, args.copy):
        if source is not None and source.is_file():
            unpack(source, args.out)
    budgets = chosen(args.plan, args.only)
    for wanted in rounds(args.out, budgets):
        measure(args, wanted, budgets, deadline)
    keep(args, budgets)
    finish({**summary(args, budgets), "wall_s": round(60 * args.minutes - RESERVE_S - deadline + time.monotonic(), 1)})
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results; the same one goes on")
    parser.add_argument("--minutes", type=float, default=9.0, help="of wall time for all of it, the summary included")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run through?")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, with --smoke cpu")
    parser.add_argument("--only", nargs="*", default=[], help="names of pieces")
    parser.add_argument("--copy", type=Path, help=f"another place for {BUNDLE}; one that is there is gone on from")
    parser.add_argument("--plan", default="gpu_plan", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.device = args.device or ("cpu" if args.smoke else "cuda")
    return args


def chosen(plan: str, only: list[str]) -> dict[str, float]:
    """Budget in seconds by name, in order."""
    budgets: dict[str, float] = importlib.import_module(plan).BUDGETS
    if strangers := [name for name in only if name not in budgets]:
        raise SystemExit(f"--only {' '.join(strangers)}: there are {' '.join(budgets)}")
    return {name: budget for name, budget in budgets.items() if not only or name in only}


def rounds(out: Path, budgets: dict[str, float]) -> list[list[str]]:
    """What was never measured to its end, then what failed."""
    states = {name: record_of(out, name) for name in budgets}
    fresh = [name for name, record in states.items() if record.get("state") not in (*KEPT, "failed")]
    again = [name for name, record in states.items() if record.get("state") == "failed" and record["tries"] < TRIES]
    for name in budgets:
        if name not in fresh + again:
            say(f"{name}: is there ({states[name]['state']})")
    return [fresh, again]


def measure(args: argparse.Namespace, wanted: list[str], budgets: dict[str, float], deadline: float) -> None:
    """Run the pieces in a worker; one that dies is started anew for the pieces behind the one it died of."""
    while wanted and deadline - time.monotonic() > LEAST_S:
        (args.out / NOW).unlink(missing_ok=True)
        told: dict[str, int] = {}
        worker = start(args, wanted, deadline)
        cause = watch(worker, args, budgets, deadline, told)
        last = now(args.out)
        if not last:  # It did not come as far as a piece: another start would not either.
            say(f"no piece was begun: {cause}\n{tail(args.out / 'import.stderr')}")
            return
        if cause and not last["over"]:
            settle(args.out, last["piece"], cause)
        tell(args, budgets, told)
        keep(args, budgets)
        if worker.returncode == 0 and not cause:
            return
        wanted = wanted[wanted.index(last["piece"]) + 1 :]


def start(args: argparse.Namespace, wanted: list[str], deadline: float) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(Path(__file__).with_name("gpu_worker.py")), "--out", str(args.out)]
    command += ["--deadline", str(deadline), "--device", args.device, "--plan", args.plan]
    command += [*(["--smoke"] if args.smoke else []), *wanted]
    # A session of its own: its data workers and compilers end with it.
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def watch(
    worker: "subprocess.Popen[bytes]",
    args: argparse.Namespace,
    budgets: dict[str, float],
    deadline: float,
    told: dict[str, int],
) -> str:
    """Until the worker ends; why it did, where that was not of itself."""
    begun = time.monotonic()
    while worker.poll() is None:
        time.sleep(0.2)
        running = now(args.out)
        since = running.get("start", begun)
        limit = BETWEEN_S if running.get("over", True) else 2 * budgets[running["piece"]]
        if tell(args, budgets, told):
            keep(args, budgets)
        late = time.monotonic() > deadline
        if late or time.monotonic() - since > limit:
            end(worker)
            return "out of time" if late else f"killed after {limit:.0f} s"
    end(worker)
    return "" if worker.returncode in (0, 3) else f"the process ended with code {worker.returncode}"


def end(worker: "subprocess.Popen[bytes]") -> None:
    """End the worker and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def settle(out: Path, name: str, cause: str) -> None:
    """Write down how a piece ended that could not do so itself. Rows of an earlier try stay where it has none."""
    record = record_of(out, name) or {"piece": name, "rows": [], "seconds": 0.0, "tries": 0}
    if record.get("state") != "running":
        record["tries"] += 1
    state = "out of time" if cause == "out of time" else "cut" if cause.startswith("killed") else "failed"
    record |= {"state": state, "error": cause}
    record["seconds"] = round(time.monotonic() - now(out)["start"], 1)
    write(out / f"{name}.json", record)


def tell(args: argparse.Namespace, budgets: dict[str, float], told: dict[str, int]) -> bool:
    """Say what is new on disk; whether a piece ended."""
    ended = False
    for name in budgets:
        record = record_of(args.out, name)
        mark = 1000 * len(record.get("rows", [])) + len(record.get("state", ""))
        if not record or told.setdefault(name, mark if name != now(args.out).get("piece") else -1) == mark:
            continue
        told[name] = mark
        last = json.dumps(record["rows"][-1])[:300] if record["rows"] else ""
        say(f"{name} {record['seconds']:.0f} s {record['state']}: {record.get('error', '') or last}")
        ended |= record["state"] != "running"
    return ended


def now(out: Path) -> Record:
    """The piece that runs and its start, where one runs."""
    path = out / NOW
    return json.loads(path.read_text()) if path.is_file() else {}


def record_of(out: Path, name: str) -> Record:
    """What is known of a piece."""
    path = out / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def tail(path: Path) -> str:
    """The end of a file of stderr."""
    return path.read_text(errors="replace")[-TAIL:] if path.is_file() else ""


def keep(args: argparse.Namespace, budgets: dict[str, float]) -> None:
    """Write all that is there into one file."""
    found = {name: record for name in pieces_on_disk(args.out) if (record := record_of(args.out, name))}
    for name, record in found.items():
        if record["state"] not in KEPT and (said := tail(args.out / f"{name}.stderr")):
            record["stderr"] = said
    bundle = {**summary(args, budgets), "records": found}
    write(args.out / BUNDLE, bundle)
    if args.copy is not None:
        args.copy.parent.mkdir(parents=True, exist_ok=True)
        write(args.copy, bundle)


def pieces_on_disk(out: Path) -> list[str]:
    return sorted(path.stem for path in out.glob("*.json") if path.name not in (BUNDLE, NOW))


def unpack(bundle: Path, out: Path) -> None:
    """Put the pieces of a bundle back where there are none."""
    for name, record in json.loads(bundle.read_text()).get("records", {}).items():
        if not (out / f"{name}.json").is_file():
            write(out / f"{name}.json", record)


def summary(args: argparse.Namespace, budgets: dict[str, float]) -> dict[str, Any]:
    """Headline numbers of all pieces on disk; what failed or was cut is named."""
    from gpu_ratios import ratios

    records = {name: record for name in budgets if (record := record_of(args.out, name))}
    results = [
        Result(f"{name}/{row['name']}", row["value"], row["unit"], row.get("spread", 0.0), row.get("runs", 1))
        for name, record in records.items()
        for row in record["rows"]
        if "value" in row
    ]
    states = {name: records.get(name, {}).get("state", "not run") for name in budgets}
    kind = "gpu_all_smoke" if args.smoke else "gpu_all"
    rows = {name: record["rows"] for name, record in records.items()}
    return report(kind, {**hardware(), **card(rows)}, PACKAGES, results, ratios(rows), pieces=states)


def card(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The device, as the piece `machine` found it."""
    return {
        key: row[key] for row in rows.get("machine", []) for key in ("gpu", "gpu_memory_gb", "shm_gb") if key in row
    }


if __name__ == "__main__":
    sys.exit(main())
