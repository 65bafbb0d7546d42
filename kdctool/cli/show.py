"""Results on stdout: a table for people, one JSON object for programs."""

import json
from typing import Annotated, Any, Literal

import typer

Format = Annotated[
    Literal["human", "json"], typer.Option("--format", help="human tables, or one JSON object on stdout.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a key of the recipe; may be given several times."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def summary(title: str, rows: list[tuple[str, str]], next_step: str, payload: dict[str, Any], fmt: str) -> None:
    """End of a command: what came out, and the next command to type. `payload` is the JSON form."""
    if fmt == "json":
        print(json.dumps(payload, sort_keys=True))
        return
    table(title, [], [list(row) for row in rows])
    if next_step:
        print(f"next: {next_step}")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A plain table; the first column is left, numbers keep the alignment they come with."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", show_header=bool(columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns or [""] * max((len(row) for row in rows), default=0)):
        drawn.add_column(column, justify="left" if place == 0 or not columns else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console(highlight=False).print(drawn)
