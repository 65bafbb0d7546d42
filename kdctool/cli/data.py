"""kdctool data audit and kdctool data convert."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdctool.cli.show import Format, summary, table
from kdctool.errors import quoted

if TYPE_CHECKING:
    from kdctool.stages.data_audit import Audit

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="Label file as published (AudioSet, VGGSound, Kinetics, AVE, CAV-MAE json, VGG-SS, or a CSV with path or "
        "uid, label or labels, split); SPLIT=FILE names the split of all its rows; `folders`: the folder's name is the "
        "label. May be given several times.",
    ),
]
LabelsFormat = Annotated[
    str, typer.Option(metavar="NAME", help="Format of the label files; found by their content when not given.")
]
ClassNames = Annotated[
    Path | None,
    typer.Option(help="class_labels_indices.csv (index,mid,display_name): turns ids into names, orders the classes."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Look at label lists beside the clips there are, and convert them.")
    group.command()(audit)
    group.command()(convert)
    app.add_typer(group, name="data")


def audit(
    labels: Annotated[list[str], typer.Argument(metavar="LABELS", help="Label files, each FILE or SPLIT=FILE.")],
    clips: Annotated[
        Path | None,
        typer.Option(metavar="OUT|SHARDS", help="The clips there are; without it the list alone is audited."),
    ] = None,
    missing: Annotated[
        Path | None,
        typer.Option(help="Write what is missing here: ids, one per line; a .csv gets id,start_s,end_s,labels,split."),
    ] = None,
    labels_format: LabelsFormat = "",
    class_names: ClassNames = None,
    format: Format = "human",
) -> None:
    """Compare a label list with the clips there are. Nothing is downloaded.

    Coverage per split, clips listed or stored twice, clips and source videos in two splits, classes without clips.
    Exit code 3 only when no clip of the list is there.
    """
    from kdctool.stages import data_audit as stage

    done = stage.run(labels, clips, labels_format=labels_format, class_names=class_names, missing=missing)
    if format == "human" and done.splits:
        rows = [[name or "(none)", str(c.listed), str(c.present), c.share] for name, c in done.splits.items()]
        columns = ["split", "listed", "there", "share"] if done.clips else ["split", "listed"]
        table("coverage" if done.clips else "the list", columns, [row[: len(columns)] for row in rows])
    files = [quoted(file) for file in labels]
    shard = " ".join(["kdctool shard OUT SHARDS", *(f"--labels {file}" for file in files)])
    after = shard if clips else f"kdctool data audit {' '.join(files)} --clips OUT"
    summary(f"audit of {', '.join(done.files)}", _rows(done), after, done.payload(), format)
    done.raise_if_nothing_matches()


def convert(
    clips: Annotated[Path, typer.Argument(metavar="OUT|SHARDS", help="Extracted clips or shards.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.json", help="File to write.")],
    to: Annotated[str, typer.Option("--to", help="cavmae: the json and label csv of the CAV-MAE code.")] = "cavmae",
    class_names: Annotated[
        Path | None, typer.Option(help="class_labels_indices.csv whose order and mids the new label csv takes over.")
    ] = None,
    no_media: Annotated[
        bool, typer.Option("--no-media", help="Write the lists only; their paths say where the media would be.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace lists that are there.")] = False,
    format: Format = "human",
) -> None:
    """Write clips for another code base: lists, and audio and frames where it looks for them."""
    from kdctool.stages import data_convert as stage

    done = stage.run(clips, target, to=to, class_names=class_names, media=not no_media, overwrite=overwrite)
    reasons = ", ".join(f"{count} {reason}" for reason, count in done.left_out.items())
    rows = [
        ("clips", f"{done.num_clips} of {done.num_rows}" + (f"; left out: {reasons}" if reasons else "")),
        *(("list", f"{name}: {count} clips") for name, count in done.lists.items()),
        ("classes", f"{done.num_labels} in {done.label_csv}"),
        ("media", done.media_folder or "not written"),
    ]
    summary(f"convert to {to}", rows, done.next_step, done.payload(), format)


def _rows(done: "Audit") -> list[tuple[str, str]]:
    rows = [("format", ", ".join(dict.fromkeys(done.formats)))]
    if done.clips:
        reasons = ", ".join(f"{reason} {count}" for reason, count in done.quarantined.items())
        rows += [
            ("clips of the list there", f"{done.num_present} of {done.num_listed}"),
            ("missing", f"{done.num_missing}" + (f", ids in {done.missing_file}" if done.missing_file else "")),
            ("there but not usable", f"{sum(done.quarantined.values())}" + (f": {reasons}" if reasons else "")),
            ("clips without a row", _with_examples(done.num_unlisted, done.unlisted_examples)),
        ]
    rows += [("listed twice", _with_examples(done.listed_twice, done.listed_twice_examples))]
    if done.clips:
        rows += [
            ("stored twice", _with_examples(done.stored_twice, done.stored_twice_examples)),
            ("same content twice", _with_examples(done.same_content, done.same_content_examples)),
        ]
    for overlap in done.overlaps:
        rows.append(
            (
                f"{overlap.first} and {overlap.second}",
                f"{_with_examples(overlap.clips, overlap.clip_examples)} clips in both; "
                f"{_with_examples(overlap.videos, overlap.video_examples)} source videos in both",
            )
        )
    if not done.overlaps and len(done.compared) > 1:
        rows.append(("overlap of splits", "none, neither by clip nor by source video"))
    rows.append(("classes", done.balance_text))
    if done.empty_classes:
        rows.append(("classes without clips", _with_examples(len(done.empty_classes), done.empty_classes)))
    return rows


def _with_examples(count: int, examples: list[str]) -> str:
    shown = ", ".join(examples[:3]) + (", ..." if len(examples) > 3 or count > len(examples) else "")
    return f"{count} ({shown})" if examples else str(count)
