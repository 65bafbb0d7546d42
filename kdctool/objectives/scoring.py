"""Which patches count, and what the predictions of one modality are worth."""

from typing import Literal

import torch
from torch import Tensor

from kdctool.masking import Views
from kdctool.objectives.light_decoder import at
from kdctool.objectives.reconstruction import masked_mean, patch_error


def score(
    prediction: Tensor, target: Tensor, views: Views, which: Literal["removed", "all"]
) -> tuple[Tensor, Tensor | None]:
    """(reconstruction loss, sampling loss where the masking is learned), scalars: summed over views, means over clips.

    prediction: (J, B, L, E) in natural order or (J, B, N, E) at `views.ids_predict`, target: (B, L, E). The sampling
    loss is AdaMAE's: -log p of each removed token times its error, which no gradient enters.
    """
    ids, odds, removed = views.ids_predict, views.log_prob, views.mask
    if ids is not None:
        target, removed = picked(target, ids), torch.ones(ids.shape, device=ids.device)
        odds = None if odds is None else picked(odds.unsqueeze(-1), ids).squeeze(-1)
    error = patch_error(prediction, target)  # (J, B, L) or (J, B, N)
    counted = torch.ones_like(removed) if which == "all" else removed
    sampling = None if odds is None else -masked_mean(odds * error.detach(), removed).sum()
    return masked_mean(error, counted).sum(), sampling


def asked(views: Views) -> Tensor:
    """Tokens for a light decoder to predict, (J, B, N): those drawn for it, or all in natural order."""
    if views.ids_predict is not None:
        return views.ids_predict
    return torch.arange(views.mask.shape[2], device=views.mask.device).expand(views.mask.shape)


def picked(values: Tensor, ids: Tensor) -> Tensor:
    """values (B, L, E) at ids (J, B, N) -> (J, B, N, E)."""
    spread = values.expand(len(ids), *values.shape).flatten(0, 1)
    return at(spread, ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
