"""Inpainting on tiny models: what counts, what the floors are, and what the other modality is worth."""

import math

import numpy as np
import pytest
import torch
from filling_models import CLIPS, LA, LV, evaluation, model, recipe
from torch import nn

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives.kdc_mae import KdcMae
from kdctool.tasks import EvalData, tasks
from kdctool.tasks.filling import ClipMasks, patches, views_of


class Unmixed(KdcMae):
    """No token ever sees another: nothing of the other modality can reach a prediction."""

    def __init__(self, recipe, encoder):
        super().__init__(recipe, encoder)
        encoder.blocks_a, encoder.blocks_v, encoder.blocks_u = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.decoder.decoder_blocks = nn.ModuleList()


class Copies(KdcMae):
    """Knows that sound and picture are one number: says the other modality's first visible value, else 0."""

    def encode(self, batch, audio, video, **_):
        self.seen = batch, audio, video
        return None

    def decode(self, encoded, audio, video):
        batch = self.seen[0]
        raw_a, raw_v = patches(batch["fbank"], batch["frame"], self.model)

        def said(other, keep, like):
            value = other[:, :1, :1] if keep.shape[2] else torch.zeros_like(like[:, :1, :1])
            return value.expand_as(like)[None].clone()

        return said(raw_v, video.ids_keep, raw_a), said(raw_a, audio.ids_keep, raw_v)


def score(objective, data=None, **options):
    task = tasks.get("inpainting").cls(tasks.options("inpainting", options))
    return task.run(objective, data or evaluation())


def test_every_number_has_an_interval_a_floor_and_a_column():
    result = score(model())
    assert result.protocol == "inpainting/random-75@1"
    assert (result.n_scored, result.n_total, result.missing) == (CLIPS, CLIPS, {})
    assert set(result.per_clip.columns) == set(result.metrics)
    for name, metric in result.metrics.items():
        assert metric.low <= metric.value <= metric.high, name
        assert result.per_clip.columns[name].mean() == pytest.approx(metric.value), name
    for name in ("audio_mse", "audio_mse_alone", "audio_mse_copy", "video_psnr", "video_ssim_copy", "audio_lsd"):
        floor = "_".join(name.split("_")[:2]) + "_mean"
        assert result.metrics[name].chance == result.metrics[floor].value, name
    assert result.metrics["audio_mse_cross"].chance == result.metrics["audio_mse_cross_mean"].value
    assert result.metrics["audio_gain"].chance == 0.0


def test_the_masked_error_is_that_of_the_training_loss():
    objective, data = model(), evaluation(batch_size=CLIPS)
    batch = data.batches[0]
    masks = ClipMasks("audio", "random", (2, 4), 0.75, 0), ClipMasks("video", "random", (4, 4), 0.75, 0)
    views = views_of(masks[0](data.uids), LA), views_of(masks[1](data.uids), LV)
    with torch.inference_mode():
        loss = objective.loss({**batch, "row": batch["clip"]}, *views)
    result = score(objective, data)
    assert result.metrics["audio_mse"].value == pytest.approx(float(loss.terms["reconstruction_audio"]), rel=1e-5)
    assert result.metrics["video_mse"].value == pytest.approx(float(loss.terms["reconstruction_video"]), rel=1e-5)


def test_a_model_that_ignores_the_other_modality_gains_nothing_by_it():
    metrics = score(model(Unmixed)).metrics
    for name in ("audio_gain", "audio_gain_shuffled", "video_gain", "video_gain_shuffled"):
        assert metrics[name].value == pytest.approx(0.0, abs=1e-6), name


def test_a_model_that_copies_the_other_modality_gains_by_the_right_one_alone():
    metrics = score(model(Copies), evaluation(twins=True)).metrics
    for modality in ("audio", "video"):
        assert metrics[f"{modality}_mse"].value == pytest.approx(0.0, abs=1e-12)
        assert metrics[f"{modality}_mse_cross"].value == pytest.approx(0.0, abs=1e-12)
        assert metrics[f"{modality}_gain"].value == pytest.approx(metrics[f"{modality}_mse_alone"].value)
        assert metrics[f"{modality}_gain_shuffled"].value < metrics[f"{modality}_gain"].value - 0.1
        assert metrics[f"{modality}_mse_cross_shuffled"].value > 0.1
    assert metrics["video_psnr"].value == 100.0
    assert metrics["video_ssim"].value == pytest.approx(1.0)
    assert metrics["audio_lsd"].value == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, CLIPS])
def test_results_depend_on_no_batch(batch_size):
    whole, parts = score(model()), score(model(), evaluation(batch_size=batch_size))
    for name, values in whole.per_clip.columns.items():
        assert np.allclose(values, parts.per_clip.columns[name], rtol=1e-4, atol=1e-5), name
    assert parts.assets["video.uids"].tolist() == whole.assets["video.uids"].tolist()


