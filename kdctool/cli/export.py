"""kdctool export."""

from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Format, summary
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)


def export(
    run: Annotated[Path | None, typer.Argument(help="Run or export folder; default: the newest finished run.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("export"),
    to: Annotated[
        str,
        typer.Option(
            help="Formats, comma-separated: hf (safetensors folder), onnx (graphs), timm (image models: a folder of"
            " timm's, and names of OpenMMLab). Default: hf,onnx; of an image model timm.",
            show_default=False,
        ),
    ] = "",
    shards: Annotated[
        Path | None, typer.Option(help="Compare on real clips of these shards; default: seeded noise.")
    ] = None,
    decoder: Annotated[
        bool, typer.Option("--decoder", help="Keep the pre-training decoder, so that pre-training can go on from it.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in the same folder.")
    ] = False,
    format: Format = "human",
) -> None:
    """Write a model for others: a Hugging Face style folder with a model card, ONNX graphs, or a folder of timm's.

    Every file is compared with the model it came from before the folder appears; a difference above 1e-4 ends
    with exit code 5 and leaves nothing.
    """
    from kdctool.files import size_text
    from kdctool.stages import export as stage

    formats = tuple(name.strip() for name in to.split(",") if name.strip()) or None
    done = stage.run(run, out=out, to=formats, shards=shards, overwrite=overwrite, decoder=decoder)
    rows = [
        ("model", done.model),
        ("folder", str(done.folder)),
        *((name, size_text(size)) for name, size in done.files.items()),
        ("compared on", done.origin),
        *((f"difference, {check.name}", f"{check.difference:.2e} (limit {check.limit:g})") for check in done.checks),
    ]
    payload = {
        "folder": str(done.folder),
        "files": done.files,
        "compared_on": done.origin,
        "differences": {check.name: {"value": check.difference, "limit": check.limit} for check in done.checks},
    }
    task = "classification" if done.kind == "finetune" else "diagnose" if done.is_image else "retrieval"
    is_ours = "kdctool.json" in done.files
    following = (
        f"kdctool eval {quoted(done.folder)} --task {task}" if is_ours else f"less {quoted(done.folder / 'README.md')}"
    )
    summary("export", rows, following, payload, format)
