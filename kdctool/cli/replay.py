"""kdctool replay."""

import math
from pathlib import Path
from typing import Annotated

import typer

from kdctool.cli.show import Device, Format, summary


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)


def replay(
    capture: Annotated[Path, typer.Argument(help="RUN/nonfinite/step-N.json, as a stopped run names it.")],
    shards: Annotated[Path | None, typer.Option(help="Folder of shards; overrides the recipe's.")] = None,
    device: Device = "auto",
    format: Format = "human",
) -> None:
    """Run a step again whose loss was not finite, and show which of its clips did it."""
    from kdctool.stages import replay as stage

    done = stage.run(capture, shards=shards, device_name=device)
    bad = [uid for uid, loss in done.clips if not math.isfinite(loss)]
    rows = [
        ("step", f"{done.step}, with the weights of step {done.from_step}"),
        ("loss of the batch", f"{done.loss}"),
        ("clips not finite alone", f"{len(bad)} of {len(done.clips)}"),
        *((uid, f"{loss:.4f}") for uid, loss in done.clips[:10]),
    ]
    payload = {"step": done.step, "from_step": done.from_step, "loss": repr(done.loss), "not_finite": bad}
    next_step = "look at these clips, or leave the step out: --set guard.on_nonfinite=skip"
    summary("replay", rows, next_step, payload, format)
