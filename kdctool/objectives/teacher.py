"""A teacher: the moving average of an encoder, which sees the same views and gets no gradient."""

import copy
from typing import Any

import torch
from torch import nn

from kdctool.models.av_encoder import AVEncoder, Encoded


class Teacher(nn.Module):
    """Holds the average, which is part of the state dict, so that a resumed run goes on exactly.

    Weights loaded into the encoder (published ones, after the objective was built) are loaded into the teacher too.
    A checkpoint of the whole objective restores the teacher's own afterwards: keep it behind the encoder among the
    objective's modules.
    """

    def __init__(self, encoder: AVEncoder, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        encoder.register_load_state_dict_post_hook(self._follow)

    def _follow(self, encoder: nn.Module, _incompatible: Any) -> None:
        self.encoder.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Encoded:
        """The encoder's forward pass with averaged weights."""
        return self.encoder(*args, **kwargs)

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move by 1 - momentum towards the encoder."""
        for mine, theirs in zip(self.encoder.parameters(), encoder.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.momentum)
