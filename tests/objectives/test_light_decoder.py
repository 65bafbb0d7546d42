"""The light decoder predicts what it is asked for, from the visible tokens alone, for a fraction of the cost."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdctool.batch import Batch
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives import build
from kdctool.objectives.reconstruction import masked_mse
from kdctool.recipe import Recipe

EVERYONE = list(range(8))
LIGHT = {"decoder": {"kind": "light", "share": 0.5}}


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_predicts_its_share_of_the_removed_patches_and_none_twice(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective("kdc_mae", objective=LIGHT)
    for views, tokens in zip(objective.draw(make_batch(EVERYONE), rng(), 8), (8, 16), strict=True):
        asked = views.ids_predict
        assert asked.shape == (2, 8, int(0.5 * (tokens - tokens // 4)))
        assert float(views.mask.gather(2, asked).min()) == 1.0
        assert (asked.sort(dim=2).values.diff(dim=2) > 0).all()


def test_what_it_predicts_follows_from_a_clips_row(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective("kdc_mae", objective=LIGHT)
    whole = objective.draw(make_batch(EVERYONE), rng(), 8)
    part = objective.draw(make_batch([6, 1]), rng(), 8)
    for one, two in zip(whole, part, strict=True):
        assert torch.equal(one.ids_predict[:, [6, 1]], two.ids_predict)
    assert len(whole[1].ids_predict.flatten(0, 1).unique(dim=0)) > 1


def test_every_removed_patch_has_the_same_chance(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective("kdc_mae", objective=LIGHT), make_batch([0])
    seen_by_the_other = asked = 0.0
    for seed in range(300):
        _, video = objective.draw(batch, rng(seed), 1)
        other = 1 - video.mask[1, 0]
        seen_by_the_other += float(other[video.ids_predict[0, 0]].sum())
        asked += video.ids_predict.shape[2]
    # View 2 sees 4 of the 12 patches that view 1 misses; the other 8 are seen by nobody.
    assert seen_by_the_other / asked == pytest.approx(4 / 12, abs=0.03)


def test_leaving_patches_out_changes_nothing_for_the_others(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective("kdc_mae", objective=LIGHT), make_batch(EVERYONE)
    audio, video = objective.draw(batch, rng(), 8)
    encoded = objective.encode(batch, audio, video)
    some = objective.decode(encoded, audio, video)
    everything = objective.decode(encoded, replace(audio, ids_predict=None), replace(video, ids_predict=None))
    for part, whole, views in zip(some, everything, (audio, video), strict=True):
        index = views.ids_predict.unsqueeze(-1).expand_as(part)
        torch.testing.assert_close(part, whole.gather(2, index))
    loss = objective.loss(batch, audio, video)
    target = objective.targets(batch)[0]
    mask = torch.zeros_like(audio.mask).scatter(2, audio.ids_predict, 1.0)
    torch.testing.assert_close(
        loss.terms["reconstruction_audio"], masked_mse(everything[0], target, mask).sum().detach()
    )


def test_removed_pixels_do_not_leak_into_the_prediction(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective("mae", objective=LIGHT), make_batch([0])
    audio, video = objective.draw(batch, rng(), 8)
    hidden = int(video.mask[0, 0].nonzero()[0])
    changed = {**batch, "frame": batch["frame"].clone()}
    row, column = divmod(hidden, 4)
    changed["frame"][:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 5.0
    before, after = (objective.decode(objective.encode(b, audio, video), audio, video)[1] for b in (batch, changed))
    torch.testing.assert_close(before, after)


def test_at_full_size_it_costs_a_small_part_of_the_joint_decoder() -> None:
    """FLOPs of the forward pass of one clip, counted on shapes alone; docs/numerics.md quotes them."""
    counted = {}
    for kind in ("joint", "light"):
        recipe = Recipe.model_validate({"name": "base", "objective": {"decoder": {"kind": kind}}})
        with torch.device("meta"):
            objective = build(recipe, AVEncoder(recipe.model))
            decoder = objective.decoder
            joint = torch.empty(2, 177, 768)
            ids = (torch.empty(2, 512, dtype=torch.int64), torch.empty(2, 196, dtype=torch.int64))
            few = (torch.empty(2, 96, dtype=torch.int64), torch.empty(2, 36, dtype=torch.int64))
            with FlopCounterMode(display=False) as counter:
                decoder(joint, *few) if kind == "light" else decoder(joint, 128, *ids)
        counted[kind] = counter.get_total_flops() / 1e9
    assert counted["joint"] == pytest.approx(88.6, abs=0.3)
    assert counted["light"] < 0.2 * counted["joint"]
