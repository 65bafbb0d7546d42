"""kdctool doctor: what is installed, what would fail, and the fix for each."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Format, table


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where output would be written: free disk and permissions.")] = Path(),
    fmt: Format = "human",
) -> None:
    """Examine this machine: OK, WARN or FAIL per row, what would fail and the fix. Ends with 4 when a row FAILs."""
    from kdctool.stages import doctor as stage

    report = stage.run(folder)
    if fmt == "json":
        print(json.dumps(report.payload(), sort_keys=True))
    else:
        rows = [[row.status, row.check, row.found] for row in report.rows]
        table("kdctool doctor", [], rows)
        for row in report.rows:
            if row.status != "OK":
                print(f"{row.status} {row.check}: would fail: {row.breaks}\n     fix: {row.fix}")
        if report.status == "FAIL":
            print("next: fix the rows marked FAIL, then kdctool doctor again")
        else:
            print("next: kdctool demo, or kdctool extract VIDEOS out/")
    if report.status == "FAIL":
        raise typer.Exit(4)
