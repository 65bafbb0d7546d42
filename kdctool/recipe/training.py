"""Optimiser, schedule, length and batch: what pre-training and finetuning each have of their own."""

from typing import Literal

from pydantic import Field

from kdctool.recipe.kinds import Betas, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from kdctool.registry import NOT_A_RESULT, Section


class Optim(Section):
    """Optimiser and learning-rate schedule. The learning rate is never scaled by the batch or the world size."""

    name: Literal["adam", "adamw"] = "adam"
    """adam couples the weight decay into the gradient, as CAV-MAE does; adamw decouples it."""
    lr: PositiveFloat = 1e-4
    """Learning rate after warm-up, at the recipe's global batch."""
    betas: Betas = (0.95, 0.999)
    """Adam's moment decays."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 5e-7
    """Weight decay; with adamw not applied to biases, norms and embeddings."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """step: times `step_gamma` from epoch `step_start` on, every `step_every` epochs; cosine: down to `min_lr`."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Linear warm-up; fractions are allowed."""
    step_start: Positive = 10
    """First epoch (1-based, finished) after which the step schedule decays."""
    step_every: Positive = 5
    """Epochs between decays."""
    step_gamma: PositiveFloat = 0.5
    """Factor of each decay."""
    min_lr: NonNegativeFloat = 0.0
    """Where the cosine ends."""
    grad_clip: NonNegativeFloat = 0.0
    """Largest gradient norm; 0 does not clip."""


class Training(Section):
    """How long, how large a batch, in which precision."""

    epochs: Positive = 25
    """Passes over the training split; a tail smaller than the global batch is dropped."""
    global_batch: Positive = 120
    """Clips per optimiser step over all ranks. Negatives of the contrastive loss come from all of them."""
    micro_batch: NonNegative = Field(0, json_schema_extra=NOT_A_RESULT)
    """Clips per forward pass on one rank; 0 = the rank's whole share. Smaller values accumulate gradients."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the forward pass; parameters stay fp32."""
