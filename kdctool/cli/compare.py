"""kdctool compare."""

from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Format, summary, table
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    first: Annotated[Path, typer.Argument(help="Run, export or evaluation folder.")],
    second: Annotated[Path, typer.Argument(help="The one it is compared with.")],
    task: Annotated[str, typer.Option(help="Task to compare, where both have several.")] = "",
    intersect: Annotated[
        bool, typer.Option("--intersect", help="Where the clip lists differ, compare on the clips that are in both.")
    ] = False,
    format: Format = "human",
) -> None:
    """Compare two evaluations clip by clip: difference, 95 % interval, p. Paired bootstrap over source videos.

    Reads what kdctool eval wrote; refused when the protocols or the clips differ.
    """
    from kdctool.stages import compare as stage

    done = stage.run(first, second, task=task, intersect=intersect)
    if format == "human":
        columns = ["metric", "first", "second", "second - first", "95 % interval", "p"]
        rows = [
            [
                row.metric,
                _text(row.first),
                _text(row.second),
                _text(row.difference, "+.3f"),
                f"{_text(row.low, '+.3f')} to {_text(row.high, '+.3f')}",
                _text(row.p),
            ]
            for row in done.rows
        ]
        table(f"{done.task} ({done.protocol})", columns, rows)
    told = [
        ("first", str(done.first)),
        ("second", str(done.second)),
        ("clips", f"{done.num_clips} of {done.num_sources} source videos, the same for both"),
        *(("note", note) for note in done.notes),
    ]
    summary("compare", told, f"cat {quoted(done.second / 'results.json')}", done.payload(), format)


def _text(value: float, form: str = ".3f") -> str:
    return "unknown" if value != value else f"{value:{form}}"
