"""Build AV-Digits, pass the cheat gates, run studies one after the other: what study.py and students.py share."""

import argparse
import json
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from harness import ROOT, Result, finish, hardware, report, result

from avdigits import build, gates, lending, protocol
from avdigits.sources import Sources, read
from kdctool.errors import KdctoolError, UsageFault, VerificationFault
from kdctool.files import read_json, write_bytes, write_json
from kdctool.progress import say
from kdctool.recipe.study import load_study
from kdctool.stages import sweep
from kdctool.stages.sweep_best import RESULTS

SHIPPED = ROOT / "recipes" / "studies"
PREFIX = "avdigits_"
GATES, LENGTH = "gates.json", "steps.json"
GATE_SIZES = {True: (3_000, 10_000, 4), False: (8_000, 10_000, 6)}
"""Drawn clips to learn from, drawn clips to answer, epochs; by whether it is quick."""
Tree = dict[str, Any]


@dataclass(frozen=True)
class Chain:
    """Studies in the order in which they run: later ones take over what earlier ones found."""

    name: str
    """Of the benchmark in the last line."""
    quick_name: str
    studies: tuple[str, ...]
    quick: tuple[str, ...]
    """Those of --quick."""
    changed: Callable[[str, Tree, Path, bool], Tree] = lambda name, tree, out, quick: tree
    """What is changed of a shipped study called `name` that runs in `out`, quick or not."""
    gates_when_quick: bool = True
    quick_set: tuple[str, ...] = ()
    """Keys of every recipe that differ when it is quick."""

    def names(self, quick: bool) -> tuple[str, ...]:
        return self.quick if quick else self.studies


def parser(about: str | None, chain: Chain) -> argparse.ArgumentParser:
    """What every script here that runs studies asks for."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    build.add_arguments(found)
    for name in protocol.SPLITS:
        found.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"clips of {name}")
    found.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(map(short, chain.studies))}")
    found.add_argument("--steps", type=int, metavar="T", help="T of the protocol, for all arms of all studies alike")
    found.add_argument("--jobs", type=int, default=1, help="cells side by side")
    found.add_argument("--device", default="auto", help="auto, cpu or cuda")
    found.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a key of every recipe")
    return found


def told(work: Callable[[], Tree], args: argparse.Namespace, name: str) -> int:
    """The exit code of a script: its work ends in one JSON line, a fault in its cause and what to do."""
    try:
        with sweep.stopped(args.minutes):
            line = work()
    except KdctoolError as error:
        say(f"error: {error.cause}\nnext:  {error.next_step}")
        return error.exit_code
    finish(line, args.out / name)
    return 0


def run(chain: Chain, args: argparse.Namespace) -> Tree:
    """Build, gates, studies; returns the last line."""
    names = selected(chain, args.only, args.quick)
    sources = read(args.speech, args.digits)
    began = time.monotonic()
    built = build.build(sources, args.out, build.counts_of(args), args.seed, args.workers)
    quiet = args.quick and not chain.gates_when_quick
    passed = [] if quiet else pass_gates(sources, args.out, args.quick, args.seed)
    write_studies(chain, args)
    tables: dict[str, Any] = {}
    for name in names:
        say(f"--- study {name}")
        if reason := refused_or_empty(name, args.out / "studies"):
            say(f"{name} is left out: {reason}")
            continue
        tables[name] = _sweep(name, built.shards, args, [*(chain.quick_set if args.quick else ()), *(args.set or [])])
    rows = [row for name, payload in tables.items() for row in rows_of(name, payload)]
    more = {"clips": built.clips, "gates": passed, "seconds": round(time.monotonic() - began, 1)}
    about = hardware("cuda" if args.device == "cuda" else "cpu")
    return report(
        chain.quick_name if args.quick else chain.name,
        about,
        ("torch", "numpy", "av"),
        rows,
        {},
        contrasts=contrasts_of(tables),
        **more,
    )


def short(name: str) -> str:
    """avdigits_tune is tune; avdigits itself is main."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else "main"


def selected(chain: Chain, only: str | None, quick: bool) -> tuple[str, ...]:
    """The studies that --only names, in the order of the chain; UsageFault for one that it does not have."""
    names = chain.names(quick)
    if only is None:
        return names
    known = {alias: name for name in names for alias in (name, short(name))}
    asked = [word.strip() for word in only.split(",") if word.strip()]
    if strange := [word for word in asked if word not in known]:
        raise UsageFault(
            f"--only: no study is called {', '.join(strange)}", f"there are: {', '.join(map(short, names))}"
        )
    if not asked:
        raise UsageFault("--only names no study", f"there are: {', '.join(map(short, names))}")
    return tuple(name for name in names if name in {known[word] for word in asked})


