"""Localization on models whose maps are known: perfect, constant, deaf and broken ones, beside floors."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.recipe import Model
from kdctool.tasks import EvalData, tasks
from kdctool.tasks.localization import similarity_map
from kdctool.tasks.maps import centre_map, marked, overlap, success, to_unit_range, truth_map

CLIPS, GRID, PIXELS = 12, 8, 32
SQUARE = {"width": 112, "height": 112, "crop": [0, 0, 112, 112]}
PLACES = [(x, y) for y in range(4) for x in range(4)]
"""Corners of the things, in quarters of the picture."""


class Sees(nn.Module):
    """A token is (value of the picture there, 1); a sound is (its first value, 1)."""

    options = SimpleNamespace(video_grid=(GRID, GRID))

    def embed_audio(self, fbank):
        value = fbank[:, 0, 0]
        return torch.stack((value.cos(), value.sin()), -1)[:, None]

    def embed_video(self, frame):
        value = nn.functional.avg_pool2d(frame[:, :1], PIXELS // GRID).flatten(1)
        return torch.stack((value.cos(), value.sin()), -1)


class Constant(Sees):
    def embed_video(self, frame):
        return torch.ones(len(frame), GRID * GRID, 2)


class Deaf(Sees):
    """Finds the brightest thing, whatever is heard."""

    def embed_audio(self, fbank):
        return super().embed_audio(torch.full_like(fbank, 1.2))


class Broken(Sees):
    def embed_audio(self, fbank):
        return torch.where(torch.arange(len(fbank))[:, None, None] == 1, math.nan, super().embed_audio(fbank))


def boxes(clip):
    """Sounding and silent boxes of a clip as shares: quarter-sized squares in different places."""
    places = [PLACES[(5 * clip) % 16], PLACES[(5 * clip + 9) % 16]]
    return [[x / 4, y / 4, (x + 1) / 4, (y + 1) / 4] for x, y in places]


def paint(frame, box, value):
    x0, y0, x1, y1 = (int(corner * PIXELS) for corner in box)
    frame[:, y0:y1, x0:x1] = value


def evaluation(clips=CLIPS, batch_size=5, order=None, **other):
    """Each clip shows a thing of value v (it sounds with v) and one of another value, on a background of 0."""
    order = list(range(clips)) if order is None else order
    fbank, frame = torch.zeros(clips, 32, 16), torch.zeros(clips, 3, PIXELS, PIXELS)
    for row, clip in enumerate(order):
        sounding, silent = boxes(clip)
        heard, other_value = (0.6, 1.2) if clip % 2 else (1.2, 0.6)
        paint(frame[row], sounding, heard)
        paint(frame[row], silent, other_value)
        fbank[row] = heard
    batches = [
        {"clip": torch.arange(clips)[rows], "fbank": fbank[rows], "frame": frame[rows]}
        for rows in (slice(first, first + batch_size) for first in range(0, clips, batch_size))
    ]
    told = [{"source": f"test/{i}.mp4", "frame_times": [0.0, 1.0], **SQUARE} for i in order]
    given = {
        "uids": [f"clip-{i}" for i in order],
        "sources": [f"video-{i // 2}" for i in order],
        "n_total": clips,
        "abouts": told,
    }
    return EvalData(batches=batches, **{**given, **other})


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "truth.jsonl"
    lines = []
    for i in range(CLIPS):
        sounding, silent = ([[round(corner * 112) for corner in box]] * 25 for box in boxes(i))
        row = {"file": f"test/{i}.mp4", "width": 112, "height": 112, "fps": 12.5}
        lines.append(json.dumps({**row, "sounding": {"boxes": sounding}, "silent": {"boxes": silent}}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def score(model, data=None, **options):
    task = tasks.get("localization").cls(tasks.options("localization", options))
    return task.run(model, data or evaluation())


def test_the_map_is_the_cosine_of_the_pooled_sound_with_each_token():
    torch.manual_seed(0)
    encoder = AVEncoder(Model(audio_frames=32, mel_bins=16, image_size=32, audio_patch=8, video_patch=8, width=16,
                              heads=2, depth=1, joint_depth=1)).eval()  # fmt: skip
    fbank, frame = torch.randn(3, 32, 16), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        found = similarity_map(encoder, fbank, frame)
        heard, seen = encoder.embed_audio(fbank).mean(1), encoder.embed_video(frame)
    assert found.shape == (3, 4, 4)
    expected = nn.functional.cosine_similarity(heard[:, None], seen, dim=-1).unflatten(1, (4, 4))
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_model_that_hears_and_sees_finds_everything(truth):
    result = score(Sees(), truth=truth)
    metrics = result.metrics
    assert result.protocol == "localization/avdigits-union@1"
    assert (result.n_scored, result.n_total, result.missing) == (CLIPS, CLIPS, {})
    assert metrics["pointing"].value == 1.0
    assert metrics["two_choice"].value == 1.0
    assert metrics["ciou_fixed"].value > 0.9 > metrics["ciou_fixed"].chance
    assert metrics["ciou_top10"].value > metrics["ciou_top10"].chance
    for name, metric in metrics.items():
        assert metric.low <= metric.value <= metric.high, name
        column = result.per_clip.columns[name]
        assert np.nanmean(column) == pytest.approx(metric.value), name


def test_wrong_sounds_find_nothing_and_their_distance_is_reported(truth):
    metrics = score(Sees(), truth=truth).metrics
    assert metrics["two_choice_shuffled"].value < 1.0
    for name in ("two_choice", "pointing", "ciou_top10"):
        minus = metrics[f"{name}_minus_shuffled"]
        assert minus.value == pytest.approx(metrics[name].value - metrics[f"{name}_shuffled"].value)
        assert minus.chance == 0.0
    assert {f"two_choice_{sound}" for sound in ("silence", "noise", "shuffled")} <= set(metrics)


def test_a_deaf_model_chooses_no_better_than_chance_and_gains_nothing_by_the_right_sound(truth):
    metrics = score(Deaf(), truth=truth).metrics
    assert metrics["two_choice"].value == 0.5  # The brighter thing sounds in every other clip.
    for name in metrics:
        if name.endswith("_minus_shuffled"):
            assert metrics[name].value == 0.0, name


def test_a_constant_model_is_the_picture_where_everything_is_marked(truth):
    result = score(Constant(), truth=truth)
    metrics = result.metrics
    assert metrics["two_choice"].value == metrics["two_choice"].chance == 0.5
    assert metrics["two_choice"].low == metrics["two_choice"].high == 0.5
    area = np.mean([truth_map([boxes(i)[0]]).mean() for i in range(CLIPS)])
    assert metrics["pointing"].value == pytest.approx(area)
    assert metrics["pointing"].value == metrics["pointing"].chance == metrics["pointing_all_ones"].value
    for rule in ("fixed", "top50", "top10"):
        assert metrics[f"ciou_{rule}"].value == metrics["ciou_all_ones"].value
        assert metrics[f"auc_{rule}"].value == pytest.approx(metrics["auc_all_ones"].value)
        assert result.details["mean_iou"][rule] == pytest.approx(area)
    assert result.details["box_area"] == pytest.approx(area)


def test_floors_are_those_of_the_boxes_alone(truth):
    metrics = score(Sees(), truth=truth).metrics
    disc = marked(to_unit_range(centre_map()), "top50")
    iou = np.concatenate([overlap(disc, truth_map([boxes(i)[0]])[None]) for i in range(CLIPS)])
    assert metrics["ciou_top50_centre"].value == success(iou).mean()
    assert metrics["ciou_top50"].chance == metrics["ciou_top50_centre"].value
    assert metrics["pointing_either"].value == pytest.approx(0.5)  # Both things are of one size.
    assert metrics["ciou_either"].value == 1.0  # Half of the two, and a half is a success.
    assert metrics["ciou_all_ones"].value == 0.0


def test_the_order_of_the_clips_moves_no_number(truth):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 11, 10]
    whole, turned = score(Sees(), truth=truth), score(Sees(), evaluation(order=order), truth=truth)
    for name, values in whole.per_clip.columns.items():
        assert np.allclose(values[order], turned.per_clip.columns[name]), name
    assert whole.assets["uids"].tolist() == turned.assets["uids"].tolist()
    assert np.array_equal(whole.assets["map"], turned.assets["map"])


@pytest.mark.parametrize("batch_size", [1, CLIPS])
def test_results_depend_on_no_batch(truth, batch_size):
    whole, parts = score(Sees(), truth=truth), score(Sees(), evaluation(batch_size=batch_size), truth=truth)
    for name, values in whole.per_clip.columns.items():
        assert np.allclose(values, parts.per_clip.columns[name]), name


def test_a_nan_stops_with_exit_code_5(truth):
    with pytest.raises(VerificationFault, match="NaN or infinite") as caught:
        score(Broken(), truth=truth)
    assert caught.value.exit_code == 5


def test_one_clip_is_scored_without_interval_or_shuffled_sound(truth):
    result = score(Sees(), evaluation(1), truth=truth)
    assert result.metrics["two_choice"].value == 1.0
    assert math.isnan(result.metrics["two_choice"].low)
    assert "two_choice_shuffled" not in result.metrics
    assert "one source video" in result.notes[0]


def test_unannotated_clips_are_missing_and_never_shown_to_the_model(truth):
    told = evaluation().abouts
    told[2] = {**told[2], "source": "test/other.mp4"}
    told[3] = {**told[3], "crop": [0, 0, 20, 20], "width": 112}
    result = score(Sees(), evaluation(abouts=told, n_total=CLIPS + 2, missing={"no_audio": 2}), truth=truth)
    assert result.n_scored == CLIPS - 2
    assert result.missing == {"no_audio": 2, "not_annotated": 1, "box_outside_crop": 1}
    assert result.n_scored + sum(result.missing.values()) == result.n_total
    assert "clip-2" not in result.per_clip.uids


def test_the_task_chooses_the_annotated_clips(truth):
    task = tasks.get("localization").cls(tasks.options("localization", {"truth": truth}))
    data = evaluation()
    choice = task.choose(data.uids[:4], data.sources[:4], [*data.abouts[:3], {"source": "test/other.mp4"}])
    assert choice.keep.tolist() == [True, True, True, False]
    assert choice.missing == {"not_in_split": CLIPS - 3}


def test_boxes_of_the_shards_are_scored_without_a_rival():
    told = [{**about, "boxes": [boxes(i)[0]]} for i, about in enumerate(evaluation().abouts)]
    result = score(Sees(), evaluation(abouts=told))
    assert result.protocol == "localization/boxes-union@1"
    assert result.metrics["pointing"].value == 1.0
    assert not [name for name in result.metrics if "two_choice" in name or "either" in name]
    assert np.isnan(result.assets["silent"]).all()


def test_a_choice_of_two_counts_the_clips_that_have_a_rival(tmp_path):
    lines = []
    for i in range(CLIPS):
        sounding, silent = ([[round(corner * 112) for corner in box]] * 25 for box in boxes(i))
        row = {"file": f"test/{i}.mp4", "width": 112, "height": 112, "fps": 12.5, "sounding": {"boxes": sounding}}
        lines.append(json.dumps({**row, **({"silent": {"boxes": silent}} if i < 5 else {})}))
    path = tmp_path / "truth.jsonl"
    path.write_text("\n".join(lines))
    result = score(Sees(), truth=str(path))
    assert result.metrics["two_choice"].value == 1.0
    assert np.isnan(result.per_clip.columns["two_choice"]).sum() == CLIPS - 5
    assert f"two_choice over 5 of {CLIPS} clips" in result.notes[0]


def test_negatives_can_be_left_out(truth):
    names = score(Sees(), truth=truth, negatives=False).metrics
    assert not [name for name in names if any(word in name for word in ("silence", "noise", "shuffled"))]


def test_the_pictures_of_the_report_carry_map_boxes_and_score(truth):
    result = score(Sees(), truth=truth)
    assets = result.assets
    assert assets["frame"].shape == (CLIPS, PIXELS, PIXELS, 3)
    assert assets["frame"].dtype == np.uint8
    assert assets["map"].shape == (CLIPS, PIXELS, PIXELS)
    assert (assets["map"].min(), assets["map"].max()) == (0.0, 1.0)
    for row, uid in enumerate(assets["uids"].tolist()):
        clip = int(uid.rpartition("-")[2])
        assert assets["boxes"][row, 0] == pytest.approx(boxes(clip)[0])
        assert assets["silent"][row, 0] == pytest.approx(boxes(clip)[1])
        top, left = np.unravel_index(assets["map"][row].argmax(), (PIXELS, PIXELS))
        x0, y0, x1, y1 = (corner * PIXELS for corner in boxes(clip)[0])
        assert x0 <= left < x1
        assert y0 <= top < y1
    assert len(result.details["thresholds"]["top50"]) == 21


def test_without_truth_without_tower_and_with_collages_it_is_refused(truth):
    with pytest.raises(UsageFault, match="these shards have none"):
        score(Sees())
    with pytest.raises(UsageFault, match="has no embed_audio"):
        score(nn.Linear(1, 1), truth=truth)
    with pytest.raises(UsageFault, match="collages"):
        score(Sees(), evaluation(collages=True), truth=truth)
    with pytest.raises(DataFault, match="none of the 12 annotations"):
        score(Sees(), evaluation(abouts=[{"source": "x.mp4"}] * CLIPS), truth=truth)


def test_a_collapsed_encoder_scores_as_everything_marked(truth):
    encoder = AVEncoder(Model(audio_frames=32, mel_bins=16, image_size=32, audio_patch=8, video_patch=8, width=16,
                              heads=2, depth=1, joint_depth=1))  # fmt: skip
    for norm in (encoder.norm_a, encoder.norm_v):
        nn.init.zeros_(norm.weight)
        nn.init.normal_(norm.bias)
    result = score(encoder.train(), truth=truth)
    assert encoder.training
    assert result.metrics["two_choice"].value == 0.5
    assert result.metrics["pointing"].value == pytest.approx(result.metrics["pointing"].chance)
