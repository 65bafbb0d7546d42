"""What a training step minimises. The trainer knows the `Objective` protocol and nothing of audio or video.

An objective is one file with one registered class, built as `cls(recipe, encoder)`. Terms that compare clips with
each other ("coupled") are split in two, features and a function of the features of the whole global batch, so
that any number of ranks and micro batches gives the value and gradient of one big batch.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.recipe import Recipe
from kdctool.registry import Registry

objectives = Registry("objective", __name__)


@dataclass
class Loss:
    """What one forward pass says. total == sum(weights[k] * terms[k]) unless feature gradients were given."""

    total: Tensor
    """Scalar to differentiate."""
    terms: dict[str, Tensor]
    """Raw, detached scalars."""
    weights: dict[str, float]
    """Weight of each term in `terms`."""
    meters: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars that are worth logging and are not minimised."""
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """Detached pooled latents (J, B, D) of this micro batch by name; `kdctool.objectives.collapse` measures them."""


class Objective(Protocol):
    """An nn.Module that the trainer can step. What it freezes never gets a gradient; all else always does."""

    encoder: Any
    weights: dict[str, float]
    """Weight of every term that is computed; a term of weight 0 is absent. Read anew in every pass: measuring one
    term's gradient sets the others to 0 for a moment. An objective may also have `coupled_meters(features)`: with
    several micro batches it gives the meters that a forward pass on the whole global batch would."""

    def __call__(
        self, batch: Batch, rng: torch.Generator, global_batch: int, feature_grads: dict[str, Tensor] | None = None
    ) -> Loss:
        """Loss of this micro batch; everything random comes from `rng`, drawn for `global_batch` clips.

        Terms of single clips are means over the micro batch. Without `feature_grads` the coupled terms are added,
        computed over all ranks' features. With them, `total` gets `inner_products` instead and `terms` lacks the
        coupled ones: the caller knows them. There is one entry per entry of `features` that has a gradient (equal
        shapes), and one per parameter that `coupled` reads, by its name; {} where nothing couples. The gradients
        are used as they come, so a caller that divides `total` by its number of micro batches multiplies those of
        features by it. Those of parameters are whole, and each micro batch then adds its part of them.
        """
        ...

    def features(self, batch: Batch, rng: torch.Generator, global_batch: int) -> dict[str, Tensor]:
        """Float32 features (J, B, D) that couple clips, for the same masks as a forward pass with an equal rng."""
        ...

    def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw coupled terms (scalars with gradient) of the features (J, G, D) of the whole global batch."""
        ...

    def after_step(self, step: int) -> None:
        """Called after every optimiser step (a teacher moves here)."""
        ...


def inner_products(module: nn.Module, features: dict[str, Tensor], feature_grads: dict[str, Tensor]) -> Tensor:
    """sum(<x, gradient>) over features and parameters of `module`: its gradient is that of the coupled terms."""
    parts = [
        ((features[name] if name in features else module.get_parameter(name)) * grad).sum()
        for name, grad in feature_grads.items()
    ]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def build(recipe: Recipe, encoder: Any, **more: Any) -> Any:
    """The objective that the recipe names, on top of `encoder`; its new weights come from torch's global generator.

    `more` is what only some objectives take, such as opened teachers.
    """
    return objectives.get(recipe.objective.name).cls(recipe, encoder, **more)