def write_studies(chain: Chain, args: argparse.Namespace) -> None:
    """The studies of the chain as they are run, in OUT/studies: `best_of` finds them beside each other there."""
    steps = steps_of(args.out, args.steps)
    for name in chain.names(args.quick):
        tree = tree_of(chain, name, args.out, args.quick)
        if steps:
            tree["steps"] = steps
        write_bytes(study_path(args.out, name), tomli_w.dumps(tree).encode())


def tree_of(chain: Chain, name: str, out: Path, quick: bool) -> Tree:
    """A shipped study as it runs in `out`."""
    return chain.changed(name, shipped(name), out, quick)


def study_path(out: Path, name: str) -> Path:
    return out / "studies" / f"{name}.toml"


def shipped(name: str) -> Tree:
    """A study of recipes/studies, with whole paths of recipes."""
    tree: Tree = tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))
    for part in (tree, *tree["arms"]):
        if "recipe" in part:
            part["recipe"] = str((SHIPPED / part["recipe"]).resolve())
    return tree


def steps_of(out: Path, asked: int | None) -> int | None:
    """T: what was asked for first holds for every later call in this folder. None: what the studies say."""
    path = out / "studies" / LENGTH
    before = read_json(path)["steps"] if path.exists() else None
    if asked is not None and asked < 1:
        raise UsageFault(f"--steps {asked} is no number of steps", "give at least 1")
    if before is not None and asked not in (None, before):
        raise UsageFault(
            f"--steps {asked}: the studies in {out} were begun with T = {before}, and all arms share it",
            f"--steps {before}, or another --out",
        )
    if asked is not None and before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"steps": asked})
    return asked or before


def taken_over(tree: Tree) -> list[str]:
    """Names of the studies whose best arms a study takes over."""
    paths = [tree.get("best_of", ""), *(arm.get("best_of", "") for arm in tree["arms"])]
    return list(dict.fromkeys(Path(path).stem for path in paths if path))


def refused_or_empty(name: str, studies: Path) -> str:
    """Why a study has nothing to say, or nothing; UsageFault where an earlier one has no best arm yet."""
    tree = tomllib.loads((studies / f"{name}.toml").read_text(encoding="utf-8"))
    best: dict[str, str] = {}
    for other in taken_over(tree):
        results = studies / other / RESULTS
        found = read_json(results).get("best") if results.exists() else None
        if not found:
            raise UsageFault(
                f"{name} takes over the best arm of {other}, which has no results yet: not all of its cells are done",
                f"--only {short(other)} first, or leave --only out",
            )
        best[other] = found["arm"]
    for arm in tree["arms"]:
        other = Path(arm.get("best_of", "")).stem
        if other and _is_plain(studies / f"{other}.toml", best[other]):
            return f"arm {best[other]}, which changes nothing, was the best of {other}: there is nothing to test"
    return ""


def _is_plain(study: Path, arm: str) -> bool:
    tree = tomllib.loads(study.read_text(encoding="utf-8"))
    found = next(item for item in tree["arms"] if item["name"] == arm)
    return not any(key in found for key in ("set", "best_of", "recipe"))


def _sweep(name: str, shards: Path, args: argparse.Namespace, changes: Sequence[str]) -> Tree:
    path, place = study_path(args.out, name), args.out / "studies" / name
    study = load_study(path)
    lending.lend(study, shards, place, list(changes))
    done = sweep.run(
        study,
        shards=shards,
        out=place,
        overrides=list(changes),
        jobs=args.jobs,
        device_name=args.device,
        arguments=["sweep", str(path), "--shards", str(shards), "--out", str(place), "--device", args.device,
                   *(part for item in changes for part in ("--set", item))],
    )  # fmt: skip
    if done.fault is not None:
        raise done.fault
    say((place / sweep.TABLE).read_text())
    return done.payload


def pass_gates(sources: Sources, out: Path, quick: bool, seed: int) -> list[Tree]:
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
    told: list[Tree] = json.loads(path.read_text())
    if failed := [gate["name"] for gate in told if not gate["passed"]]:
        raise VerificationFault(
            f"cheat gates failed: {', '.join(failed)}", "no arm was run; the benchmark needs mending first"
        )
    return told


def rows_of(study: str, payload: Tree) -> list[Result]:
    """Every endpoint of every arm, over its seeds."""
    return [
        result(f"{study}: {arm}, {endpoint}", list(told["seeds"].values()), "as the task gives it")
        for arm, about in payload["arms"].items()
        for endpoint, told in about["endpoints"].items()
        if told["seeds"]
    ]


def contrasts_of(tables: Tree) -> Tree:
    return {name: {"primary": t["primary"], "secondary": t["secondary"]} for name, t in tables.items()}
