"""kdctool embed."""

from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Device, Format, summary


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(embed)


def embed(
    clips: Annotated[Path, typer.Argument(help="Folder of videos, one video, or a folder of shards.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .npy or .parquet.")] = Path("features.npy"),
    run: Annotated[
        Path | None, typer.Option("--model", help="Run or export folder; default: the newest finished run.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="One split of the shards; default: all.")] = None,
    windows: Annotated[bool, typer.Option("--windows", help="Every window of a video, not the first alone.")] = False,
    stride: Annotated[
        float | None, typer.Option(help="Seconds between windows; default: their length. Means --windows.")
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per forward pass.")] = 32,
    workers: Annotated[int | None, typer.Option(min=0, help="Reading processes; overrides data.workers.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    format: Format = "human",
) -> None:
    """Turn clips into vectors: sound, picture and both (of an image model the picture), unit length; no labels needed.

    Typed again after an interruption, it goes on where it stopped.
    """
    from kdctool.stages import embed as stage

    done = stage.run(
        run,
        clips,
        out,
        split=split,
        stride_s=stride,
        every_window=windows,
        device_name=device,
        batch_size=batch_size,
        workers=workers,
        overwrite=overwrite,
    )
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(done.missing.items()))
    rows = [
        ("model", done.model),
        ("embedded", f"{done.n_embedded} of {done.n_total}" + (f", missing: {lost}" if lost else "")),
        ("vectors", f"{', '.join(done.parts)}: {done.width} numbers each, unit length"),
        *([("from an earlier start", str(done.resumed))] if done.resumed else []),
        ("file", str(done.path)),
    ]
    payload = {
        "path": str(done.path),
        "n_embedded": done.n_embedded,
        "n_total": done.n_total,
        "missing": done.missing,
        "width": done.width,
        "vectors": list(done.parts),
    }
    reading = "numpy.load" if done.path.suffix == ".npy" else "pandas.read_parquet"
    summary("embed", rows, f"python: {reading}({str(done.path)!r})", payload, format)
