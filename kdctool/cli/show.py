"""Results on stdout: a table for people, one JSON object for programs."""

import json
import sys
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
PLAIN_WIDTH = 2000
"""Columns where the output is no terminal: nobody wants names broken in two by a pipe."""


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
    from rich.table import Table
    from rich.text import Text

    drawn = Table(show_header=bool(columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns or [""] * max((len(row) for row in rows), default=0)):
        drawn.add_column(column, justify="left" if place == 0 or not columns else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    out = console()
    out.print(Text(title, style="italic"), soft_wrap=True)  # Not the table's own title, which breaks at its width.
    out.print(drawn)


def console() -> Any:
    """A rich console on stdout, as wide as the terminal, or without an edge where there is none."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