def test_the_order_of_the_clips_moves_no_number():
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    whole, turned = score(model()), score(model(), evaluation(order=order))
    for name, values in whole.per_clip.columns.items():
        assert np.allclose(values[order], turned.per_clip.columns[name], rtol=1e-4, atol=1e-5), name


def test_structured_masks_have_a_protocol_of_their_own():
    result = score(model(), audio="time", video="random", ratio=0.5)
    assert result.protocol == "inpainting/time+random-50@1"
    assert result.metrics["audio_mse"].value != score(model(), ratio=0.5).metrics["audio_mse"].value


def test_a_model_of_normalised_patches_is_scored_in_its_own_units():
    result = score(model(norm_pix=True))
    assert result.protocol == "inpainting/random-75-norm-pix@1"
    assert not [name for name in result.metrics if name.split("_")[1] in ("psnr", "ssim", "lsd")]
    assert "borrow" in result.notes[0]
    assert result.metrics["audio_mse_cross_mean"].value == pytest.approx(63 / 64, rel=1e-3)  # 0 against unit variance.


def test_borrowed_statistics_are_a_variant_whose_floor_borrows_too():
    result = score(model(norm_pix=True), statistics="target")
    assert result.protocol == "inpainting/random-75-target-statistics@1"
    assert "video_psnr" in result.metrics
    raw = torch.cat([patches(b["fbank"], b["frame"], model().model)[0] for b in evaluation().batches])
    spread = raw.var(-1, unbiased=False).mean()  # Each removed patch filled with its own mean.
    assert result.metrics["audio_mse_cross_mean"].value == pytest.approx(float(spread), rel=1e-4)
    with pytest.raises(UsageFault, match="norm_pix = true"):
        score(model(), statistics="target")


def test_one_clip_is_scored_without_controls_or_interval():
    result = score(model(), evaluation(1))
    assert result.n_scored == 1
    assert math.isnan(result.metrics["audio_mse"].low)
    assert "audio_gain_shuffled" not in result.metrics
    assert any("one source video" in note for note in result.notes)


def test_controls_can_be_left_out():
    result = score(model(), controls=False)
    assert not [name for name in result.metrics if "shuffled" in name]
    assert result.notes == ()


@pytest.mark.parametrize("where", ["decoder_pred_a", "decoder_pred_v"])
def test_a_nan_stops_with_exit_code_5(where):
    objective = model()
    nn.init.constant_(getattr(objective.decoder, where).bias, math.nan)
    with pytest.raises(VerificationFault, match="NaN or infinite"):
        score(objective)


def test_the_pictures_show_what_was_removed_and_what_was_put_there():
    result = score(model())
    assets = result.assets
    assert assets["audio.uids"].tolist() == assets["video.uids"].tolist()
    assert assets["audio.original"].shape == (CLIPS, 32, 16)
    assert assets["video.original"].shape == (CLIPS, 32, 32, 3)
    assert assets["video.original"].dtype == assets["video.filled"].dtype == np.uint8
    assert assets["audio.filled"].dtype == np.float16
    gone = np.isnan(assets["audio.masked"])
    assert gone.mean() == pytest.approx(0.75)
    assert assets["video.removed"].mean() == pytest.approx(0.75)
    assert np.array_equal(assets["audio.filled"][~gone], assets["audio.original"][~gone])
    kept = ~assets["video.removed"]
    assert np.array_equal(assets["video.filled"][kept], assets["video.original"][kept])
    assert np.array_equal(assets["video.masked"][kept], assets["video.original"][kept])
    assert not np.array_equal(assets["video.filled"], assets["video.original"])


def test_a_model_without_a_decoder_is_refused():
    for without in (model(reconstruction={"weight": 0.0}), AVEncoder(recipe().model)):
        with pytest.raises(UsageFault, match="no decoder"):
            score(without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": "adaptive"}, "learns"),
        ({"audio": "randm"}, "no masking is called"),
        ({"ratio": 0.99}, "keeps 0 of 8 audio tokens"),
        ({"ratio": 1.5}, "ratio"),
        ({"truth": "nowhere.jsonl"}, "there is no nowhere.jsonl"),
    ],
)
def test_options_that_cannot_be_met_are_usage_errors(options, message):
    with pytest.raises(UsageFault, match=message):
        score(model(), **options)


def test_a_split_without_clips_is_a_data_fault():
    with pytest.raises(DataFault, match="no clip"):
        score(model(), EvalData(batches=[], uids=[], sources=[], n_total=0))


def test_training_mode_is_put_back():
    objective = model().train()
    score(objective)
    assert objective.training
