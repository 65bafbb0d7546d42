"""What pretrain and finetune share on the command line: flags, and how a plan or the end of a training is told."""

import os
from typing import Annotated, Any

import typer

from kdctool.cli.show import summary
from kdctool.errors import UsageFault

Nproc = Annotated[int, typer.Option(min=1, help="Processes; more than one starts torchrun.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Reading processes per rank; overrides data.workers.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Forget an earlier run in the same folder.")]
MaxRestarts = Annotated[
    int, typer.Option(min=0, help="Times torchrun may start all processes again when one dies; they resume.")
]
Profile = Annotated[
    str | None, typer.Option(metavar="FROM:TO", help="Record these steps into RUN/profile, e.g. 20:25.")
]


def finish(verb: str, done: Any, next_step: str, fmt: str) -> None:
    """Print a plan or the end of a training; leave with torchrun's exit code where it ran."""
    if done.fitted is None:
        if done.plan_rows and is_main_process():
            summary(
                f"{verb}: plan",
                done.plan_rows,
                "the same command without --dry-run",
                {"plan": dict(done.plan_rows)},
                fmt,
            )
        raise typer.Exit(done.exit_code)
    if not is_main_process():
        return
    fitted = done.fitted
    rows = [
        ("run", str(done.run)),
        ("steps", f"{fitted.step}" + (f" (resumed from {fitted.resumed_from})" if fitted.resumed_from else "")),
        *((name, f"{value:.4f}") for name, value in fitted.last.items()),
        ("clips/s", f"{fitted.clips_per_s:.1f}"),
        ("waiting for data", f"{fitted.data_wait:.0%}"),
    ]
    payload = {"run": str(done.run), "step": fitted.step, "clips_per_s": fitted.clips_per_s, **fitted.last}
    summary(verb, rows, next_step, payload, fmt)


def steps(text: str | None) -> tuple[int, int] | None:
    """`20:25` as (20, 25)."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UsageFault(f"--profile {text}: expected FROM:TO", "for example --profile 20:25")
    return int(first), int(last)


def is_main_process() -> bool:
    """Whether this process is the one that prints; by torchrun's variables, as the group is gone by now."""
    return os.environ.get("RANK", "0") == "0"


def without_nproc(arguments: list[str]) -> list[str]:
    """The command line that torchrun's children get."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--nproc", "--max-restarts"):
            skip = True
        elif not argument.startswith(("--nproc=", "--max-restarts=")):
            kept.append(argument)
    return kept
