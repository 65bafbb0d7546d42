"""The small parts of a page: names, numbers, scales, drawings, pictures, sounds, and the budget of all media."""

import base64
import io
import re
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from PIL import Image

from kdctool.report import figures, pictures
from kdctool.report.figures import Dots, Series
from kdctool.report.matrices import confusion, likeness
from kdctool.report.media import Media
from kdctool.report.names import shown
from kdctool.report.scales import axis, smooth, thin, tick_text, ticks
from kdctool.report.tables import metric_text, score
from kdctool.report.training import groups
from kdctool.report.wording import metric_meaning


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.mp4", "plain.mp4"),
        ("שלום.mp4", "שלום.mp4"),
        ("a\nb\x00c", "a\\nb\\u0000c"),
        ("x\udcffy", "x\\xffy"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_what_cannot_be_seen_in_a_name_is_written_out(name: str, expected: str) -> None:
    assert shown(name) == expected
    shown(name).encode("utf-8")


def test_a_very_long_name_loses_its_middle() -> None:
    assert len(shown("n" * 5000)) < 400
    assert shown("n" * 399) == "n" * 399


def test_metrics_are_written_as_the_command_line_writes_them() -> None:
    assert metric_text("a2v_r1", 0.25) == "0.250"
    assert metric_text("a2v_mean_rank", 20.5) == "20.5"
    assert metric_text("gain", -0.0001) == "0.000"
    assert score("x", float("nan")).text == "unknown"
    assert score("x", float("nan")).value is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.998, 1.0), (-3.0, 250_000.0), (1e-7, 3e-7), (5.0, 5.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    scale = axis([low, high], 100, 0)
    found = ticks(scale.low, scale.high)
    assert 2 <= len(found) <= 6
    assert all(scale.low - 1e-12 <= tick <= scale.high + 1e-12 for tick in found)
    assert len({tick_text(tick) for tick in found}) == len(found)


def test_thinning_keeps_ends_and_peaks() -> None:
    y = [0.0] * 10_000
    y[5_003] = 9.0
    x, kept = thin(range(10_000), y)
    assert len(kept) <= 400
    assert max(kept) == 9.0
    assert (x[0], x[-1]) == (0, 9_999)
    assert x == sorted(x)


def test_a_spike_does_not_bend_the_smooth_line() -> None:
    y = [1.0] * 500
    y[0] = 60.0
    y[250] = 90.0
    _, even = smooth(range(500), y)
    assert max(even) < 1.5


def test_curves_draw_a_point_a_constant_and_a_steep_fall() -> None:
    for y in ([2.0], [2.0, 2.0, 2.0], [1e4, 3.0, 2.0, 2.0, 1.5], [-1.0, 0.0]):
        drawing = str(figures.curve("T", [Series("loss", list(map(float, range(len(y)))), y, "plain")]))
        assert drawing.count("<polyline") == 1
        assert "nan" not in drawing.lower().replace("tenant", "")
    assert "log" in figures.curve("T", [Series("l", [0, 1, 2, 3, 4], [1e4, 3, 2, 2, 1.5], "plain")])


def test_curves_with_names_that_are_markup_stay_text() -> None:
    drawing = figures.curve("<b>", [Series("<script>", [0.0, 1.0], [1.0, 2.0], "plain")])
    assert "<b>" not in drawing
    assert "<script>" not in drawing


def test_dots_stand_one_per_head() -> None:
    drawing = figures.dots("AHD", Dots([1, 2, 3], [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]], [1.5, 2.5, 3.5], "audio", 5.0))
    assert drawing.count("head") == 6 + 1  # The label says head, too.
    assert drawing.count('class="reference"') == 1


def test_an_interval_has_its_tick_where_chance_is() -> None:
    drawing = figures.interval(0.5, 0.4, 0.6, 0.25)
    assert 'class="chance" x1="32.5"' in drawing
    assert 'cx="60.0"' in drawing
    assert not figures.interval(0.5, 0.4, 0.6, None)
    assert figures.interval(3.0, None, None, 20.5)


def test_a_confusion_draws_counts_and_escapes_labels() -> None:
    drawing = confusion(["<b>", "two"], [[3, 1], [0, 0]])
    assert "&lt;b&gt;" in drawing
    assert re.findall(r">(\d+)<", drawing) == ["3", "1"]
    assert likeness(["a", "b"], [[1.0, None], [None, 1.0]], "x").count('class="cell right"') == 2


