"""Learn representations from shards, without labels."""

from pathlib import Path
from typing import Any, Unpack

import torch

from kdctool.data.whole import BOTH
from kdctool.errors import UsageFault, quoted
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.student import make_encoder
from kdctool.objectives import build
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.recipe.presets import PRESETS
from kdctool.registry import load_plugins
from kdctool.seeds import fold
from kdctool.shards import index as shard_index
from kdctool.stages import cost, fitting, run_folder, teachers
from kdctool.stages.describe import describe
from kdctool.stages.estimate import estimate, warn_if_hopeless
from kdctool.stages.initial import start_from, start_image, weights_digest
from kdctool.stages.probes import make_probe


def run(
    recipe: Recipe, *, shards: Path | None = None, out: Path | None = None, **how: Unpack[fitting.How]
) -> fitting.Trained:
    """Pre-train what `recipe` describes on its shards; typed again, it goes on where it stopped."""
    load_plugins(recipe.plugins)
    index = shard_index.load(Path(shards or recipe.data.shards))
    if recipe.data.crop_pct < 1 and not recipe.objective.student_sees_frames_alone:
        raise UsageFault(f"data.crop_pct = {recipe.data.crop_pct:g} is for image models", "set data.crop_pct = 1.0")
    parts = ("video",) if recipe.objective.student_sees_frames_alone else BOTH
    split = fitting.usable(index.split(recipe.data.train_split), parts)
    start = _start(recipe)
    folder = out or run_folder.default_folder(recipe, "pretrain", start)

    def make(ranks: int, device: torch.device) -> fitting.Job:
        the_plan = fitting.plan(split, recipe.training, recipe.seed, ranks)
        objective = build_objective(recipe)
        rows = [*the_plan.rows(), fitting.parameters(objective), ("device", str(device))]
        return fitting.Job(
            recipe=recipe,
            index=index,
            split=split,
            plan=the_plan,
            objective=objective,
            rows=rows + _derived(recipe, the_plan, len(split.sizes)) + teachers.rows(objective),
            next_step=lambda run: f"kdctool eval {quoted(run)} --task retrieval",
            guard={**teachers.identity(objective), **start},
            about=teachers.described(objective),
            parts=parts,
            probe=make_probe(objective, recipe, index, device),
            tell=lambda dry_run: _tell(recipe, device, the_plan, dry_run),
        )

    return fitting.run(folder, make, how)


def build_objective(recipe: Recipe) -> torch.nn.Module:
    """The recipe's objective around a fresh encoder, initialised from the seed or from `model.init`."""
    opened = teachers.open_teachers(recipe)
    torch.manual_seed(fold(recipe.seed, "init"))
    encoder = make_encoder(recipe)
    objective = build(recipe, encoder, **({"teachers": opened} if opened else {}))
    if recipe.model.init:
        path = Path(recipe.model.init)
        if isinstance(encoder, AVEncoder):
            start_from(path, recipe.model, encoder, getattr(objective, "decoder", None))
        else:
            start_image(path, recipe, encoder)
    return objective


def guard(recipe: Recipe) -> dict[str, Any]:
    """What decides the result of `run` beside the recipe: initial weights and teachers."""
    return {**teachers.identity_of(recipe), **_start(recipe)}


def _start(recipe: Recipe) -> dict[str, Any]:
    return {"init": weights_digest(Path(recipe.model.init))} if recipe.model.init else {}


def _derived(recipe: Recipe, the_plan: fitting.Plan, shards: int) -> list[tuple[str, str]]:
    """Numbers that follow before anything runs; plugins' objectives have none that we could know."""
    if recipe.objective.name not in PRESETS:
        return []
    bill = estimate(recipe)
    steps, batch = the_plan.order.total_steps, the_plan.order.global_batch
    tokens = sum(seen.kept for seen in cost.seen(recipe)) * recipe.masking.views * batch
    return [
        ("shards", f"{shards} with {the_plan.clips:,} clips; a step reads {batch} of them"),
        ("visible tokens per step", f"{tokens:,}"),
        (
            "FLOPs",
            f"{bill.gflop_per_clip:.1f} GFLOP per clip, {_in_all(bill.gflop_per_clip * batch * steps)} in all",
        ),
        ("memory per rank", f"about {bill.memory_gb(the_plan.micro_batch):.1f} GB, good to a factor of two"),
    ]


def _in_all(gflop: float) -> str:
    """2100 -> '2.1 TFLOP'; PFLOP from a million on."""
    return f"{gflop / 1e6:,.1f} PFLOP" if gflop >= 1e6 else f"{gflop / 1e3:,.1f} TFLOP"


def _tell(recipe: Recipe, device: torch.device, the_plan: fitting.Plan, dry_run: bool) -> None:
    if recipe.objective.name in PRESETS:  # What others start from and cost, neither hint nor estimate knows.
        if not recipe.model.init:
            say(
                "weights: random. Published CAV-MAE and KDC-MAE results start from ImageNet-MAE weights (--init); "
                "from random weights their numbers will not be reached"
                + "".join(f": {row.task} {row.metric} {row.value:g} ({row.source})" for row in recipe.expected[:1])
            )
        if device.type == "cpu":
            warn_if_hopeless(recipe, the_plan.order.total_steps * recipe.training.global_batch)
    if dry_run:
        say("\n".join(describe(recipe)))
