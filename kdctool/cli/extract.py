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
        int | None,
        typer.Option(
            min=1,
            max=1000,
            rich_help_panel=_CLIPS,
            help="Frames per clip, evenly spaced. Default: 10.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, max=240, rich_help_panel=_CLIPS, help="Frames per second, instead of --frames."),
    ] = None,
    size: Annotated[
        int, typer.Option(min=16, max=2048, rich_help_panel=_CLIPS, help="Width and height of a frame in pixels.")
    ] = 224,
    fit: Annotated[
        Literal["crop", "pad", "squash"],
        typer.Option(
            rich_help_panel=_CLIPS,
            help="How a picture becomes square. crop: its centre. pad: all of it, with black bars. squash: all of it,"
            " out of shape. For tasks with boxes (VGG-SS) take pad or squash: a crop cuts boxes.",
        ),
    ] = "crop",
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
        Literal["flac", "wav", "opus"],
        typer.Option(
            rich_help_panel=_CLIPS,
            help="Format of the mono sound. flac and wav keep every sample, wav is read fastest, opus is lossy.",
        ),
    ] = "flac",
    audio_rate: Annotated[
        int,
        typer.Option(min=4000, max=192_000, rich_help_panel=_CLIPS, help="Samples per second. The models need 16000."),
    ] = 16000,
    video_stream: Annotated[
        int | None,
        typer.Option(
            min=0, max=63, rich_help_panel=_CLIPS, help="Which video stream of a file, from 0. Default: the best."
        ),
    ] = None,
    audio_stream: Annotated[
        int | None,
        typer.Option(
            min=0, max=63, rich_help_panel=_CLIPS, help="Which audio stream of a file, from 0. Default: the best."
        ),
    ] = None,
    allow_missing: Annotated[
        Literal["none", "audio", "video", "both"],
        typer.Option(
            rich_help_panel=_CLIPS,
            help="Keep clips that lack this modality; `modalities` in the manifest says what a clip has. Training and"
            " evaluation leave them out, and say how many.",
        ),
    ] = "none",
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
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=_AGAIN,
            help="Count what would be done, and tell time and bytes from a sample; write nothing.",
        ),
    ] = False,
    format: Format = "human",
) -> None:
    """Turn videos into clips: frames picked by timestamp, upright and square, and mono sound from the same start.

    Typed again, it does only what is missing. A file that cannot be used gets a row with its reason in
    OUT/quarantine.jsonl; it never stops the run and never becomes data.
    """
    from kdctool.errors import UsageFault
    from kdctool.media.settings import Settings
    from kdctool.stages import extract as stage

    if frames is not None and fps is not None:
        raise UsageFault("--frames and --fps both say how many frames a clip has", "give one of them")
    settings = Settings(
        frames=frames or 10,
        fps=fps,
        size=size,
        fit=fit,
        jpeg_quality=jpeg_quality,
        window_s=clip_seconds,
        stride_s=stride,
        audio=audio,
        sample_rate=audio_rate,
        video_stream=video_stream,
        audio_stream=audio_stream,
        allow_missing=allow_missing,
        decoder=decoder,
    )
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
        rows += [("to do", f"{done.num_todo} ({size_text(done.num_bytes)} in these files)")]
        rows += _told(done)
    else:
        total = sum(done.counts.values())
        rows += [("clips", f"{total - done.counts.get('quarantined', 0)} of {total} usable")]
        rows += [(status, str(done.counts.get(status, 0))) for status in ("ok", "flagged")]
        rows += [(f"  {flag}", str(count)) for flag, count in done.flags.items()]
        rows += [(lack, str(count)) for lack, count in sorted(done.lacking.items())]
        rows += [("quarantined", str(done.counts.get("quarantined", 0)))]
        rows += [(f"  {reason}", str(count)) for reason, count in done.reasons.items()]
    rows += [("other files, ignored", str(done.num_ignored))]
    rows += [("named twice", str(done.num_duplicates))] if done.num_duplicates else []
    if done.num_same_bytes or done.num_look_alike:
        told = f"{done.num_same_bytes} copies to the byte, {done.num_look_alike} groups that look alike"
        rows += [("duplicates", f"{told} (duplicates.json)")]
    rows += [("kept of videos not given now", str(done.num_absent))] if done.num_absent else []
    if not done.is_dry_run:
        rows += [("made now", f"{done.num_made} in {done.seconds:.1f} s, {done.clips_per_s:.1f} clips/s")]
    return [*rows, ("folder", str(done.out))]


def _told(done: "Summary") -> list[tuple[str, str]]:
    """What a dry run found out by trying a few inputs."""
    from kdctool.files import size_text

    told = done.estimate
    if told is None:
        return []
    return [
        ("tried", f"{told.num_sampled} of them, {told.usable:.0%} of their clips usable"),
        ("clips, about", f"{told.num_clips:.0f}"),
        ("time, about", _time_text(told.seconds)),
        ("disk, about", f"{size_text(told.loose_bytes)} here, {size_text(told.tar_bytes)} more as shards"),
    ]


def _time_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _payload(done: "Summary") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(done) | {
        "out": str(done.out),
        "clips_per_s": round(done.clips_per_s, 3),
        "seconds": round(done.seconds, 3),
    }
