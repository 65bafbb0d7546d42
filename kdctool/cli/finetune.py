"""kdctool finetune."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdctool.cli.show import Device, Format, Set
from kdctool.cli.training import DryRun, MaxRestarts, Nproc, Overwrite, Profile, Workers, finish, steps, without_nproc
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(finetune)


def finetune(
    run: Annotated[
        Path | None, typer.Argument(help="Pre-training run or export to start from; default: the newest finished run.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe whose \\[finetune] section to use; default: the run's own recipe.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="Labelled shards; overrides data.shards.")] = None,
    modality: Annotated[
        Literal["audio", "video", "both"] | None,
        typer.Option(help="Which towers classify; overrides finetune.modality."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME-finetune-sSEED-DIGEST.")] = None,
    nproc: Nproc = 1,
    workers: Workers = None,
    change: Set = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    max_restarts: MaxRestarts = 0,
    profile: Profile = None,
    format: Format = "human",
) -> None:
    """Train a classifier on labelled shards: audio, video or both; one label per clip or several.

    Typed again, it goes on from the last complete checkpoint; started under torchrun, it joins.
    """
    from kdctool import recipe as recipes

    changes = [*(change or []), *([f"finetune.modality={modality}"] if modality else [])]
    loaded = recipes.load(recipe, changes) if recipe else None
    from kdctool.stages import finetune as stage

    done = stage.run(
        run,
        recipe=loaded,
        overrides=changes,
        shards=shards,
        out=out,
        nproc=nproc,
        device_name=device,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        profile=steps(profile),
        max_restarts=max_restarts,
        arguments=without_nproc(sys.argv[1:]),
    )
    finish("finetune", done, f"kdctool eval {quoted(done.run)} --task classification", format)
