"""kdctool launch: the command lines for several machines, or a file for sbatch. It starts nothing."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Set
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(launch)


def launch(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML) to pre-train.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs, and processes, of each.")] = 1,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print a file for sbatch.")] = False,
    time: Annotated[
        str, typer.Option(help="Slurm: time limit of one start; the job queues itself again.")
    ] = "24:00:00",
    partition: Annotated[str, typer.Option(help="Slurm: partition.")] = "",
    cpus_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="Slurm: cores for each GPU; default: data.workers and one more.")
    ] = None,
    endpoint: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Without Slurm: where the nodes meet, the first node's name.")
    ] = "FIRST-NODE",
    shards: Annotated[Path | None, typer.Option(help="Folder of shards; overrides data.shards.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, seen by all nodes; default runs/NAME-sSEED-DIGEST.")
    ] = None,
    change: Set = None,
) -> None:
    """Print the torchrun line of every node, or a whole Slurm file: kdctool launch r.toml --nodes 2 --slurm > job.sh.

    The Slurm job saves before its time is over, queues itself again and goes on; it stops when that brings no new step.
    """
    from kdctool import recipe as recipes
    from kdctool.stages import launch_script

    options = [
        *(("--shards", str(shards)) if shards else ()),
        *(part for item in change or [] for part in ("--set", item)),
    ]
    job = launch_script.plan(recipes.load(recipe, change), recipe, nodes, gpus_per_node, out, tuple(options))
    if slurm:
        print(launch_script.sbatch(job, time, partition, cpus_per_gpu), end="")
        print(f"next: save it (> job.sh), then sbatch job.sh; kdctool runs watch {quoted(job.run)}", file=sys.stderr)
        return
    for line in launch_script.torchrun_lines(job, endpoint):
        print(line)
    if nodes == 1:
        other = f"kdctool pretrain {quoted(recipe)} --nproc {gpus_per_node}"
        print(f"next: run it; {other} does the same and keeps exit codes and signals", file=sys.stderr)
    else:
        print(f"next: run one line on each node; kdctool runs watch {quoted(job.run)}", file=sys.stderr)
