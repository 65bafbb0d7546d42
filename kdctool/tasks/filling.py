"""Filling in what was removed of a clip: with a pre-trained decoder, and with two guesses that know nothing.

A model trained with `norm_pix` predicts patches of mean 0 and spread 1. Their true mean and spread are what was
removed, so such a model can fill nothing in; with statistics = "target" it borrows both from the answer.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.masking import LearnedMasking, Masking, Views, build
from kdctool.masking.views import views_from_noise
from kdctool.seeds import fold

Statistics = Literal["own", "target"]
_VARIANCE_FLOOR = 1e-6
"""Added to a patch's variance by the objective's normalisation."""


def fill_in(
    objective: Any,
    fbank: Tensor,
    frame: Tensor,
    keep_a: Tensor | None = None,
    keep_v: Tensor | None = None,
    *,
    statistics: Statistics = "own",
) -> tuple[Tensor, Tensor]:
    """Both modalities with the removed patches predicted and the kept ones as they were, in the model's input units.

    fbank: (B, T, F), frame: (B, C, H, W), keep_*: (B, K) tokens that the model may see, None for all; K = 0 leaves the
    other modality alone. UsageFault for a model that predicts normalised patches, unless statistics is "target".
    """
    if predicts_normalised(objective) and statistics == "own":
        raise UsageFault(
            "this model predicts normalised patches (objective.reconstruction.norm_pix = true), which cannot be shown "
            "without the mean and spread of what was removed",
            "train one with norm_pix = false, or borrow both from the answer with statistics = 'target'",
        )
    keep_a, keep_v = (_all_where_none(keep, tokens, fbank) for keep, tokens in _given(objective, keep_a, keep_v))
    predicted = predict(objective, fbank, frame, keep_a, keep_v)
    a, v = patches(fbank, frame, objective.model)
    if predicts_normalised(objective):
        predicted = unnormalise(predicted[0], a), unnormalise(predicted[1], v)
    return inputs(pasted(predicted[0], a, keep_a), pasted(predicted[1], v, keep_v), objective.model)


def predict(objective: Any, fbank: Tensor, frame: Tensor, keep_a: Tensor, keep_v: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder says of every patch, (B, L, E) for audio and for video, in units of the model's target.

    A modality of which no token is kept takes no part in the joint block, and the decoder sees mask tokens alone.
    """
    if getattr(objective, "decoder", None) is None:
        raise UsageFault(
            f"{type(objective).__name__} has no decoder, so it cannot fill anything in",
            "name a pre-training run whose objective.reconstruction.weight is above 0",
        )
    views = views_of(keep_a, objective.model.audio_tokens), views_of(keep_v, objective.model.video_tokens)
    encoded = objective.encode({"fbank": fbank, "frame": frame}, *views, single=False)
    a, v = objective.decode(encoded, *views)
    return a[0].float(), v[0].float()


def predicts_normalised(objective: Any) -> bool:
    """Whether the model's target is patches normalised by their own mean and spread."""
    return bool(objective.options.reconstruction.norm_pix)


def views_of(keep: Tensor, tokens: int) -> Views:
    """The one view that sees the tokens `keep` (B, K)."""
    removed = torch.ones(len(keep), tokens, device=keep.device).scatter_(1, keep, 0.0)
    rest = removed.argsort(dim=1, descending=True, stable=True)[:, : tokens - keep.shape[1]]
    order = torch.cat((keep, rest), dim=1)
    return Views(keep[None], order.argsort(dim=1)[None], removed[None])


