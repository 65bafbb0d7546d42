"""Train a classifier on labelled shards, from a pre-trained encoder."""

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from kdctool import dist
from kdctool import recipe as recipes
from kdctool.data.labels import ClipLabels, read_labels
from kdctool.errors import DataFault, UsageFault, quoted
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.drop_path import set_drop_path
from kdctool.models.image_classifier import ImageClassifier
from kdctool.objectives.classification import ClassificationObjective
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.registry import load_plugins
from kdctool.seeds import fold
from kdctool.shards import index as shard_index
from kdctool.shards.index import Index, Split
from kdctool.stages import fitting, run_folder
from kdctool.stages.load import Opened, open_model


def run(
    source: Path | None,
    *,
    recipe: Recipe | None = None,
    overrides: list[str] | None = None,
    shards: Path | None = None,
    out: Path | None = None,
    **how: Unpack[fitting.How],
) -> fitting.Trained:
    """Finetune the encoder of `source` (default: the newest pre-training run) as `recipe.finetune` says.

    Without `recipe`, the source's own is used with `overrides`. DataFault when the shards carry no labels.
    """
    opened = open_model(source or run_folder.newest(kinds=("pretrain",)), images=True)
    recipe = _recipe(opened, recipe, overrides)
    load_plugins(recipe.plugins)
    options = recipe.finetune
    index = shard_index.load(Path(shards or recipe.data.shards))
    if not index.labels:
        raise DataFault(f"{index.folder} has no labels", "kdctool shard OUT SHARDS --labels labels.csv")
    whole = fitting.usable(index.split(recipe.data.train_split), fitting.parts_of(options))
    start = {"weights": opened.weights_sha256, "labels": list(index.labels)}
    folder = out or run_folder.default_folder(recipe, "finetune", start)

    def make(ranks: int, device: torch.device) -> fitting.Job:
        split, weights, told = _chosen(index, whole, recipe)
        the_plan = fitting.plan(split, options.training, recipe.seed, ranks, weights)
        objective = build_objective(recipe, opened.encoder, index)
        scales = objective.classifier.lr_scales(options.layer_decay, options.head_lr_scale)
        return fitting.Job(
            recipe=recipe,
            index=index,
            split=split,
            plan=the_plan,
            objective=objective,
            rows=[
                ("weights", opened.said()),
                ("classes", f"{len(index.labels)}" + (", several per clip" if index.multi_label else "")),
                *told,
                *the_plan.rows(),
                fitting.parameters(objective),
                *_averaging(recipe),
            ],
            next_step=lambda run: f"kdctool eval {quoted(run)} --task classification",
            guard=start,
            about={
                "labels": list(index.labels),
                "multi_label": index.multi_label,
                "source": str(opened.path),
                **({"teachers": opened.teachers} if opened.teachers else {}),
            },
            parts=fitting.parts_of(options),
            finetune=options,
            lr_scales={f"classifier.{prefix}": factor for prefix, factor in scales.items()},
        )

    return fitting.run(folder, make, how)


def build_objective(recipe: Recipe, encoder: Any, index: Index) -> ClassificationObjective:
    """A classifier with a fresh head on `encoder`, and its loss."""
    options = recipe.finetune
    if not isinstance(encoder, AVEncoder):
        set_drop_path(encoder, options.drop_path if options.trains_encoder else 0.0)
    kind = AVClassifier if isinstance(encoder, AVEncoder) else ImageClassifier
    torch.manual_seed(fold(recipe.seed, "head"))
    classifier = kind(encoder, len(index.labels), options.modality, options.head)
    return ClassificationObjective(recipe.finetune, classifier, len(index.labels), index.multi_label)


def _chosen(index: Index, split: Split, recipe: Recipe) -> tuple[Split, np.ndarray | None, list[tuple[str, str]]]:
    """The clips that are trained on, their sampling weights where they are balanced, and both in words."""
    options = recipe.finetune
    is_few = options.per_class > 0 or options.share < 1
    if not is_few and not options.balanced:
        return split, None, []
    labels, rows = read_labels(index, split), []
    if is_few:
        keys = [split.key(place) for place in range(len(split))]
        keep = labels.few(keys, recipe.seed, options.per_class, options.share)
        amount = f"{options.per_class} per class" if options.per_class else f"{options.share:.3g} of each class"
        rows.append(("few-shot", f"{int(keep.sum()):,} of {len(split):,} clips: {amount}, seed {recipe.seed}"))
        _tell_lacking(labels, index, options.per_class)
        split, labels = split.subset(keep), labels.subset(keep)
    if not options.balanced:
        return split, None, rows
    weights = labels.balancing()
    if not weights.any():
        raise DataFault(f"no clip of split '{split.name}' has a label", "set finetune.balanced = false, or add labels")
    unlabelled = f"; {int((weights == 0).sum()):,} clips without a label are never drawn" if not weights.all() else ""
    rows.append(("balanced", f"{len(split):,} draws per epoch, by inverse class frequency{unlabelled}"))
    return split, weights, rows


def _tell_lacking(labels: ClipLabels, index: Index, per_class: int) -> None:
    short = [name for name, clips in zip(index.labels, labels.counts().tolist(), strict=True) if clips < per_class]
    if short and dist.is_main():
        say(f"{len(short)} classes have fewer than {per_class} clips, first {short[0]}: all of theirs are taken")


def _averaging(recipe: Recipe) -> list[tuple[str, str]]:
    first, last = recipe.finetune.average_from, recipe.finetune.training.epochs
    if not first:
        return []
    return [("result", f"mean of the weights after epochs {first} to {last}; eval and export take it")]


def _recipe(opened: Opened, given: Recipe | None, overrides: list[str] | None) -> Recipe:
    """The given recipe with the model the weights have, or the source's own with overrides."""
    if given is None:
        recipe = recipes.loads(recipes.to_toml(opened.recipe), overrides, origin=f"{opened.path}/recipe.toml")
        _check_kind(opened, recipe)
        return recipe
    if misfit := given.finetune.misfit(opened.recipe.model):
        raise UsageFault(f"{opened.path}: {misfit}")
    _check_kind(opened, given)
    theirs: dict[str, Any] = {"model": opened.recipe.model}
    if opened.is_image:  # Which model it is, the objective of an image model says.
        theirs["objective"] = opened.recipe.objective
    changes = {key: value for key, value in theirs.items() if getattr(given, key) != value}
    return given.model_copy(update=changes) if changes else given


def _check_kind(opened: Opened, recipe: Recipe) -> None:
    """UsageFault where an image model shall hear, or an audio-visual one shall have what only image models have."""
    options = recipe.finetune
    if opened.is_image and options.modality != "video":
        raise UsageFault(
            f"{opened.path} trained an image model: it cannot classify finetune.modality = '{options.modality}'",
            "--modality video",
        )
    if recipe.data.crop_pct < 1 and not opened.is_image:
        raise UsageFault(
            f"data.crop_pct = {recipe.data.crop_pct:g} is for image models, {opened.path} is audio-visual",
            "set data.crop_pct = 1.0",
        )
    if options.drop_path and not opened.is_image:
        raise UsageFault(
            f"finetune.drop_path = {options.drop_path:g} is for image models, {opened.path} is audio-visual",
            "set finetune.drop_path = 0",
        )
