"""Train a classifier on labelled shards, from a pre-trained encoder."""

from pathlib import Path

import torch

from kdctool import dist
from kdctool.errors import DataFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import count
from kdctool.objectives.classification import ClassificationObjective
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.seeds import fold
from kdctool.shards import index as shard_index
from kdctool.stages import fitting, run_folder
from kdctool.stages.load import Opened, open_model


def run(
    source: Path | None,
    *,
    recipe: Recipe | None = None,
    overrides: list[str] | None = None,
    shards: Path | None = None,
    out: Path | None = None,
    nproc: int = 1,
    device_name: str = "auto",
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    arguments: list[str] | None = None,
) -> fitting.Trained:
    """Finetune the encoder of `source` (default: the newest pre-training run) as `recipe.finetune` says.

    Without `recipe`, the source's own is used with `overrides`. DataFault when the shards carry no labels.
    """
    opened = open_model(source or run_folder.newest(kinds=("pretrain",)))
    recipe = _recipe(opened, recipe, overrides)
    index = shard_index.load(Path(shards or recipe.data.shards))
    if not index.labels:
        raise DataFault(f"{index.folder} has no labels", "kdctool shard OUT SHARDS --labels labels.csv")
    split = fitting.usable(index.split(recipe.data.train_split))
    extra = {"weights": opened.weights_sha256, "labels": list(index.labels)}
    folder = out or run_folder.default_folder(recipe, "finetune", extra)
    if not dry_run and (code := fitting.start(nproc, device_name, arguments or [], folder)) is not None:
        return fitting.Trained(folder, None, [], code)
    device = fitting.choose_device(device_name)
    dist.init(device)
    try:
        ranks = dist.world()[1] if fitting.launch.inside_torchrun() else max(nproc, 1)
        the_plan = fitting.plan(split, recipe.finetune.training, recipe.seed, ranks)
        objective = build_objective(recipe, opened.encoder, index)
        total, trainable = count(objective)
        rows = [
            ("weights", opened.said()),
            ("classes", f"{len(index.labels)}" + (", several per clip" if index.multi_label else "")),
            *the_plan.rows(),
            ("parameters", f"{total:,} ({trainable:,} trained)"),
        ]
        if dist.is_main():
            for name, value in rows:
                say(f"{name}: {value}")
        if dry_run:
            return fitting.Trained(folder, None, rows)
        with fitting.lock_run(folder):
            fitting.clear(folder, overwrite)
            if dist.is_main():
                about = {"labels": list(index.labels), "multi_label": index.multi_label, "source": str(opened.path)}
                run_folder.prepare(folder, recipe, "finetune", index.digest, extra, about)
            dist.barrier()
            fitted = fitting.train(
                objective,
                fitting.with_workers(recipe, workers),
                index,
                split,
                recipe.finetune.training,
                recipe.finetune.optim,
                the_plan,
                folder,
                device,
                {"data_digest": index.digest},
                labels=True,
                lr_scales={"classifier.mlp_head.": recipe.finetune.head_lr_scale},
                next_step=lambda run: f"kdctool eval {run} --task classification",
            )
        return fitting.Trained(folder, fitted, rows)
    finally:
        dist.shutdown()


def build_objective(recipe: Recipe, encoder: AVEncoder, index: shard_index.Index) -> torch.nn.Module:
    """A classifier with a fresh head on `encoder`, and its loss."""
    torch.manual_seed(fold(recipe.seed, "head"))
    classifier = AVClassifier(encoder, len(index.labels), recipe.finetune.modality)
    return ClassificationObjective(recipe.finetune, classifier, len(index.labels), index.multi_label)


def _recipe(opened: Opened, given: Recipe | None, overrides: list[str] | None) -> Recipe:
    """The given recipe with the model the weights have, or the source's own with overrides."""
    if given is None:
        from kdctool import recipe as recipes

        return recipes.loads(recipes.to_toml(opened.recipe), overrides, origin=f"{opened.path}/recipe.toml")
    if given.model != opened.recipe.model:
        return given.model_copy(update={"model": opened.recipe.model})
    return given