class ClipMasks:
    """Which tokens of a clip are kept, from (seed, modality, uid) alone: the same in any batch, run and process."""

    def __init__(self, modality: str, masking: str, grid: tuple[int, int], ratio: float, seed: int) -> None:
        self.modality, self.grid, self.ratio, self.seed = modality, grid, ratio, seed
        self.num_keep = int(grid[0] * grid[1] * (1 - ratio))
        self.masking: Masking = build(masking, {}, 1)
        if isinstance(self.masking, LearnedMasking):
            raise UsageFault(
                f"{modality} = '{masking}': a masking that learns shows each model what suits it",
                "choose one that is the same for all: random, time, freq or tf",
            )
        if not 0 < self.num_keep < grid[0] * grid[1]:
            raise UsageFault(
                f"ratio = {ratio:g} keeps {self.num_keep} of {grid[0] * grid[1]} {modality} tokens",
                "choose a ratio that keeps at least one and removes at least one",
            )

    def __call__(self, uids: list[str]) -> Tensor:
        """(B, K) tokens that are kept, on the CPU."""
        noise = []
        for uid in uids:
            rng = torch.Generator().manual_seed(fold(self.seed, "inpainting", self.modality, uid))
            noise.append(self.masking.noise(1, self.grid, self.ratio, rng))
        return views_from_noise(torch.cat(noise), self.num_keep).ids_keep[0]


def patches(fbank: Tensor, frame: Tensor, model: Any) -> tuple[Tensor, Tensor]:
    """Model input as patches in float32: (B, La, P * P) and (B, Lv, P * P * 3), ordered as the decoder's."""
    spectrum = fbank.float().transpose(1, 2).unsqueeze(1)
    return _cut(spectrum, model.audio_patch), _cut(frame.float(), model.video_patch)


def inputs(a: Tensor, v: Tensor, model: Any) -> tuple[Tensor, Tensor]:
    """The reverse of `patches`: (B, T, F) and (B, C, H, W)."""
    spectrum = _joined(a, model.audio_grid, model.audio_patch)  # (B, 1, F, T)
    return spectrum[:, 0].transpose(1, 2), _joined(v, model.video_grid, model.video_patch)


def pasted(predicted: Tensor, true: Tensor, keep: Tensor) -> Tensor:
    """`predicted` (B, L, E) with the true patches at `keep` (B, K)."""
    index = keep.unsqueeze(-1).expand(-1, -1, true.shape[-1])
    return predicted.scatter(1, index, true.gather(1, index))


def unnormalise(predicted: Tensor, true: Tensor) -> Tensor:
    """Normalised patches with the mean and spread of the true ones, all (B, L, E)."""
    variance, mean = torch.var_mean(true, dim=-1, keepdim=True)
    return predicted * (variance + _VARIANCE_FLOOR).sqrt() + mean


def mean_patch(target: Tensor, keep: Tensor) -> Tensor:
    """Floor: the mean of a clip's kept patches everywhere, (B, L, E); 0, the mean of all data, where none is kept."""
    if not keep.shape[1]:
        return torch.zeros_like(target)
    index = keep.unsqueeze(-1).expand(-1, -1, target.shape[-1])
    return target.gather(1, index).mean(1, keepdim=True).expand_as(target)


def nearest_patch(target: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Floor: every patch is a copy of the nearest kept one on the grid (the first of equally near ones), (B, L, E)."""
    row = torch.arange(grid[0], device=target.device).repeat_interleave(grid[1])
    column = torch.arange(grid[1], device=target.device).repeat(grid[0])
    tokens = len(row)
    apart = (row[:, None] - row).square() + (column[:, None] - column).square()  # (L, L)
    order = apart * tokens + torch.arange(tokens, device=target.device)  # No two alike: the first of equals is least.
    ordered = order[:, keep].permute(1, 2, 0)  # (B, K, L)
    nearest = keep.gather(1, ordered.argmin(1))  # (B, L)
    return target.gather(1, nearest.unsqueeze(-1).expand_as(target))


def _given(objective: Any, keep_a: Tensor | None, keep_v: Tensor | None) -> tuple[tuple[Tensor | None, int], ...]:
    return (keep_a, objective.model.audio_tokens), (keep_v, objective.model.video_tokens)


def _all_where_none(keep: Tensor | None, tokens: int, like: Tensor) -> Tensor:
    if keep is not None:
        return keep.to(like.device)
    return torch.arange(tokens, device=like.device).expand(len(like), tokens)


def _cut(image: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, L, P * P * C), tokens row-major."""
    cells = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, rows, P, columns, P)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _joined(cells: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(B, L, P * P * C) -> (B, C, H, W)."""
    tiles = cells.unflatten(1, grid).unflatten(3, (patch, patch, -1))  # (B, rows, columns, P, P, C)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
