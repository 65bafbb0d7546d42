"""From scores to views: complementary (disjoint) or independent, each with its own way back to the natural order.

The released KDC-MAE gives every view the first view's restore order, so its second view is decoded at foreign
positions. Here each view has its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.masking import Masking, Views


def draw(
    masking: Masking,
    clips: int,
    grid: tuple[int, int],
    ratio: float,
    views: int,
    complementary: bool,
    rng: torch.Generator,
    rows: Tensor | None = None,
    log_prob: Tensor | None = None,
) -> Views:
    """Views of the clips at `rows` (this micro batch's places in the global batch; None = all `clips`).

    Noise is drawn for the whole global batch, so a clip's mask depends on its place in it and on nothing else: not
    on ranks, nor on micro batches. The result lies on the generator's device. `log_prob` (B, L) of a learned masking
    for the clips at `rows` is subtracted from the noise.
    """
    noises = [masking.noise(clips, grid, ratio, rng) for _ in range(1 if complementary else views)]
    if rows is not None:
        noises = [noise[rows.to(noise.device)] for noise in noises]
    if log_prob is not None:
        noises = [noise - log_prob.detach().to(noise.device) for noise in noises]
    return views_from_noise(noises, int(grid[0] * grid[1] * (1 - ratio)), views, complementary)


def views_from_noise(
    noise: Tensor | Sequence[Tensor], num_keep: int, views: int = 1, complementary: bool = True
) -> Views:
    """Views that keep the `num_keep` lowest scores; nothing is drawn here.

    noise: (B, L) scores for complementary views, a sequence of one (B, L) per view for independent ones.
    Complementary view j keeps the ranks jK..(j+1)K-1 of one shuffle: disjoint, and together not all tokens
    unless views * K = L.
    """
    noises = [noise] if isinstance(noise, Tensor) else list(noise)
    tokens = noises[0].shape[1]
    if complementary and views * num_keep > tokens:
        raise UsageFault(
            f"{views} complementary views of {num_keep} tokens each do not fit into {tokens} tokens",
            f"raise the mask ratio to {1 - 1 / views:.3g} or set masking.complementary = false",
        )
    shuffles = [scores.argsort(dim=1, stable=True) for scores in noises]  # (B, L) each
    if complementary:
        first = shuffles[0]
        order = torch.stack([_moved_to_front(first, view * num_keep, num_keep) for view in range(views)])
    else:
        order = torch.stack(shuffles)  # (J, B, L)
    ids_restore = order.argsort(dim=2)
    mask = (ids_restore >= num_keep).float()  # rank in the view's order decides
    return Views(ids_keep=order[..., :num_keep], ids_restore=ids_restore, mask=mask)


def share_of_removed(
    views: Views, share: float, clips: int, rng: torch.Generator, rows: Tensor | None = None
) -> Tensor:
    """Removed tokens for a light decoder to predict, drawn evenly per view and clip: (J, B, max(1, share * (L - K))).

    `clips` and `rows` as in `draw`. Complementary views order their removed tokens by who else sees them, so the first
    few of that order would leave the tokens that no view sees without a loss.
    """
    num_views, _, tokens = views.ids_restore.shape
    removed = tokens - views.ids_keep.shape[2]
    noise = torch.rand(num_views, clips, tokens, generator=rng, device=rng.device)
    if rows is not None:
        noise = noise[:, rows.to(noise.device)]
    visible_last = noise + (1 - views.mask)
    return visible_last.argsort(dim=2, stable=True)[..., : max(1, int(share * removed))]


def _moved_to_front(shuffle: Tensor, start: int, num: int) -> Tensor:
    """The ranks start..start+num-1 first, then the others in their order, (B, L)."""
    return torch.cat((shuffle[:, start : start + num], shuffle[:, :start], shuffle[:, start + num :]), dim=1)
