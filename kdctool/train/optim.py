"""Optimisers and learning-rate schedules; a schedule is a pure function of the step, so resume needs nothing."""

import math

import torch
from torch import nn

from kdctool.recipe import Optim

_TOKENS = (
    "modality_",
    "cls_token",
    "reg_token",
    "mask_token",
    "pos_embed",
    "decoder_modality",
    "decoder_pos_embed",
    "pool.query",
)


def build(module: nn.Module, options: Optim, lr_scales: dict[str, float] | None = None) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters of `module`.

    `lr_scales` maps a prefix of parameter names to a factor on the learning rate. AdamW spares biases, norms
    and embeddings the weight decay; Adam decays all alike, as CAV-MAE's trainer does.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = next((factor for prefix, factor in (lr_scales or {}).items() if name.startswith(prefix)), 1.0)
        spared = options.name == "adamw" and (parameter.ndim < 2 or any(part in name for part in _TOKENS))
        groups.setdefault((scale, 0.0 if spared else options.weight_decay), []).append(parameter)
    tables = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]
    optimizer = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    fused = next(module.parameters()).device.type in ("cpu", "cuda")
    return optimizer(tables, lr=options.lr, betas=options.betas, eps=options.eps, fused=fused)


def learning_rate(options: Optim, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (0-based)."""
    warmup = round(options.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "cosine":
        share = (step - warmup) / max(1, total_steps - warmup)
        return options.min_lr + (options.lr - options.min_lr) * (1 + math.cos(math.pi * share)) / 2
    epoch = step // steps_per_epoch  # Finished epochs; MultiStepLR of the reference steps after each.
    decays = 0 if epoch < options.step_start else 1 + (epoch - options.step_start) // options.step_every
    return options.lr * options.step_gamma**decays


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
