"""kdctool extract."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdctool.cli.show import Format, summary

if TYPE_CHECKING:
    from kdctool.stages.extract import Summary

_CLIPS, _HOW, _AGAIN = "What a clip is", "How it is made", "Reruns"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(extract)


def extract(
    videos: Annotated[
        Path,
        typer.Argument(
            help="Folder (searched recursively), .txt list (a path per line), or .csv with a column `path` and optional"
            " `start`, `end` (or `start_s`, `duration_s`), `label` (one) or `labels` (separated by ;), `split`."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for clips/, manifest.jsonl, quarantine.jsonl and done.json.")],
    frames: Annotated[
        int, typer.Option(min=1, max=1000, rich_help_panel=_CLIPS, help="Frames per clip, evenly spaced.")
    ] = 10,
    size: Annotated[
        int,
        typer.Option(min=16, max=2048, rich_help_panel=_CLIPS, help="Pixels of the short side, then a centre crop."),
    ] = 224,
    jpeg_quality: Annotated[int, typer.Option(min=1, max=100, rich_help_panel=_CLIPS, help="JPEG quality.")] = 92,
    clip_seconds: Annotated[
        float,
        typer.Option(min=0.1, rich_help_panel=_CLIPS, help="Length of a clip; a shorter video gives a shorter clip."),
    ] = 10.0,
    stride: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            rich_help_panel=_CLIPS,
            help="Cut long videos: a clip every so many seconds; half a clip left counts. Default: the first only.",
        ),
    ] = None,
    audio: Annotated[
        Literal["flac"], typer.Option(rich_help_panel=_CLIPS, help="Format of the 16 kHz mono sound.")
    ] = "flac",
    decoder: Annotated[
        Literal["auto", "ffmpeg", "pyav"],
        typer.Option(
            rich_help_panel=_HOW,
            help="ffmpeg: a process per clip. pyav: faster, skips what no wanted frame needs. Both give the same clips."
            " auto: pyav for common codecs, ffmpeg for the rest and for clips on which pyav died.",
        ),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_HOW, help="Processes; default: one per core.")
    ] = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, rich_help_panel=_HOW, help="Exit code 3 when a larger share is quarantined.")
    ] = 1.0,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", rich_help_panel=_AGAIN, help="Try the quarantined ones again.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=_AGAIN, help="Delete the clips in OUT and start anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=_AGAIN, help="Count what would be done; write nothing.")
    ] = False,
    format: Format = "human",
) -> None:
    """Turn videos into clips: frames picked by timestamp, upright and cropped, and 16 kHz mono sound.

    Typed again, it does only what is missing. A file that cannot be used gets a row with its reason in
    OUT/quarantine.jsonl; it never stops the run and never becomes data.
    """
    from kdctool.media.settings import Settings
    from kdctool.stages import extract as stage

    settings = Settings(frames, size, jpeg_quality, clip_seconds, stride, audio, decoder)
    done = stage.run(
        videos,
        out,
        settings,
        workers=workers,
        retry_quarantined=retry_quarantined,
        overwrite=overwrite,
        dry_run=dry_run,
        max_bad=max_bad,
    )
    title = "extract: plan" if done.is_dry_run else "extract"
    next_step = "the same command without --dry-run" if done.is_dry_run else f"kdctool shard {out} shards/"
    summary(title, _rows(done), next_step, _payload(done), format)


def _rows(done: "Summary") -> list[tuple[str, str]]:
    from kdctool.files import size_text

    rows = [("videos", str(done.num_inputs))]
    if done.is_dry_run:
        rows += [("done already", str(done.num_inputs - done.num_todo))]
        rows += [("to do", f"{done.num_todo} ({size_text(done.num_bytes)} to read)")]
    else:
        total = sum(done.counts.values())
        rows += [("clips", f"{total - done.counts.get('quarantined', 0)} of {total} usable")]
        rows += [(status, str(done.counts.get(status, 0))) for status in ("ok", "flagged")]
        rows += [(f"  {flag}", str(count)) for flag, count in done.flags.items()]
        rows += [("quarantined", str(done.counts.get("quarantined", 0)))]
        rows += [(f"  {reason}", str(count)) for reason, count in done.reasons.items()]
    rows += [("other files, ignored", str(done.num_ignored))]
    rows += [("named twice", str(done.num_duplicates))] if done.num_duplicates else []
    rows += [("kept of videos not given now", str(done.num_absent))] if done.num_absent else []
    if not done.is_dry_run:
        rows += [("made now", f"{done.num_made} in {done.seconds:.1f} s, {done.clips_per_s:.1f} clips/s")]
    return [*rows, ("folder", str(done.out))]


def _payload(done: "Summary") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(done) | {
        "out": str(done.out),
        "clips_per_s": round(done.clips_per_s, 3),
        "seconds": round(done.seconds, 3),
    }
