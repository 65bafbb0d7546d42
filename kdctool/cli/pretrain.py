"""kdctool pretrain."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Device, Format, Set
from kdctool.cli.training import DryRun, MaxRestarts, Nproc, Overwrite, Profile, Workers, finish, steps, without_nproc
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pretrain)


def pretrain(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML), for example recipes/vggsound.toml.")],
    shards: Annotated[Path | None, typer.Option(help="Folder of shards; overrides data.shards.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME-sSEED-DIGEST.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Weights to go on from: a run, an export, an import or a file; overrides model.init."),
    ] = None,
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
    """Learn representations from shards, without labels.

    Typed again, it goes on from the last complete checkpoint; started under torchrun, it joins.
    """
    from kdctool import recipe as recipes

    changes = [*(change or []), *([f"model.init={json.dumps(str(init), ensure_ascii=False)}"] if init else [])]
    loaded = recipes.load(recipe, changes)  # Before torch: a typo should not cost seconds.
    from kdctool.stages import pretrain as stage

    done = stage.run(
        loaded,
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
    finish("pretrain", done, f"kdctool eval {quoted(done.run)} --task retrieval", format)
