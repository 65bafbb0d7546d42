"""kdctool extract."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kdctool.cli.extract_rows import following, payload_of, rows_of
from kdctool.cli.show import Format, summary

_CLIPS, _HOW, _MANY, _AGAIN = "What a clip is", "How it is made", "Many machines", "Reruns"
_SHARDS = "With --to-shards, as in kdctool shard"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(extract)


def extract(
    videos: Annotated[
        str,
        typer.Argument(
            metavar="VIDEOS",
            help="Folder (searched recursively), one file, .txt list (a path per line), or .csv: `path` and optional"
            " `start`, `end` (or `start_s`, `duration_s`), `label` (one) or `labels` (separated by ;), `split`."
            " Folder, list and what it names may be URLs: s3://, gs://, file://.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="Folder for clips/, manifest.jsonl, quarantine.jsonl and done.json; a URL works, too"
            " (s3://: pip install 'kdctool\\[s3]', gs://: 'kdctool\\[gs]').",
        ),
    ],
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
        int | None,
        typer.Option(
            min=16,
            max=2048,
            rich_help_panel=_CLIPS,
            help="Width and height of a frame in pixels. Default: 224; with --images 512.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        Literal["crop", "pad", "squash", "keep"] | None,
        typer.Option(
            rich_help_panel=_CLIPS,
            help="How a picture becomes square. crop: its centre (default). pad: all of it, with black bars. squash:"
            " all of it, out of shape. For tasks with boxes (VGG-SS) take pad or squash: a crop cuts boxes."
            " keep (default with --images): it stays as it is; where its short side is longer than --size, it shrinks.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            rich_help_panel=_CLIPS,
            help="Take the pictures of VIDEOS (JPEG, PNG, WebP), not its videos: clips of one frame without sound, for"
            " recipes that look at frames alone. JPEGs that need not shrink are kept byte for byte.",
        ),
    ] = False,
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
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            rich_help_panel=_MANY,
            help="Only part I of N, from 1: a command per machine, all with the same OUT (folder or URL), or each with"
            " its own. The one that ends last writes the manifest.",
        ),
    ] = "",
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            rich_help_panel=_MANY,
            help="Write the manifest of parts whose folders were copied into OUT; make no clips.",
        ),
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            rich_help_panel=_MANY,
            help="local: this machine. ray: a Ray cluster, whose nodes all see VIDEOS and OUT, or reach them by URL"
            " (pip install 'kdctool\\[ray]'). Both give the same bytes.",
        ),
    ] = "local",
    ray_address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            rich_help_panel=_MANY,
            help="The cluster of --engine ray. Default: RAY_ADDRESS, or else a Ray on this machine.",
        ),
    ] = "",
    to_shards: Annotated[
        bool,
        typer.Option(
            "--to-shards",
            rich_help_panel=_SHARDS,
            help="OUT gets the tars and the index of kdctool shard. Clips lie in OUT/extraction until their tar is"
            " written: the disk never holds all clips and all tars.",
        ),
    ] = False,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", rich_help_panel=_SHARDS, help="Label file, SPLIT=FILE, or `folders`."),
    ] = None,
    labels_format: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_SHARDS, help="Format of the label files.")
    ] = "",
    class_names: Annotated[
        Path | None, typer.Option(rich_help_panel=_SHARDS, help="class_labels_indices.csv: turns ids into names.")
    ] = None,
    clips_per_shard: Annotated[int, typer.Option(min=1, rich_help_panel=_SHARDS, help="Clips in one tar.")] = 1000,
    no_holdout: Annotated[
        bool, typer.Option("--no-holdout", rich_help_panel=_SHARDS, help="Hold out no test split.")
    ] = False,
    split: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_SHARDS, help="Put every clip into this split.")
    ] = "",
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

    A folder of pictures: --images, and with --to-shards straight to shards (--labels folders: IMAGES/CLASS/1.jpg).

    Typed again, it does only what is missing. A file that cannot be used gets a row with its reason in
    OUT/quarantine.jsonl; it never stops the run and never becomes data.
    """
    from kdctool.errors import UsageFault
    from kdctool.media import parts
    from kdctool.media.settings import Settings
    from kdctool.stages import extract as stage

    if frames is not None and fps is not None:
        raise UsageFault("--frames and --fps both say how many frames a clip has", "give one of them")
    settings = Settings(
        frames=frames or (1 if images else 10),
        fps=fps,
        size=size or (512 if images else 224),
        fit=fit or ("keep" if images else "crop"),
        images=images,
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
    making: dict[str, Any] = {
        "workers": workers,
        "retry_quarantined": retry_quarantined,
        "max_bad": max_bad,
        "engine": engine,
        "ray_address": ray_address,
    }
    packing: dict[str, Any] = {
        "labels": labels,
        "labels_format": labels_format,
        "class_names": class_names,
        "clips_per_shard": clips_per_shard,
        "holdout": not no_holdout,
        "split": split,
    }
    if to_shards:
        if part or merge:
            raise UsageFault("--to-shards needs all clips in one place", "extract the parts, then kdctool shard")
        _to_shards(videos, out, settings, making, packing, overwrite, dry_run, format)
        return
    if labels or labels_format or class_names or clips_per_shard != 1000 or no_holdout or split:
        raise UsageFault(
            "labels, splits and sizes of shards are given without --to-shards", "give them to kdctool shard"
        )
    done = stage.run(
        videos,
        out,
        settings,
        overwrite=overwrite,
        dry_run=dry_run,
        part=parts.parse(part) if part else None,
        merge=merge,
        **making,
    )
    title = "extract: plan" if done.is_dry_run else "extract"
    summary(title, rows_of(done), following(done), payload_of(done), format)


def _to_shards(
    videos: str,
    shards: str,
    settings: Any,
    making: dict[str, Any],
    packing: dict[str, Any],
    overwrite: bool,
    dry_run: bool,
    format: Any,
) -> None:
    from kdctool.cli import shard as pack
    from kdctool.stages import extract_to_shards as stage

    made, packed = stage.run(videos, shards, settings, packing=packing, overwrite=overwrite, dry_run=dry_run, **making)
    if packed is None:
        summary("extract: plan", rows_of(made), following(made), payload_of(made), format)
        return
    payload = {"extraction": payload_of(made), "shards": packed.payload()}
    step = pack.train_with(shards, images=settings.images)
    summary(f"shards in {shards}", [*rows_of(made), *pack.rows_of(packed)], step, payload, format)
