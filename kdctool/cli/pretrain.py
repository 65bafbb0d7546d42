"""kdctool pretrain."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdctool.cli.show import Device, Format, Set, summary
from kdctool.errors import UsageFault


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pretrain)


def pretrain(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML), for example recipes/vggsound.toml.")],
    shards: Annotated[Path | None, typer.Option(help="Folder of shards; overrides data.shards.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME-sSEED-DIGEST.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes; more than one starts torchrun.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Reading processes per rank; overrides data.workers.")
    ] = None,
    change: Set = None,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget an earlier run in the same folder.")] = False,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Times torchrun may start all processes again when one dies; they resume.")
    ] = 0,
    profile: Annotated[
        str | None, typer.Option(metavar="FROM:TO", help="Record these steps into RUN/profile, e.g. 20:25.")
    ] = None,
    format: Format = "human",
) -> None:
    """Learn representations from shards, without labels.

    Typed again, it goes on from the last complete checkpoint; started under torchrun, it joins.
    """
    from kdctool import recipe as recipes

    loaded = recipes.load(recipe, change)  # Before torch: a typo should not cost seconds.
    from kdctool.stages import pretrain as stage

    done = stage.run(
        loaded,
        shards=shards,
        out=out,
        nproc=nproc,
        device_name=device,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        profile=steps(profile),
        max_restarts=max_restarts,
        arguments=without_nproc(sys.argv[1:]),
    )
    finish("pretrain", done, f"kdctool eval {done.run} --task retrieval", format)


def finish(verb: str, done: Any, next_step: str, fmt: str) -> None:
    """Print a plan or the end of a training; leave with torchrun's exit code where it ran."""
    if done.fitted is None:
        if done.plan_rows and is_main_process():
            summary(
                f"{verb}: plan",
                done.plan_rows,
                f"kdctool {verb} without --dry-run",
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
        elif argument == "--nproc":
            skip = True
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept
