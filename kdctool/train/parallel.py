"""One objective on one or many ranks, under one pair of names."""

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdctool.dist import world


def wrap(objective: nn.Module, device: torch.device) -> nn.Module:
    """The module to call in training: DDP on several ranks, the objective itself on one."""
    if world()[1] == 1:
        return objective
    ids = [device.index] if device.type == "cuda" else None
    # gradient_as_bucket_view saves one copy of the gradients; buffers are constants here.
    return DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def accumulating(module: nn.Module, more_to_come: bool) -> contextlib.AbstractContextManager[Any]:
    """Leave gradients unreduced while more micro batches of the same step follow."""
    if more_to_come and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()
