"""The contract of the mask generators: worked examples exactly, our own draws by structure and statistics."""

import math
from typing import Any

import torch
from golden_case import Case
from torch import Tensor

from kdctool.masking import build
from kdctool.masking.views import draw, views_from_noise

NAMES = {"unstructured": "random", "time": "time", "freq": "freq", "tf": "tf"}
SIGMAS = 6
FORCED = 1.1
"""Scores from here on are of tokens that the structure removes."""


def masking(case: Case) -> None:
    config = case.config
    grid = (config["freq_patches"], config["time_patches"])
    for mode, contract in case.about["contract"].items():
        if mode in NAMES:
            example(case, mode, grid, contract)
            own_draws(case, mode, grid, config["mask_ratio"], contract)
        elif mode == "video":
            video = (1, config["video_tokens"])
            own_draws(case, mode, video, config["video_mask_ratio"], contract)
        elif mode in ("complementary_two_views", "non_complementary_two_views"):
            pairs(case, mode, contract)


def example(case: Case, mode: str, grid: tuple[int, int], contract: dict[str, Any]) -> None:
    """The stored draws: impose the stored rows and columns on the stored noise.

    Which of the tied removed tokens comes first is left to the reference's sort, so only what the rule decides is
    compared: the places of tokens outside the removed region, and all of the mask where enough of them are left.
    """
    rows, columns = grid
    noise = case.input(f"{mode}.noise")
    forced = torch.zeros(len(noise), rows, columns, dtype=torch.bool)
    for kind, axis in (("columns", 2), ("rows", 1)):
        if f"{mode}.{kind}" in case.tensors:
            lines = case.input(f"{mode}.{kind}")
            hit = torch.zeros(len(noise), grid[axis - 1]).scatter(1, lines, 1.0).bool()
            forced |= hit.unsqueeze(3 - axis)
    removed = forced.flatten(1)
    kept = contract["kept_tokens_per_sample"]
    views = views_from_noise(noise + FORCED * removed, kept)
    unforced = int((~removed[0]).sum())
    sure = min(kept, unforced)
    case.close(f"{mode}.ids_keep", views.ids_keep[0, :, :sure], case.tensors[f"{mode}.ids_keep"][:, :sure], 0.0)
    free = ~removed
    want = case.tensors[f"{mode}.ids_restore"]
    case.close(f"{mode}.ids_restore", views.ids_restore[0][free], want[free], 0.0)
    mask = case.tensors[f"{mode}.mask"]
    if kept <= unforced:
        case.close(f"{mode}.mask", views.mask[0], mask, 0.0)
    else:
        case.close(f"{mode}.mask", views.mask[0][free], mask[free], 0.0)


def own_draws(case: Case, mode: str, grid: tuple[int, int], ratio: float, contract: dict[str, Any]) -> None:
    """Our generator: kept tokens, removed rows and columns, rates, independence of clips."""
    rows, columns = grid
    tokens, draws = rows * columns, case.config["draws"]
    rng = torch.Generator().manual_seed(0)
    generator = build(NAMES.get(mode, "random"), {})
    noise = generator.noise(draws, grid, ratio, rng)
    kept = int(tokens * (1 - ratio))
    views = views_from_noise(noise, kept)
    mask = views.mask[0]
    case.close(
        f"{mode}: kept tokens per clip", (1 - mask).sum(dim=1), [contract["kept_tokens_per_sample"]] * draws, 0.0
    )
    permuted = views.ids_restore[0].sort(dim=1).values
    case.close(f"{mode}: ids_restore is a permutation", permuted, torch.arange(tokens).expand(draws, -1), 0.0)
    structure(case, mode, noise.reshape(draws, rows, columns) >= FORCED, mask, kept, contract)
    rate, p = (1 - mask).mean(dim=0), kept / tokens
    case.close(
        f"{mode}: keep rate of each token", rate, torch.full((tokens,), p), SIGMAS * math.sqrt(p * (1 - p) / draws)
    )
    distinct, stored = len(mask.unique(dim=0)), contract.get("distinct_masks_among_draws", draws)
    # Every draw distinct where the reference's were; where few masks exist at all (freq), more than one.
    missing = draws - distinct if stored == draws else max(0, 2 - distinct)
    case.row(f"{mode}: distinct masks among draws", missing, 0.0)


def structure(case: Case, mode: str, forced: Tensor, mask: Tensor, kept: int, contract: dict[str, Any]) -> None:
    """The removed region is whole columns and rows, as many as the contract says, and is hidden as far as it can be."""
    draws = len(forced)
    whole_columns, whole_rows = forced.all(dim=1), forced.all(dim=2)  # (draws, columns), (draws, rows)
    cross = whole_columns.unsqueeze(1) | whole_rows.unsqueeze(2)
    case.row(f"{mode}: tokens removed outside whole lines", float((forced != cross).sum()), 0.0)
    for key, lines in (("forced_columns", whole_columns), ("forced_rows", whole_rows)):
        case.close(f"{mode}: {key}", lines.sum(dim=1), [contract.get(key, 0)] * draws, 0.0)
    free = (~forced).flatten(1).sum(dim=1)
    if "unforced_tokens" in contract:
        case.close(f"{mode}: unforced tokens", free, [contract["unforced_tokens"]] * draws, 0.0)
    inside = ((1 - mask).bool() & forced.flatten(1)).sum(dim=1)
    case.close(f"{mode}: kept tokens inside the removed region", inside, (kept - free).clamp_min(0), 0.0)


def pairs(case: Case, mode: str, contract: dict[str, Any]) -> None:
    """Two views: disjoint halves of one shuffle, or two draws that know nothing of each other."""
    config = case.config
    draws = config["draws"]
    complementary = mode == "complementary_two_views"
    rng = torch.Generator().manual_seed(1)
    for name, tokens, ratio in (
        ("audio", config["freq_patches"] * config["time_patches"], config["mask_ratio"]),
        ("video", config["video_tokens"], config["video_mask_ratio"]),
    ):
        views = draw(build("random", {}), draws, (1, tokens), ratio, 2, complementary, rng)
        seen = 1 - views.mask  # (2, draws, L)
        both = (seen[0] * seen[1]).sum(dim=1)
        kept = int(tokens * (1 - ratio))
        case.close(f"{mode}: {name} kept", seen.sum(dim=2), torch.full((2, draws), kept), 0.0)
        if complementary:
            per_view, unseen = [contract[f"{name}_kept_per_view"]], [contract[f"tokens_seen_by_no_view_{name}"]] * draws
            case.close(f"{mode}: {name} kept per view", seen.sum(dim=2).unique(), per_view, 0.0)
            case.close(f"{mode}: {name} tokens in both views", both, torch.zeros(draws), 0.0)
            neither = (seen.sum(dim=0) == 0).sum(dim=1)
            case.close(f"{mode}: {name} tokens in neither view", neither, unseen, 0.0)
            order = torch.cat((views.ids_keep[0], views.ids_keep[1]), dim=1)
            common = views.ids_restore[0].argsort(dim=1)[:, : 2 * kept]
            case.close(f"{mode}: {name} view 2 goes on in view 1's shuffle", order, common, 0.0)
        else:
            p = kept / tokens
            spread = math.sqrt(kept * p * (1 - p) * (tokens - kept) / (tokens - 1) / draws)
            case.close(f"{mode}: {name} mean overlap", both.mean(), kept * p, SIGMAS * spread)


CASES = {"masking": masking}
