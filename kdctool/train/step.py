"""One optimiser step: the page to open first.

Terms that couple clips need the features of the whole global batch. With one micro batch they are gathered
in the forward pass; with several, the features of all are computed first without gradient, the coupled loss is
differentiated once with respect to them, and each micro batch is then run with gradient against that (the
idea of GradCache, Gao et al. 2021). Both passes draw the same masks, so the result is exact. A parameter of the
coupled loss itself, such as a learned temperature, gets its gradient from that one differentiation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.dist import gather, mean_over_ranks, world
from kdctool.objectives import collapse
from kdctool.seeds import fold
from kdctool.train.guard import NonFiniteError
from kdctool.train.parallel import accumulating, whole
from kdctool.train.row import Row


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
    flops_per_clip: float = 0.0
    """Counted forward and backward FLOPs, for the meters; 0 = not counted."""
    gradient_norms_every: int = 0
    """Steps between measurements of each term's own gradient norm; 0 = never."""
    collapse_every: int = 0
    """Steps between measurements of the embeddings; 0 = never."""

    def precision(self) -> torch.autocast:
        """The autocast context of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def train_step(trainer: Trainer, micros: list[Batch], step: int) -> Row:
    """Run one optimiser step on this rank's micro batches.

    The returned numbers are means over the global batch: each term as it is and as `weighted/TERM`, the objective's
    meters, the loss and the gradient norm; at their intervals also `gradient/TERM` and what `collapse` measures.
    Nothing is read from the device but the one flag of `_update`, until somebody looks into the row.
    """
    seed = fold(trainer.seed, "step", step)
    _seed_everything(seed)
    extra: dict[str, float] = {}
    if trainer.gradient_norms_every and step % trainer.gradient_norms_every == 0:
        extra.update(_gradient_norms(trainer, micros, seed))
        _seed_everything(seed)
    meters, embeddings = _backward(trainer, micros, seed)
    weighted = {name: meters[name] * weight for name, weight in trainer.objective.weights.items()}
    meters |= {f"weighted/{name}": value for name, value in weighted.items()}
    meters["loss"] = torch.stack(list(weighted.values())).sum()
    names = sorted(meters)
    values = mean_over_ranks(torch.stack([meters[name].float() for name in names]))
    if trainer.collapse_every and step % trainer.collapse_every == 0:
        extra.update(collapse.measure({name: gather(x, dim=1) for name, x in sorted(embeddings.items())}))
    norm = _update(trainer, step, values[names.index("loss")])
    trainer.objective.after_step(step)
    return Row([*names, "grad_norm"], torch.cat([values, norm.to(values).reshape(1)]), extra)


def _backward(trainer: Trainer, micros: list[Batch], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leave the (scaled) gradients of the global batch in the parameters.

    Returns raw terms and meters, means over this rank's clips, and this rank's embeddings (J, B, D).
    """
    rng = torch.Generator(trainer.device)
    feature_grads, coupled_terms = _cached_features(trainer, micros, rng.manual_seed(seed))
    sums: dict[str, Tensor] = {}
    embeddings: dict[str, list[Tensor]] = {}
    for place, (batch, grads) in enumerate(zip(micros, feature_grads, strict=True)):
        with accumulating(trainer.module, more_to_come=place + 1 < len(micros)):
            with trainer.precision():
                loss = trainer.module(batch, rng.manual_seed(seed), trainer.global_batch, grads)
            trainer.scaler.scale(loss.total / len(micros)).backward()
        for name, value in {**loss.terms, **loss.meters}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(micros)
        for name, value in loss.embeddings.items():
            embeddings.setdefault(name, []).append(value)
    return {**sums, **coupled_terms}, {name: torch.cat(parts, dim=1) for name, parts in embeddings.items()}


def _gradient_norms(trainer: Trainer, micros: list[Batch], seed: int) -> dict[str, float]:
    """Norm of each weighted term's own gradient: a pass with the weights of all other terms at 0."""
    objective, found = trainer.objective, {}
    weights = objective.weights
    try:
        for term in weights:
            objective.weights = {name: weight if name == term else 0.0 for name, weight in weights.items()}
            _seed_everything(seed)
            _backward(trainer, micros, seed)
            grads = [p.grad for p in objective.parameters() if p.grad is not None]
            norm = float(whole(nn.utils.get_total_norm(grads)))
            found[f"gradient/{term}"] = norm / trainer.scaler.get_scale()
            trainer.optimizer.zero_grad(set_to_none=True)
    finally:
        objective.weights = weights
    return found


def _update(trainer: Trainer, step: int, loss: Tensor) -> Tensor:
    """Unscale, measure, check, clip, step; the gradient norm. Gradients are equal on all ranks, so all of them agree.

    Whether loss and norm are finite is the one thing a step waits for the device to tell: what is not must not reach
    the weights.
    """
    trainer.scaler.unscale_(trainer.optimizer)
    parameters = [p for p in trainer.objective.parameters() if p.grad is not None]
    limit = trainer.grad_clip or float("inf")
    norm = whole(nn.utils.clip_grad_norm_(parameters, limit))
    # fp16 overflows are the scaler's business: it skips the step and lowers its scale.
    judged = loss if trainer.scaler.is_enabled() else torch.stack([loss, norm.to(loss)])
    if not bool(torch.isfinite(judged).all()):
        trainer.scaler.update()
        trainer.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(step, float(loss), float(norm))
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    return norm


def _cached_features(
    trainer: Trainer, micros: list[Batch], rng: torch.Generator
) -> tuple[list[dict[str, Tensor] | None], dict[str, Tensor]]:
    """Per micro batch, the gradient of the coupled loss by its features; and the coupled terms and meters."""
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
    leaves = own | {name: p for name, p in trainer.objective.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
    # The gather's backward already sums over ranks, as DDP's mean expects; only the mean over micro batches is undone.
    # Every rank and every micro batch has the whole gradient of a parameter: their means are that again.
    pieces = {name: (grads[name] * len(micros)).split(sizes, dim=1) for name in own if name in grads}
    whole_grads = {name: whole(grad) for name, grad in grads.items() if name not in own}
    told = {name: value.detach() for name, value in terms.items()}
    if (meters := getattr(trainer.objective, "coupled_meters", None)) is not None:
        told |= meters({name: value.detach() for name, value in everything.items()})
    return [{name: piece[m] for name, piece in pieces.items()} | whole_grads for m in range(len(micros))], told


def _seed_everything(seed: int) -> None:
    """What draws from the global generators, as dropout of a plugin does, is tied to the step and the rank."""
    torch.manual_seed(fold(seed, "rank", world()[0]))
