"""kdctool demo."""

from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Format, Set, summary, table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the clips, the weights and the training.")] = 0,
    change: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier demo in the same folder.")] = False,
    format: Format = "human",
) -> None:
    """The whole way on clips it makes itself: extract, shard, pretrain, eval, finetune, export, report. CPU, minutes.

    160 clips of moving coloured shapes with sounds that go with them; 40 combinations are held out.
    """
    from kdctool.stages import demo as stage

    done = stage.run(out, seed=seed, overrides=change, overwrite=overwrite)
    if format == "human":
        for section in done.tables:
            table(section.title, section.columns, section.rows)
    summary("where it lies", done.places, done.next_step, done.payload, format)
