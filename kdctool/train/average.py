"""The mean of the weights at the ends of the last epochs: what CAV-MAE's finetuning evaluates.

It is a sum that every checkpoint carries, so a resumed run ends with the same bits as one that was never stopped.
"""

import torch
from torch import Tensor, nn

from kdctool.train.parallel import shard_like

Tensors = dict[str, Tensor]


class EpochAverage:
    """Sums the trained weights after every epoch from `first` (1-based) on; `first` = 0 sums nothing."""

    def __init__(self, objective: nn.Module, first: int, steps_per_epoch: int) -> None:
        self.objective, self.first, self.steps_per_epoch = objective, first, steps_per_epoch
        self.sums: Tensors = {}
        self.count = 0

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """`step` steps are done: add the weights where that ends an epoch that counts."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        if not self.first or rest or epoch < self.first:
            return
        for name, value in self._trained().items():
            if self.count:
                self.sums[name].add_(value)
            else:
                self.sums[name] = value.clone()
        self.count += 1

    @torch.no_grad()
    def restore(self, sums: Tensors, count: int) -> None:
        """Go on from what a checkpoint holds; sharded as the weights are."""
        own = self._trained()
        self.sums = {name: shard_like(value, own[name]) for name, value in sums.items()}
        self.count = count

    def about(self) -> dict[str, int]:
        """For a checkpoint's state: how many epochs are in the sum, and the first of them."""
        return {"count": self.count, "first": self.first} if self.count else {}

    def _trained(self) -> Tensors:
        """Trainable weights by the names of the state dict."""
        learns = {id(p) for p in self.objective.parameters() if p.requires_grad}
        return {name: p.detach() for name, p in self.objective.state_dict(keep_vars=True).items() if id(p) in learns}


def mean(sums: Tensors, count: int) -> Tensors:
    """The average itself, divided once at the end as the reference does."""
    return {name: value / float(count) for name, value in sums.items()}
