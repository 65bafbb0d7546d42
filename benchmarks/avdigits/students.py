"""Small students and their teachers in one command: build AV-Digits, train the teachers, distil, tell both tables.

    python benchmarks/avdigits/students.py --speech fsdd-recordings.tar.gz --digits FOLDER --out data/avdigits
    python benchmarks/avdigits/students.py ... --minutes 8   in pieces: ends with exit code 75, again goes on
    python benchmarks/avdigits/students.py ... --jobs 4      four cells side by side on one GPU
    python benchmarks/avdigits/students.py ... --quick       one seed, 10 steps, no gates, a CPU: does it run?

With the folder of study.py it takes over what was built there, gates and all. Ends with one JSON line; the tables are
in OUT/studies/NAME/table.md, and the studies as they were run, with the paths of the teachers, beside them.
"""

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tomli_w
from harness import finish, hardware, report

from avdigits import build, protocol, study
from avdigits.sources import read
from kdctool import recipe as recipes
from kdctool.errors import KdctoolError
from kdctool.files import write_bytes
from kdctool.progress import say
from kdctool.recipe.study import load_study
from kdctool.stages import sweep

TEACHERS, STUDENTS = "avdigits_teachers", "avdigits_hybrid"
TEACHING_SEED = 0
QUICK_STEPS, QUICK_BATCH = 10, 20
Tree = dict[str, Any]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build, gates, teachers, students; returns the last line."""
    sources = read(args.speech, args.digits)
    began = time.monotonic()
    built = build.build(sources, args.out, build.counts_of(args), args.seed, args.workers)
    passed = [] if args.quick else study.pass_gates(sources, args.out, args.quick, args.seed)
    tables = {name: _sweep(name, built.shards, args) for name in (TEACHERS, STUDENTS)}
    rows = [row for name, payload in tables.items() for row in study.rows_of(name, payload)]
    more = {"clips": built.clips, "gates": passed, "seconds": round(time.monotonic() - began, 1)}
    kind = "avdigits_students_quick" if args.quick else "avdigits_students"
    about = hardware("cuda" if args.device == "cuda" else "cpu")
    return report(kind, about, ("torch", "numpy", "av"), rows, {}, contrasts=study.contrasts_of(tables), **more)


def tree_of(name: str, out: Path, quick: bool) -> Tree:
    """The shipped study called `name` with whole paths of recipes and teachers; a small one when it is `quick`."""
    tree: Tree = tomllib.loads((study.STUDIES / f"{name}.toml").read_text(encoding="utf-8"))
    if "recipe" in tree:
        tree["recipe"] = str((study.STUDIES / tree["recipe"]).resolve())
    for arm in tree["arms"]:
        if "recipe" in arm:
            arm["recipe"] = str((study.STUDIES / arm["recipe"]).resolve())
        taught = recipes.load(Path(arm.get("recipe") or tree["recipe"])).objective.distill.teachers
        if taught:
            run = out.resolve() / "studies" / TEACHERS / "cells"
            paths = {f"objective.distill.teachers.{who}.path": str(run / f"{who}-s{TEACHING_SEED}" / "pretrain")
                     for who in taught}  # fmt: skip
            arm["set"] = {**arm.get("set", {}), **paths}
    return small(tree) if quick else tree


def small(tree: Tree) -> Tree:
    """One seed, few steps, and of the measurements what few clips allow."""
    quick: Tree = tomllib.loads((study.STUDIES / f"{study.QUICK[0]}.toml").read_text(encoding="utf-8"))
    tasks = {item["task"] for item in tree["evaluations"]}
    evaluations = [item for item in quick["evaluations"] if item["task"] in tasks]
    endpoints = dict.fromkeys(name.replace("gallery_*", "retrieval") for name in tree["secondary"]["endpoints"])
    secondary = {**tree["secondary"], "endpoints": list(endpoints)}
    changed = {key: quick[key] for key in ("seeds", "set", "protocol")}
    return {**tree, **changed, "steps": QUICK_STEPS, "evaluations": evaluations, "secondary": secondary}


def _sweep(name: str, shards: Path, args: argparse.Namespace) -> dict[str, Any]:
    say(f"--- study {name}")
    place = args.out / "studies" / name
    path = place.with_suffix(".toml")
    write_bytes(path, tomli_w.dumps(tree_of(name, args.out, args.quick)).encode())
    changes = [*([f"training.global_batch={QUICK_BATCH}"] if args.quick else []), *(args.set or [])]
    done = sweep.run(
        load_study(path),
        shards=shards,
        out=place,
        overrides=changes,
        jobs=args.jobs,
        device_name=args.device,
        arguments=["sweep", str(path), "--shards", str(shards), "--out", str(place), "--device", args.device,
                   *(part for item in changes for part in ("--set", item))],
    )  # fmt: skip
    if done.fault is not None:
        raise done.fault
    say((place / sweep.TABLE).read_text())
    return done.payload


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    build.add_arguments(parser)
    for name in protocol.SPLITS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"clips of {name}")
    study.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        with sweep.stopped(args.minutes):
            line = run(args)
    except KdctoolError as error:
        say(f"error: {error.cause}\nnext:  {error.next_step}")
        return error.exit_code
    finish(line, args.out / "students.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
