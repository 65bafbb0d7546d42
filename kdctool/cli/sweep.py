"""kdctool sweep."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Device, Format, Set, summary, table
from kdctool.errors import UsageFault, quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sweep)


def sweep(
    study: Annotated[
        Path, typer.Argument(help="Study (TOML), for example recipes/studies/avdigits.toml; or a recipe.")
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V", help="With a recipe: values to try; several times gives all combinations."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK[:SPLIT]", help="With --grid: what is measured; default retrieval.")
    ] = None,
    endpoint: Annotated[
        str, typer.Option(metavar="TASK-SPLIT/METRIC", help="With --grid: the number that is compared.")
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of a grid (default 1); the first so many of a study.")
    ] = None,
    arms: Annotated[str, typer.Option(metavar="A,B", help="Run these arms only.")] = "",
    shards: Annotated[Path | None, typer.Option(help="Folder of shards; overrides data.shards.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; default studies/NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells side by side, each in a process of its own.")] = 1,
    cell: Annotated[str, typer.Option(metavar="I/N", help="Every N-th cell from the I-th on, for array jobs.")] = "",
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Save and stop after this time (exit code 75); again goes on.")
    ] = None,
    summary_only: Annotated[
        bool, typer.Option("--summary", help="Run nothing: tables and plot of what is there.")
    ] = False,
    amend: Annotated[
        str, typer.Option(metavar="REASON", help="Go on with a changed protocol; the change is told under every table.")
    ] = "",
    workers: Annotated[int | None, typer.Option(min=0, help="Reading processes; overrides data.workers.")] = None,
    change: Set = None,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print arms, steps, FLOPs and cells, and stop.")] = False,
    format: Format = "human",
) -> None:
    """Run a study: arms x seeds, each pre-trained and measured, then one table with intervals and a plot.

    Seeds pair the arms. Typed again, it goes on with the cells that are not done.
    """
    from kdctool.recipe.study import load_study
    from kdctool.recipe.study_grid import grid_study

    if grid:
        asked = grid_study(study, grid, seeds or 1, task or ["retrieval"], endpoint)
    elif task or endpoint:
        raise UsageFault("--task and --endpoint go with --grid", "a study file names its evaluations itself")
    else:
        asked = load_study(study)
    from kdctool.stages import sweep as stage

    done = stage.run(
        asked,
        shards=shards,
        out=out,
        overrides=change,
        arms=[name.strip() for name in arms.split(",") if name.strip()],
        seeds=None if grid else seeds,
        jobs=jobs,
        cell=cell,
        summary_only=summary_only,
        dry_run=dry_run,
        amend=amend,
        minutes=minutes,
        device_name=device,
        workers=workers,
        arguments=for_one_cell(sys.argv[1:]),
    )
    if format == "json":
        print(json.dumps(done.payload, sort_keys=True))
    else:
        for section in done.tables:
            table(section.title, section.columns, section.rows)
        for note in done.notes:
            print(note)
        places = [("study", str(done.out)), *(("plot", str(path)) for path in done.plots)]
        missing = sum(state != "done" for state in done.states.values())
        again = (
            f"the same command runs the {missing} cells that are not done"
            if missing
            else f"cat {quoted(done.out / 'table.md')}"
        )
        summary("sweep: plan" if dry_run else "sweep", places, again, {}, format)
    if done.fault is not None:
        raise done.fault


def for_one_cell(arguments: list[str]) -> list[str]:
    """The command line without what is said to the study as a whole."""
    kept, skip = [], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if skip:
            skip = False
        elif name in ("--jobs", "--minutes", "--cell"):
            skip = "=" not in argument
        elif argument != "--summary":
            kept.append(argument)
    return kept
