"""The whole study in one command: build AV-Digits, pass the cheat gates, run the arms, tell the tables.

    python benchmarks/avdigits/study.py --speech fsdd-recordings.tar.gz --digits FOLDER --out data/avdigits
    python benchmarks/avdigits/study.py ... --minutes 8      in pieces: ends with exit code 75, again goes on
    python benchmarks/avdigits/study.py ... --jobs 4         four cells side by side on one GPU
    python benchmarks/avdigits/study.py ... --quick          two arms, one seed, a CPU: does the machinery run?

Ends with one JSON line; the tables are in OUT/studies/NAME/table.md.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import ROOT, Result, finish, hardware, report, result

from avdigits import build, gates
from avdigits.sources import Sources, read
from kdctool.errors import KdctoolError, VerificationFault
from kdctool.files import write_json
from kdctool.progress import say
from kdctool.recipe.study import load_study
from kdctool.stages import sweep

STUDIES = ROOT / "recipes" / "studies"
FULL, QUICK = ("avdigits_tune", "avdigits", "avdigits_parts"), ("avdigits_quick",)
GATES = "gates.json"
GATE_SIZES = {True: (3_000, 10_000, 4), False: (8_000, 10_000, 6)}
"""Drawn clips to learn from, drawn clips to answer, epochs; by whether it is quick."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build, gates, studies; returns the last line."""
    sources = read(args.speech, args.digits)
    began = time.monotonic()
    built = build.build(sources, args.out, build.counts_of(args), args.seed, args.workers)
    passed = pass_gates(sources, args.out, args.quick, args.seed)
    tables: dict[str, Any] = {}
    for name in QUICK if args.quick else FULL:
        say(f"--- study {name}")
        study = load_study(STUDIES / f"{name}.toml")
        place = args.out / "studies" / name
        done = sweep.run(
            study,
            shards=built.shards,
            out=place,
            overrides=args.set or [],
            jobs=args.jobs,
            device_name=args.device,
            arguments=["sweep", str(STUDIES / f"{name}.toml"), "--shards", str(built.shards), "--out", str(place),
                       "--device", args.device, *(part for item in args.set or [] for part in ("--set", item))],
        )  # fmt: skip
        if done.fault is not None:
            raise done.fault
        tables[name] = done.payload
        say((place / sweep.TABLE).read_text())
    rows = [row for name, payload in tables.items() for row in rows_of(name, payload)]
    more = {"clips": built.clips, "gates": passed, "seconds": round(time.monotonic() - began, 1)}
    kind = "avdigits_quick" if args.quick else "avdigits_study"
    about = hardware("cuda" if args.device == "cuda" else "cpu")
    return report(kind, about, ("torch", "numpy", "av"), rows, {}, contrasts=contrasts_of(tables), **more)


def pass_gates(sources: Sources, out: Path, quick: bool, seed: int) -> list[dict[str, Any]]:
    """Run the cheat gates once; VerificationFault when one fails."""
    path = out / GATES
    if not path.exists():
        say("--- cheat gates")
        train, test, epochs = GATE_SIZES[quick]
        found = []
        for gate in gates.run(sources, train, test, epochs, seed):
            say(gate.said())
            found.append(
                {"name": gate.name, "share": gate.share, "n": gate.n, "wilson": gate.interval, "passed": gate.passed}
            )
        write_json(path, found)
    told: list[dict[str, Any]] = json.loads(path.read_text())
    if failed := [gate["name"] for gate in told if not gate["passed"]]:
        raise VerificationFault(
            f"cheat gates failed: {', '.join(failed)}", "no arm was run; the benchmark needs mending first"
        )
    return told


def rows_of(study: str, payload: dict[str, Any]) -> list[Result]:
    """Every endpoint of every arm, over its seeds."""
    return [
        result(f"{study}: {arm}, {endpoint}", list(told["seeds"].values()), "as the task gives it")
        for arm, about in payload["arms"].items()
        for endpoint, told in about["endpoints"].items()
        if told["seeds"]
    ]


def contrasts_of(tables: dict[str, Any]) -> dict[str, Any]:
    return {name: {"primary": t["primary"], "secondary": t["secondary"]} for name, t in tables.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every script here that runs a study asks for."""
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a key of every recipe")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    build.add_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        with sweep.stopped(args.minutes):
            line = run(args)
    except KdctoolError as error:
        say(f"error: {error.cause}\nnext:  {error.next_step}")
        return error.exit_code
    finish(line, args.out / "study.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
