"""Mean and standard deviation of the training split's filter bank: what recipes call data.fbank_mean and fbank_std."""

from pathlib import Path

import torch

from kdctool import recipe as recipes
from kdctool.data.loader import eval_batches
from kdctool.recipe import Recipe
from kdctool.shards import index as shard_index

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "avdigits_cavmae.toml"


def measure(shards: Path, recipe: Recipe | None = None) -> tuple[float, float]:
    """Over every frame of sound of every clip; padding is left out."""
    recipe = recipe or recipes.load(RECIPE)
    bare = recipe.data.model_copy(update={"fbank_mean": 0.0, "fbank_std": 1.0})
    recipe = recipe.model_copy(update={"data": bare})
    index = shard_index.load(shards)
    split = index.split(recipe.data.train_split)
    count, total, squares = 0, 0.0, 0.0
    for batch in eval_batches(index, split, recipe, torch.device("cpu"), 64, 0, labels=False):
        fbank = batch["fbank"].double()
        own = fbank[(fbank != 0).any(-1)]  # Padding is exactly 0 in every bin, sound never is.
        count, total, squares = count + own.numel(), total + float(own.sum()), squares + float((own**2).sum())
    mean = total / count
    return mean, (squares / count - mean**2) ** 0.5
