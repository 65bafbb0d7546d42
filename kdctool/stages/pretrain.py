"""Learn representations from shards, without labels."""

from pathlib import Path

import torch

from kdctool import dist
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.weights import count
from kdctool.objectives import objectives
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.recipe.presets import PRESETS
from kdctool.registry import load_plugins
from kdctool.seeds import fold
from kdctool.shards import index as shard_index
from kdctool.stages import cost, fitting, run_folder
from kdctool.stages.describe import describe
from kdctool.stages.estimate import estimate, warn_if_hopeless
from kdctool.stages.probes import make_probe


def run(
    recipe: Recipe,
    *,
    shards: Path | None = None,
    out: Path | None = None,
    nproc: int = 1,
    device_name: str = "auto",
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    profile: tuple[int, int] | None = None,
    max_restarts: int = 0,
    arguments: list[str] | None = None,
) -> fitting.Trained:
    """Pre-train what `recipe` describes on its shards; typed again, it goes on where it stopped.

    `profile` names the steps (from, to) to record; `max_restarts` how often torchrun may start all processes again;
    `arguments` is the command line without --nproc, which torchrun's children receive.
    """
    load_plugins(recipe.plugins)
    index = shard_index.load(Path(shards or recipe.data.shards))
    split = fitting.usable(index.split(recipe.data.train_split))
    folder = out or run_folder.default_folder(recipe, "pretrain", {})
    joining = fitting.launch.inside_torchrun()
    if not dry_run and (code := fitting.start(nproc, device_name, arguments or [], folder, max_restarts)) is not None:
        return fitting.Trained(folder, None, [], code)
    device = fitting.choose_device(device_name)
    dist.init(device)
    try:
        the_plan = fitting.plan(split, recipe.training, recipe.seed, dist.world()[1] if joining else max(nproc, 1))
        objective = build_objective(recipe)
        total, trainable = count(objective)
        rows = [*the_plan.rows(), ("parameters", f"{total:,} ({trainable:,} trained)"), ("device", str(device))]
        rows += _derived(recipe, the_plan, len(split.sizes))
        if dist.is_main():
            _say_start(recipe, rows, device, the_plan)
        if dry_run:
            say("\n".join(describe(recipe)))
            return fitting.Trained(folder, None, rows)
        with fitting.lock_run(folder):
            fitting.clear(folder, overwrite)
            about = run_folder.prepare(folder, recipe, "pretrain", index.digest, {}) if dist.is_main() else {}
            dist.barrier()
            identity = {"recipe_digest": about.get("recipe_digest", ""), "data_digest": index.digest}
            fitted = fitting.train(
                objective,
                fitting.with_workers(recipe, workers),
                index,
                split,
                recipe.training,
                recipe.optim,
                the_plan,
                folder,
                device,
                identity,
                labels=False,
                next_step=lambda run: f"kdctool eval {run} --task retrieval",
                probe=make_probe(objective, recipe, index, device),
                profile=profile,
            )
        return fitting.Trained(folder, fitted, rows)
    finally:
        dist.shutdown()


def build_objective(recipe: Recipe) -> torch.nn.Module:
    """The recipe's objective around a fresh encoder, initialised from the seed or from `model.init`."""
    torch.manual_seed(fold(recipe.seed, "init"))
    encoder = AVEncoder(recipe.model)
    objective = objectives.get(recipe.objective.name).cls(recipe, encoder)
    if recipe.model.init:
        from kdctool.stages.load import start_from

        start_from(Path(recipe.model.init), recipe.model, encoder, getattr(objective, "decoder", None))
    return objective


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
            f"{bill.gflop_per_clip:.1f} GFLOP per clip, {bill.gflop_per_clip * batch * steps / 1e6:,.1f} PFLOP in all",
        ),
        ("memory per rank", f"about {bill.memory_gb(the_plan.micro_batch):.1f} GB, good to a factor of two"),
    ]


def _say_start(recipe: Recipe, rows: list[tuple[str, str]], device: torch.device, the_plan: fitting.Plan) -> None:
    for name, value in rows:
        say(f"{name}: {value}")
    if not recipe.model.init:
        say(
            "weights: random. Published CAV-MAE and KDC-MAE results start from ImageNet-MAE weights (set model.init); "
            "from random weights their numbers will not be reached"
            + "".join(f": {row.task} {row.metric} {row.value:g} ({row.source})" for row in recipe.expected[:1])
        )
    if device.type == "cpu":
        warn_if_hopeless(recipe, the_plan.order.total_steps * recipe.training.global_batch)