def test_boxes_lie_where_they_were_given() -> None:
    drawing = figures.boxes(200, 100, [("true", [[0.1, 0.2, 0.6, 0.7]])], (50, 20))
    assert 'class="box true" x="20.0" y="20.0" width="100.0" height="50.0"' in drawing
    assert "M43.4 20.5H57.6" in drawing


def test_what_was_removed_is_grey_in_a_spectrogram() -> None:
    fbank = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float16)
    fbank[:32] = np.nan
    pixels = pictures.spectrogram_pixels(fbank, *pictures.levels(fbank))
    assert pixels.shape == (32, 64, 3)
    assert (pixels[:, :32] == pictures.REMOVED).all()
    assert not (pixels[:, 32:] == pictures.REMOVED).all(-1).any()


def test_high_tones_are_on_top_and_time_runs_to_the_right() -> None:
    fbank = np.zeros((10, 8))
    fbank[9, 7] = 1.0
    pixels = pictures.spectrogram_pixels(fbank, 0.0, 1.0)
    assert pixels[0, 9].sum() == pixels.sum(-1).max()


def test_a_heat_map_is_most_visible_where_it_is_highest() -> None:
    found = np.zeros((20, 30), dtype=np.float16)
    found[4, 7], found[10, 10] = 1.0, 0.6
    image = np.asarray(image_of(pictures.heat(found)))
    assert image.shape == (20, 30, 4)
    assert np.unravel_index(image[..., 3].argmax(), (20, 30)) == (4, 7)
    assert image[0, 0, 3] == 0


def test_a_picture_keeps_its_shape_within_the_edge() -> None:
    image = image_of(pictures.picture(np.zeros((100, 400, 3), dtype=np.uint8), 200))
    assert image.size == (200, 50)
    assert image_of(pictures.picture(np.zeros((40, 40, 3), dtype=np.uint8), 200)).size == (40, 40)


@pytest.mark.parametrize("num", [800, 16_000, 52_345])
def test_a_sound_keeps_its_length(num: int) -> None:
    samples = (3000 * np.sin(np.arange(num) / 6)).astype(np.int16)
    uri = pictures.sound(samples, 16_000)
    found, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
    assert rate == 16_000
    assert abs(len(found) - num) / rate < 0.1
    assert uri == pictures.sound(samples, 16_000)


def of_size(large: int, small: int) -> Callable[[int], str]:
    return lambda edge: "x" * (large if edge == pictures.FULL else small)


def test_media_are_held_once_and_the_less_important_give_way() -> None:
    media = Media()
    first = media.add("frame a", "picture", 10, of_size(1000, 400))
    assert media.add("frame a", "picture", 5, of_size(1000, 400)) == first
    later = media.add("frame b", "picture", 20, of_size(1000, 400))
    sound = media.add("sound a", "sound", 30, of_size(900, 900))
    assert set(media.settle(3000).uris) == {first, later, sound}
    small = media.settle(2000)
    assert small.is_small
    assert set(small.uris) == {first, later, sound}
    tight = media.settle(1000)
    assert set(tight.uris) == {first, later}
    assert tight.left_out == {"sound": 1}
    assert tight.kept == {"picture": 2}
    assert not media.settle(0).uris


def test_curves_of_one_kind_share_a_drawing() -> None:
    names = ["lr", "reconstruction_video", "loss", "reconstruction_audio", "rank/audio", "rank/video", "zz"]
    found = groups(names)
    assert list(found) == ["loss", "reconstruction", "lr", "rank", "zz"]
    assert found["reconstruction"] == ["reconstruction_video", "reconstruction_audio"]
    assert found["rank"] == ["rank/audio", "rank/video"]


@pytest.mark.parametrize(
    ("task", "name", "meaning"),
    [
        ("retrieval", "a2v_r1", "sound finds its video, in first place"),
        ("retrieval", "v2a_precision_speaker", "video finds its sound, the first answer has the query's speaker"),
        ("retrieval", "a2v_precision", ""),
        ("probe", "linear_k10_top1", "linear on 10 labels a class, the first answer is right"),
        ("probe", "linear_share0.01_top1", "linear on 0.01 of the labels, the first answer is right"),
    ],
)
def test_a_metric_is_told_in_words_where_they_are_known(task: str, name: str, meaning: str) -> None:
    assert metric_meaning(task, name) == meaning
