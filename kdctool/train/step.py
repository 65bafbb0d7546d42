"""One optimiser step: the page to open first.

Terms that couple clips need the features of the whole global batch. With one micro batch they are gathered
in the forward pass; with several, the features of all are computed first without gradient, the coupled loss is
differentiated once with respect to them, and each micro batch is then run with gradient against that (the
idea of GradCache, Gao et al. 2021). Both passes draw the same masks, so the result is exact.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.dist import gather, mean_over_ranks, world
from kdctool.errors import KdctoolError
from kdctool.seeds import fold
from kdctool.train.parallel import accumulating


@dataclass
class Trainer:
    """What a step needs that outlives it."""

    objective: Any
    """An Objective (kdctool.objectives): features, coupled, weights, forward."""
    module: nn.Module
    """The objective as wrapped for several ranks."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    autocast: torch.dtype | None
    global_batch: int
    grad_clip: float
    seed: int

    def precision(self) -> torch.autocast:
        """The autocast context of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def train_step(trainer: Trainer, micros: list[Batch], step: int) -> dict[str, float]:
    """Run one optimiser step on this rank's micro batches; the returned meters are means over the global batch."""
    rng = torch.Generator(trainer.device)
    seed = fold(trainer.seed, "step", step)
    _seed_everything(seed)
    feature_grads, coupled_terms = _cached_features(trainer, micros, rng.manual_seed(seed))
    sums: dict[str, Tensor] = {}
    for place, (batch, grads) in enumerate(zip(micros, feature_grads, strict=True)):
        with accumulating(trainer.module, more_to_come=place + 1 < len(micros)):
            with trainer.precision():
                loss = trainer.module(batch, rng.manual_seed(seed), trainer.global_batch, grads)
            trainer.scaler.scale(loss.total / len(micros)).backward()
        for name, value in {**loss.terms, **loss.meters}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(micros)
    meters = {**sums, **coupled_terms}
    meters["loss"] = torch.stack([meters[name] * weight for name, weight in trainer.objective.weights.items()]).sum()
    names = sorted(meters)
    values = mean_over_ranks(torch.stack([meters[name].float() for name in names])).tolist()
    result = dict(zip(names, values, strict=True))
    result["grad_norm"] = _update(trainer, step, result["loss"])
    trainer.objective.after_step(step)
    return result


def _update(trainer: Trainer, step: int, loss: float) -> float:
    """Unscale, measure, check, clip, step. Gradients are already equal on all ranks, so all of them agree."""
    trainer.scaler.unscale_(trainer.optimizer)
    parameters = [p for p in trainer.objective.parameters() if p.grad is not None]
    limit = trainer.grad_clip or float("inf")
    norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    # fp16 overflows are the scaler's business: it skips the step and lowers its scale.
    if not math.isfinite(loss) or not (math.isfinite(norm) or trainer.scaler.is_enabled()):
        raise KdctoolError(
            f"step {step}: loss {loss}, gradient norm {norm}: not finite, so the step was not taken",
            "lower optim.lr or set optim.grad_clip; the last checkpoint is intact",
        )
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    return norm


def _cached_features(
    trainer: Trainer, micros: list[Batch], rng: torch.Generator
) -> tuple[list[dict[str, Tensor] | None], dict[str, Tensor]]:
    """Per micro batch, the gradient of the coupled loss with respect to its features; and the coupled terms."""
    if len(micros) == 1:
        return [None], {}
    seed = rng.initial_seed()
    with torch.no_grad(), trainer.precision():
        parts = [trainer.objective.features(batch, rng.manual_seed(seed), trainer.global_batch) for batch in micros]
    if not parts[0]:
        return [{} for _ in micros], {}
    sizes = [len(batch["row"]) for batch in micros]
    own = {name: torch.cat([part[name] for part in parts], dim=1).float().requires_grad_() for name in parts[0]}
    everything = {name: gather(value, dim=1) for name, value in own.items()}  # (J, G, D)
    terms = trainer.objective.coupled(everything)
    loss = torch.stack([trainer.objective.weights[name] * value for name, value in terms.items()]).sum()
    grads = torch.autograd.grad(loss, list(own.values()))
    # The gather's backward already sums over ranks, as DDP's mean expects; only the mean over micro batches is undone.
    scaled = {name: grad * len(micros) for name, grad in zip(own, grads, strict=True)}
    pieces = {name: grad.split(sizes, dim=1) for name, grad in scaled.items()}
    return [{name: piece[m] for name, piece in pieces.items()} for m in range(len(micros))], {
        name: value.detach() for name, value in terms.items()
    }


def _seed_everything(seed: int) -> None:
    """timm's DropPath and dropout draw from the global generators; tie those to the step and the rank."""
    torch.manual_seed(fold(seed, "rank", world()[0]))
