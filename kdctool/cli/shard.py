"""kdctool shard and kdctool verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdctool.cli.data import ClassNames, Labels, LabelsFormat
from kdctool.cli.show import Format, summary
from kdctool.errors import quoted

if TYPE_CHECKING:
    from kdctool.stages.shard import ShardSummary


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(shard)
    app.command()(verify)


def shard(
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder that kdctool extract wrote, or its URL (s3://, gs://, file://)."),
    ],
    shards: Annotated[
        str,
        typer.Argument(
            metavar="SHARDS",
            help="Folder for the tars and index.json, or its URL. Training reads folders of this machine.",
        ),
    ],
    labels: Labels = None,
    labels_format: LabelsFormat = "",
    class_names: ClassNames = None,
    label_list: Annotated[
        Path | None, typer.Option(help="The labels that may occur, one per line, in the order of the classes.")
    ] = None,
    clips_per_shard: Annotated[int, typer.Option(min=1, help="Clips in one tar; 1000 are about 350 MB.")] = 1000,
    no_holdout: Annotated[bool, typer.Option("--no-holdout", help="Hold out no test split.")] = False,
    split: Annotated[str, typer.Option(metavar="NAME", help="Put every clip into this split.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards that kdctool made there before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and estimate, write nothing.")] = False,
    format: Format = "human",
) -> None:
    """Pack extracted clips into WebDataset tars with an index.

    Stopped at any moment, the same command goes on; the same input gives the same bytes. Clips are shuffled by a hash
    of their uid. Without splits in the manifest or the label file, 10 % of the clips (at least 20, at most 1,000, never
    more than half; whole source videos, copies of a file together) are held out as `test`.
    """
    from kdctool.stages import shard as stage

    done = stage.run(
        out,
        shards,
        labels=labels,
        labels_format=labels_format,
        class_names=class_names,
        label_list=label_list,
        clips_per_shard=clips_per_shard,
        holdout=not no_holdout,
        split=split,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    again = "the same command without --dry-run"
    following = train_with(shards)
    title = "shard: plan, nothing was written" if dry_run else f"shards in {shards}"
    summary(title, rows_of(done), again if dry_run else following, done.payload(), format)


def verify(
    path: Annotated[
        str, typer.Argument(help="Shards, an extraction folder, a run, a checkpoint or an export; on this machine.")
    ],
    format: Format = "human",
) -> None:
    """Recompute every hash of a folder that kdctool wrote.

    Exit code 5 when anything is missing, short, changed or extra; each is named with file, member and offset.
    """
    from kdctool.errors import UsageFault
    from kdctool.files import size_text
    from kdctool.places import Remote, parse
    from kdctool.stages import verify as stage

    folder = parse(path)
    if isinstance(folder, Remote):
        raise UsageFault(f"verify reads every byte, and not through a network: {folder}", "copy the folder here first")
    report = stage.run(folder)
    rows = [
        ("what", report.kind),
        ("files", f"{report.num_files}, {size_text(report.num_bytes)}"),
        ("damaged", "0"),
        *(("note", note) for note in report.notes),
    ]
    summary(f"verify {path}", rows, "", report.payload(), format)


def train_with(shards: str, images: bool = False) -> str:
    """What to do with shards; those of pictures need a recipe that looks at frames alone."""
    from kdctool.places import is_url

    here = "shards/" if is_url(shards) else quoted(shards)
    copy = f"copy {shards} to {here} on this machine, then " if is_url(shards) else ""
    if images:
        return f"{copy}kdctool pretrain recipes/hybrid_clip.toml --shards {here}"
    return f"{copy}kdctool recipe new --from {here} > mine.toml, then kdctool pretrain mine.toml"


def rows_of(done: "ShardSummary") -> list[tuple[str, str]]:
    """The table."""
    from kdctool.files import size_text

    rows = [
        (f"split {name}", f"{counts['clips']} clips in {counts['shards']} tars") for name, counts in done.splits.items()
    ]
    reasons = ", ".join(f"{reason} {count}" for reason, count in done.left_out.items())
    rows += [
        (
            "clips",
            f"{done.num_clips} of {done.num_rows} rows of the manifest" + (f"; left out: {reasons}" if reasons else ""),
        ),
        ("bytes", ("about " if done.dry_run else "") + size_text(done.num_bytes)),
        ("tars", f"{done.written} {'to write' if done.dry_run else 'written'}, {done.kept} done before"),
        ("labels", f"{done.num_labels}" + (", several per clip" if done.multi_label else "")),
        ("clips without label", f"{done.unlabelled} of {done.num_clips}"),
    ]
    if done.unmatched:
        shown = ", ".join(done.unmatched_examples) + (", ..." if done.unmatched > len(done.unmatched_examples) else "")
        rows.append(("label rows without a clip", f"{done.unmatched}: {shown}"))
    if done.without_split:
        rows.append(("clips without a split", f"{done.without_split}, put into train"))
    if done.shared_sources:
        rows.append(("source videos in two splits", str(done.shared_sources)))
    return rows
