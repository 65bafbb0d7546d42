"""kdctool report."""

from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Format, summary
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    run: Annotated[Path | None, typer.Argument(help="Run or export folder; default: the newest finished run.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; default RUN/report.html.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page; default: the run's name.")] = "",
    shards: Annotated[Path | None, typer.Option(help="Where the clips lie now, if not where they were scored.")] = None,
    max_mb: Annotated[float, typer.Option(min=0.2, help="Size limit; pictures and sound give way.")] = 25.0,
    format: Format = "human",
) -> None:
    """One HTML file about a run: curves, scores with intervals and chance, galleries with pictures and sound.

    It needs no network and no server; evaluations that were not run are named with their commands.
    """
    from kdctool.files import size_text
    from kdctool.stages import report as stage

    done = stage.run(run, out=out, title=title, shards=shards, max_mb=max_mb)
    media = ", ".join(f"{number} {kind}s" for kind, number in done.kept.items()) or "none"
    left = ", ".join(f"{number} {kind}s" for kind, number in done.left_out.items())
    rows = [
        ("page", f"{done.path} ({size_text(done.size)})"),
        ("curves", f"{done.rows} rows of metrics" if done.rows else "none: the run has no metrics"),
        ("evaluations", ", ".join(done.sections) or "none"),
        ("media", media + (f"; left out for size: {left}" if left else "")),
    ]
    if done.unfinished:
        rows.insert(0, ("unfinished", done.unfinished))
    if done.is_small:
        rows.append(("pictures", "half as large as they could be, for size"))
    if done.not_done:
        rows.append(("not evaluated", ", ".join(one.task for one in done.not_done)))
    # Not what first needs a classifier, boxes or a decoder.
    first = next((one.command for one in done.not_done if one.command and not one.reason), "")
    payload = {
        "path": str(done.path),
        "bytes": done.size,
        "rows": done.rows,
        **({"unfinished": done.unfinished} if done.unfinished else {}),
        "evaluations": list(done.sections),
        "media": done.kept,
        "left_out": done.left_out,
        "not_evaluated": [one.task for one in done.not_done],
    }
    summary("report", rows, first or f"open {quoted(done.path)} in a browser", payload, format)
