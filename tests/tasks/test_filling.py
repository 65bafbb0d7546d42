"""Masks by uid, patches and back, and filling in with either decoder, also without a token of one modality."""

import math

import pytest
import torch
from filling_models import LA, LV, evaluation, model

from kdctool.errors import UsageFault
from kdctool.masking.views import views_from_noise
from kdctool.objectives.reconstruction import audio_patches, normalise_patches, patchify
from kdctool.tasks.filling import (
    ClipMasks,
    fill_in,
    inputs,
    mean_patch,
    nearest_patch,
    patches,
    unnormalise,
    views_of,
)
from kdctool.tasks.inpainting_scores import masked_error


@pytest.mark.parametrize("keep", [0, 1, 3, LA])
def test_views_of_kept_tokens_are_those_that_masking_makes(keep):
    drawn = views_from_noise(torch.rand(5, LA), keep)
    ours = views_of(drawn.ids_keep[0], LA)
    assert torch.equal(ours.mask, drawn.mask)
    tokens = torch.arange(LA).expand(5, LA)
    shuffled = torch.cat((ours.ids_keep[0], torch.full((5, LA - keep), -1)), dim=1)
    restored = shuffled.gather(1, ours.ids_restore[0])
    assert torch.equal(restored, torch.where(ours.mask[0] > 0, -1, tokens))


def test_patches_are_the_decoders_and_go_back_to_the_input():
    objective, data = model(), evaluation()
    batch = data.batches[0]
    a, v = patches(batch["fbank"], batch["frame"], objective.model)
    assert torch.equal(a, audio_patches(batch["fbank"], 8))
    assert torch.equal(v, patchify(batch["frame"], 8))
    fbank, frame = inputs(a, v, objective.model)
    assert torch.equal(fbank, batch["fbank"])
    assert torch.equal(frame, batch["frame"])
    assert torch.allclose(unnormalise(normalise_patches(a), a), a, atol=1e-5)


@pytest.mark.parametrize("name", ["random", "time", "freq", "tf"])
def test_masks_follow_from_seed_and_uid_alone(name):
    masks = ClipMasks("audio", name, (2, 4), 0.5, 3)
    together = masks(["x", "y", "z"])
    assert torch.equal(torch.cat([masks([uid]) for uid in "zyx"]), together.flip(0))
    assert not torch.equal(ClipMasks("audio", name, (2, 4), 0.5, 4)(["x", "y", "z"]), together)
    assert not torch.equal(ClipMasks("video", name, (2, 4), 0.5, 3)(["x", "y", "z"]), together)


def test_structured_masks_remove_whole_lines():
    kept = ClipMasks("audio", "time", (2, 4), 0.5, 0)([str(i) for i in range(20)])
    columns = torch.zeros(20, 8).scatter_(1, kept, 1.0).unflatten(1, (2, 4)).sum(1)
    assert set(columns.unique().tolist()) == {0.0, 2.0}


def test_masked_error_counts_removed_patches_only():
    true, counted = torch.zeros(1, 4, 2), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    filled = torch.tensor([[[9.0, 9.0], [1.0, 1.0], [7.0, 7.0], [3.0, 1.0]]])
    assert masked_error(filled, true, counted).tolist() == [pytest.approx((1.0 + 5.0) / 2)]
    assert math.isnan(masked_error(filled, true, torch.zeros(1, 4)))


def test_the_floors_are_the_mean_and_the_nearest_visible_patch():
    target = torch.arange(8.0).view(1, 8, 1)
    keep = torch.tensor([[7, 0]])
    assert mean_patch(target, keep).flatten().tolist() == [3.5] * 8
    # Of the grid 2 x 4: token 3 lies next to 7, and 6 does; 5 is two from 7 and not quite as far from 0.
    assert nearest_patch(target, keep, (2, 4)).flatten().tolist() == [0, 0, 7, 7, 0, 0, 7, 7]
    assert torch.equal(mean_patch(target, keep[:, :0]), torch.zeros_like(target))


def test_equally_near_patches_give_the_first_whatever_the_order_they_are_kept_in():
    target = torch.arange(3.0).view(1, 3, 1)
    for keep in ([[0, 2]], [[2, 0]]):
        assert nearest_patch(target, torch.tensor(keep), (1, 3)).flatten().tolist() == [0, 0, 2]


@pytest.mark.parametrize("kind", ["joint", "light"])
def test_filling_in_keeps_what_is_visible_and_predicts_the_rest_as_pre_training_does(kind):
    objective, batch = model(kind=kind), evaluation().batches[0]
    keep_a, keep_v = ClipMasks("audio", "random", (2, 4), 0.5, 0)(list("abcd")), torch.tensor([[0, 5]]).expand(4, 2)
    with torch.inference_mode():
        fbank, frame = fill_in(objective, batch["fbank"], batch["frame"], keep_a, keep_v)
        views = views_of(keep_a, LA), views_of(keep_v, LV)
        a, v = objective.decode(objective.encode(batch, *views, single=False), *views)
    raw_a, raw_v = patches(batch["fbank"], batch["frame"], objective.model)
    for filled, raw, said, view in ((fbank, raw_a, a[0], views[0]), (frame, raw_v, v[0], views[1])):
        got = patches(fbank, frame, objective.model)[0 if filled is fbank else 1]
        removed = view.mask[0].bool()
        assert torch.equal(got[~removed], raw[~removed])
        assert torch.allclose(got[removed], said[removed], atol=1e-6)


@pytest.mark.parametrize("kind", ["joint", "light"])
def test_a_modality_can_be_removed_whole(kind):
    objective, batch = model(kind=kind), evaluation().batches[0]
    none = torch.zeros(4, 0, dtype=torch.long)
    with torch.inference_mode():
        fbank, frame = fill_in(objective, batch["fbank"], batch["frame"], none, None)
        other = fill_in(objective, torch.randn_like(batch["fbank"]), batch["frame"], none, None)[0]
    assert torch.isfinite(fbank).all()
    assert torch.equal(frame, batch["frame"])
    assert torch.allclose(fbank, other, atol=1e-6)  # The sound itself was never looked at.


def test_the_encoder_without_audio_tokens_is_the_one_for_missing_sound():
    objective, batch = model(), evaluation().batches[0]
    none, all_ = torch.zeros(4, 0, dtype=torch.long), torch.arange(LV).expand(4, LV)
    with torch.inference_mode():
        encoded = objective.encode(batch, views_of(none, LA), views_of(all_, LV), single=False).joint
        assert torch.allclose(encoded, objective.encoder.embed_video_as_joint(batch["frame"]), atol=1e-6)


def test_normalised_predictions_are_not_shown_without_saying_so():
    objective, batch = model(norm_pix=True), evaluation().batches[0]
    with pytest.raises(UsageFault, match="norm_pix"):
        fill_in(objective, batch["fbank"], batch["frame"], torch.zeros(4, 0, dtype=torch.long))
    with torch.inference_mode():
        filled = fill_in(
            objective, batch["fbank"], batch["frame"], torch.zeros(4, 0, dtype=torch.long), statistics="target"
        )[0]
    assert torch.isfinite(filled).all()
