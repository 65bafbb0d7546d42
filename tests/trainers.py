"""A trainer around any objective, with plain SGD on the CPU."""

from typing import Any

import torch

from kdctool.train.step import Trainer


def make_trainer(objective: Any, lr: float = 1e-2, **more: Any) -> Trainer:
    """Takes steps of 8 clips in full precision, all from one seed."""
    given = {
        "module": objective,
        "optimizer": torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=lr),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "device": torch.device("cpu"),
        "autocast": None,
        "global_batch": 8,
        "grad_clip": 0.0,
        "seed": 5,
    }
    return Trainer(objective=objective, **{**given, **more})
