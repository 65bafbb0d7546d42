"""How long will the studies take here? Arm D is trained for a minute and measured once; the rest is counted."""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness import hardware, report, result

from avdigits import build, chain, hours
from avdigits.chain import Chain, Tree
from avdigits.hours import RECIPE, Measured
from avdigits.sources import read
from kdctool import recipe as recipes
from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.progress import say
from kdctool.recipe.study import Study
from kdctool.stages import evaluate
from kdctool.tasks import tasks

STEPS, SECONDS, LONGEST_S = 2000, 60.0, 900.0
EVERY_S = 0.5
FOLDER = "throughput"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--throughput", action="store_true", help="measure arm D for a minute, tell the hours, and end")
    parser.add_argument("--budget-hours", type=float, metavar="H", help="with --throughput: which T fits")


def run(chain_: Chain, args: argparse.Namespace) -> Tree:
    """Build, measure, count; returns the last line."""
    if args.quick:
        raise UsageFault("--throughput is about the whole study, --quick about a small one", "leave one of them out")
    names = chain.selected(chain_, args.only, False)
    built = build.build(read(args.speech, args.digits), args.out, build.counts_of(args), args.seed, args.workers)
    steps = args.steps or chain.steps_of(args.out, None) or STEPS
    studies = [hours.alone(chain_, name, args.out / FOLDER, steps) for name in names]
    try:
        measured = measure(studies, built.shards, args, SECONDS)
        costs = [hours.cost(study, built.shards, args.set or [], measured) for study in studies]
    finally:
        shutil.rmtree(args.out / FOLDER, ignore_errors=True)
    say(hours.table(costs, measured, args.jobs, steps))
    fits = None
    if args.budget_hours is not None:
        fits = hours.steps_that_fit(costs, measured, args.jobs, steps, args.budget_hours)
        least = "no T fits {:g} hours: what does not depend on T takes longer; choose studies with --only"
        say((f"--steps {fits} fits {{:g}} hours" if fits else least).format(args.budget_hours))
    each = {item.study: item.hours(measured, args.jobs) for item in costs}
    rows = [result("arm D", [measured.clips_per_s], "clips/s"), result("start", [measured.starting_s], "s")]
    rows += [result(f"{name}, T = {steps}", [value], "hours, estimated") for name, value in each.items()]
    rows += [result(f"evaluation {name}", [seconds], "s") for name, seconds in measured.evaluating_s.items()]
    more = {"steps": steps, "jobs": args.jobs, "hours": round(sum(each.values()), 2), "steps_that_fit": fits}
    about = hardware("cuda" if args.device == "cuda" else "cpu")
    return report("avdigits_throughput", about, ("torch", "numpy"), rows, {}, **more)


def measure(studies: list[Study], shards: Path, args: argparse.Namespace, seconds: float) -> Measured:
    """Train arm D for `seconds`, `--jobs` times side by side, then run every kind of evaluation once on one of them."""
    changes = [*(args.set or []), "log.every_steps=1"]
    folders = [args.out / FOLDER / f"D-{number}" for number in range(args.jobs)]
    say(f"--- arm D, {args.jobs} side by side, for {seconds:.0f} s")
    with _training(folders, shards, changes, args.device) as processes:
        rate, starting_s = _rate(folders, processes, seconds)
    say(f"{rate:.1f} clips/s, the first step after {starting_s:.0f} s")
    spent: dict[str, float] = {}
    for item in {hours.kind(item): item for study in studies for item in study.evaluations}.values():
        if tasks.get(item.task).cls.wants == "classifier":
            continue  # Its training is counted; scoring a classifier takes as long as a retrieval at most.
        name, start = hours.kind(item), time.monotonic()
        evaluate.run(
            folders[0],
            task=item.task,
            shards=shards,
            split=item.split,
            device_name=args.device,
            batch_size=item.batch_size,
            out=args.out / FOLDER / "eval" / item.key,
            options=item.options_on(shards),
        )
        spent[name] = round(time.monotonic() - start, 2)
        say(f"{name}: {spent[name]:.1f} s")
    return Measured(rate, hours.flops_of(recipes.load(RECIPE, args.set or [])), starting_s, spent)


@contextlib.contextmanager
def _training(
    folders: list[Path], shards: Path, changes: list[str], device: str
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Arm D in some processes; when the block ends they save and stop."""
    processes = []
    try:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            command = [sys.executable, "-m", "kdctool", "pretrain", str(RECIPE), "--shards", str(shards)]
            command += ["--out", str(folder), "--device", device]
            command += [part for item in changes for part in ("--set", item)]
            with open(folder / "log.txt", "wb") as log:
                processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def _rate(folders: list[Path], processes: list["subprocess.Popen[bytes]"], seconds: float) -> tuple[float, float]:
    """Clips per second of all runs, `seconds` after each has made its first step; and how long that took."""
    began, first = time.monotonic(), 0.0
    while True:
        rates = [_last_rate(folder / "metrics.jsonl") for folder in folders]
        now = time.monotonic()
        if not first and None not in rates:
            first = now
        if all(rates) and now - first >= seconds:
            return sum(rate or 0.0 for rate in rates), first - began
        for folder, process in zip(folders, processes, strict=True):
            if process.poll() is None:
                continue
            if process.returncode == 0 and all(rates):
                return sum(rate or 0.0 for rate in rates), first - began
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-3:]
            raise EnvironmentFault(
                f"arm D ended with exit code {process.returncode} after {now - began:.0f} s: {' / '.join(last)}",
                "what it says is what is wrong; with fewer --jobs it needs less memory",
            )
        if now - began > max(LONGEST_S, 3 * seconds):
            raise EnvironmentFault(
                f"arm D made too few steps in {now - began:.0f} s to say how fast it is",
                "a faster machine, or --set training.global_batch=32",
            )
        time.sleep(EVERY_S)


def _last_rate(path: Path) -> float | None:
    """The rate that a run has logged last; 0 while it is starting, None before its first step."""
    if not path.exists():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        with contextlib.suppress(json.JSONDecodeError):  # The line that is being written.
            row = json.loads(line)
            if "clips_per_s" in row:
                return float(row["clips_per_s"])
    return None
