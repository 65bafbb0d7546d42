"""Which patches of an AV-Digits clip count: below 4 kHz inside the sound, and where a digit is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdctool.data.fbank import _mel_weights
from kdctool.errors import UsageFault
from kdctool.tasks import EvalData
from kdctool.tasks.regions import HIGHEST_HZ, Regions

MODEL = SimpleNamespace(
    audio_grid=(8, 13), video_grid=(14, 14), audio_patch=16, mel_bins=128, audio_tokens=104, video_tokens=196
)
"""The study's: 128 bins x 208 frames in patches of 16, 112 pixels in patches of 8."""


@pytest.fixture
def regions(tmp_path):
    row = {"file": "test/0.mp4", "width": 112, "height": 112, "fps": 12.5, "onset_s": 0.5, "duration_s": 0.4}
    digits = {"sounding": {"boxes": [[0, 0, 24, 24]] * 25}, "silent": {"boxes": [[60, 64, 80, 85]] * 25}}
    (tmp_path / "truth.jsonl").write_text(json.dumps({**row, **digits}) + "\n")
    square = {"width": 112, "height": 112, "crop": [0, 0, 112, 112], "frame_times": [0.0, 1.0]}
    told = [{"source": "test/0.mp4", **square}, {"source": "test/1.mp4", **square}]
    return Regions(tmp_path / "truth.jsonl", EvalData([], ["a", "b"], ["a", "b"], 2, abouts=told), MODEL)


def test_clips_without_annotation_have_no_region(regions):
    assert 0 in regions
    assert 1 not in regions


def test_audio_patches_count_inside_the_sound_and_below_4_khz(regions):
    counted = regions.audio(0).unflatten(0, MODEL.audio_grid)
    middles = (np.arange(13) + 0.5) * 0.16
    inside = (middles >= 0.5) & (middles < 0.9)
    assert np.array_equal(counted[0].bool().numpy(), inside)
    # The highest bin that counts has its peak below 4 kHz in the filter bank itself.
    peaks = _mel_weights(16000, 128, 512).argmax(0) * 16000 / 512
    rows = counted[:, inside].any(1)
    middle_bins = peaks.unflatten(0, (8, 16))[:, 7:9].mean(1)
    assert torch.equal(rows, middle_bins < HIGHEST_HZ)
    assert 0 < rows.sum() < 8


def test_video_patches_count_where_either_digit_is_touched(regions):
    counted = regions.video(0).unflatten(0, MODEL.video_grid).bool()
    expected = torch.zeros(14, 14, dtype=torch.bool)
    expected[0:3, 0:3] = True  # 24 pixels are three patches, and no fourth.
    expected[8:11, 7:10] = True  # Rows 64 to 85, columns 60 to 80.
    assert torch.equal(counted, expected)


def test_annotations_without_times_of_the_sound_are_refused(tmp_path):
    (tmp_path / "v.json").write_text('[{"file": "x", "class": "c", "bbox": [[0, 0, 1, 1]]}]')
    with pytest.raises(UsageFault, match="vggss"):
        Regions(tmp_path / "v.json", EvalData([], [], [], 0), MODEL)
