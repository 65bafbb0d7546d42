"""Learn representations from shards, without labels."""

from dataclasses import dataclass
from pathlib import Path

import torch

from kdctool import dist
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.weights import count, load_encoder, split_state
from kdctool.objectives import objectives
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.registry import load_plugins
from kdctool.seeds import fold
from kdctool.shards import index as shard_index
from kdctool.stages import fitting, run_folder
from kdctool.stages.estimate import warn_if_hopeless
from kdctool.train.loop import Fitted


@dataclass(frozen=True)
class Pretrained:
    """How a pre-training went."""

    run: Path
    fitted: Fitted | None
    plan_rows: list[tuple[str, str]]
    exit_code: int = 0


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
    arguments: list[str] | None = None,
) -> Pretrained:
    """Pre-train what `recipe` describes on its shards; typed again, it goes on where it stopped.

    `arguments` is the command line without --nproc, which torchrun's children receive.
    """
    load_plugins(recipe.plugins)
    index = shard_index.load(Path(shards or recipe.data.shards))
    split = index.split(recipe.data.train_split)
    folder = out or run_folder.default_folder(recipe, "pretrain", {})
    joining = fitting.launch.inside_torchrun()
    if not dry_run and (code := fitting.start(nproc, device_name, arguments or [], folder)) is not None:
        return Pretrained(folder, None, [], code)
    device = fitting.choose_device(device_name)
    dist.init(device)
    try:
        the_plan = fitting.plan(split, recipe.training, recipe.seed, dist.world()[1] if joining else max(nproc, 1))
        objective = build_objective(recipe)
        total, trainable = count(objective)
        rows = [*the_plan.rows(), ("parameters", f"{total:,} ({trainable:,} trained)"), ("device", str(device))]
        if dist.is_main():
            _say_start(recipe, rows, device, the_plan)
        if dry_run:
            return Pretrained(folder, None, rows)
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
            )
        return Pretrained(folder, fitted, rows)
    finally:
        dist.shutdown()


def build_objective(recipe: Recipe) -> torch.nn.Module:
    """The recipe's objective around a fresh encoder, initialised from the seed or from `model.init`."""
    torch.manual_seed(fold(recipe.seed, "init"))
    encoder = AVEncoder(recipe.model)
    objective = objectives.get(recipe.objective.name).cls(recipe, encoder)
    if recipe.model.init:
        from kdctool.stages.load import initial_state

        encoder_state, decoder_state, _ = split_state(initial_state(Path(recipe.model.init)))
        load_encoder(encoder, encoder_state)
        if decoder_state and getattr(objective, "decoder", None) is not None:
            objective.decoder.load_state_dict(decoder_state)
    return objective


def _say_start(recipe: Recipe, rows: list[tuple[str, str]], device: torch.device, the_plan: fitting.Plan) -> None:
    for name, value in rows:
        say(f"{name}: {value}")
    if not recipe.model.init:
        say(
            "weights: random. Published CAV-MAE and KDC-MAE results start from ImageNet-MAE weights (set model.init); "
            "from random weights "
            + (
                f"{recipe.expected[0].source} will not be reached"
                if recipe.expected
                else "their numbers will not be reached"
            )
        )
    if device.type == "cpu":
        warn_if_hopeless(recipe, the_plan.order.total_steps * recipe.training.global_batch)
