"""What a user may ask of a clip: how many frames, which shape, which sound, which stream, and what it may lack."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from kdctool.errors import UsageFault
from kdctool.media import binary, inputs
from kdctool.media.clip import extract
from kdctool.media.geometry import Geometry, Turn, geometry
from kdctool.media.messages import Task
from kdctool.media.opener import Opener
from kdctool.media.settings import Item, Segment, Settings, Tools
from kdctool.media.source import Source
from kdctool.shards.extraction import boxes_in_frame

Make = Callable[..., Path]
X264 = ("-c:v", "libx264", "-preset", "ultrafast")
DECODERS = ("pyav", "ffmpeg")


def rows_of(path: Path, out: Path, segment: Segment | None = None, **options: Any) -> list[dict[str, Any]]:
    settings = Settings(**{"size": 64, **options})
    settings.check()
    tools = Tools(binary.find(), "test", clip_timeout_s=30)
    item = Item(str(path), path.name, segment)
    return list(extract(Task(item), out, settings, tools))


def row_of(path: Path, out: Path, segment: Segment | None = None, **options: Any) -> dict[str, Any]:
    (row,) = rows_of(path, out, segment, **options)
    return row


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_per_second_follow_the_length_of_the_clip(decoder: str, plain: Path, tmp_path: Path) -> None:
    row = row_of(plain, tmp_path, Segment(500, 2000), fps=2.5, decoder=decoder)
    assert row["frame_times"] == pytest.approx([0.5, 0.9, 1.3, 1.7, 2.1], abs=0.041)
    assert len(row["frames"]) == 5
    assert len(row_of(plain, tmp_path, Segment(0, 100), fps=0.1, decoder=decoder)["frames"]) == 1


def test_moments_are_exact() -> None:
    assert Settings(fps=29.97).moments(Fraction(1, 10)) == [0, Fraction(100, 2997), Fraction(200, 2997)]
    assert Settings(frames=4).moments(Fraction(2)) == [0, Fraction(1, 2), 1, Fraction(3, 2)]
    with pytest.raises(UsageFault, match="more than 1000 frames"):
        Settings(fps=200).check()


@pytest.fixture(scope="session")
def quarters(make: Make) -> Path:
    """A picture twice as wide as high: its left eighth is red, the rest is blue."""
    picture = "color=blue:s=320x160:r=5:d=1,drawbox=w=40:h=160:color=red:t=fill"
    return make("quarters.mp4", *X264, "-crf", "5", "-c:a", "aac", inputs=(picture, "sine=d=1"))


def stored(out: Path, row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(out / row["frames"][0])).astype(int)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_fit_keeps_boxes_where_they_belong(decoder: str, quarters: Path, tmp_path: Path) -> None:
    found = {fit: row_of(quarters, tmp_path / fit, fit=fit, decoder=decoder) for fit in ("crop", "pad", "squash")}
    assert {fit: row["crop"] for fit, row in found.items()} == {
        "crop": [80, 0, 160, 160],
        "pad": [0, -80, 320, 320],
        "squash": [0, 0, 320, 160],
    }
    red = ((0.0, 0.0, 0.125, 1.0),)  # Shares of the source's picture.
    assert boxes_in_frame(red, found["crop"]) == []  # Cut away, and said so.
    for fit in ("pad", "squash"):
        frame = stored(tmp_path / fit, found[fit])
        ((x1, y1, x2, y2),) = boxes_in_frame(red, found[fit])
        is_red = (frame[..., 0] > 120) & (frame[..., 2] < 120)
        rows, columns = np.flatnonzero(is_red.any(axis=1)), np.flatnonzero(is_red.any(axis=0))
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == pytest.approx(
            [64 * x1, 64 * y1, 64 * x2, 64 * y2], abs=1.01
        )
    bars = stored(tmp_path / "pad", found["pad"])
    assert bars[:14].max() < 30
    assert bars[-14:].max() < 30
    assert stored(tmp_path / "crop", found["crop"])[..., 0].max() < 60


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(320, 180), (180, 320), (101, 37), (64, 64), (1000, 3)])
def test_every_shape_becomes_square(fit: Any, shape: tuple[int, int]) -> None:
    class Frame:
        width, height = shape
        side_data: tuple[()] = ()

    if fit == "crop" and shape == (1000, 3):
        shape = Frame.width, Frame.height = (400, 3)
    made = geometry(Frame(), None, 64, fit)
    for turn in (Turn(), Turn(swap=True, flip_y=True)):
        turned = Geometry(turn, made.scaled, made.width, made.height, 64)
        w, h = made.scaled
        frame = turned.finish(np.full((h, w, 3), 255, np.uint8))
        assert frame.shape == (64, 64, 3)
        share = 1.0 if fit != "pad" else min(w, h) / 64
        assert (frame[..., 0] == 255).mean() == pytest.approx(share)
    x, y, w, h = made.crop
    assert (x >= 0 and y >= 0) == (fit != "pad" or shape[0] == shape[1])
    assert max(abs(2 * x + w - made.width), abs(2 * y + h - made.height)) <= 20  # The centre stays the centre.


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("audio", "rate"), [("flac", 16000), ("wav", 22050), ("opus", 24000), ("opus", 16000)])
def test_sound_has_the_format_and_rate_that_were_asked_for(
    audio: str, rate: int, decoder: str, plain: Path, tmp_path: Path
) -> None:
    row = row_of(plain, tmp_path, audio=audio, sample_rate=rate, decoder=decoder)
    assert row["audio"].endswith(f"/audio.{audio}")
    sound, given = soundfile.read(tmp_path / row["audio"])
    assert (given, sound.shape) == (rate, (round(row["duration_s"] * rate),))
    spectrum = np.abs(np.fft.rfft(sound))
    assert spectrum.argmax() * rate / len(sound) == pytest.approx(440, abs=2)
    again = row_of(plain, tmp_path / "again", audio=audio, sample_rate=rate, decoder=decoder)
    assert again["sha256"] == row["sha256"]


def test_opus_that_a_reader_could_not_open_is_refused() -> None:
    with pytest.raises(UsageFault, match="opus knows no 44100 Hz"):
        Settings(audio="opus", sample_rate=44100).check()


@pytest.fixture(scope="session")
def two_of_each(make: Make) -> Path:
    return make(
        "two_streams.mkv",
        *("-map", "0", "-map", "1", "-map", "2", "-map", "3", *X264, "-c:a", "flac"),
        inputs=("testsrc=s=128x72:d=1", "testsrc2=s=64x64:d=1", "sine=f=440:d=1", "sine=f=880:d=1"),
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_named_streams_are_taken(decoder: str, two_of_each: Path, tmp_path: Path) -> None:
    for number, (width, tone) in enumerate(((128, 440), (64, 880))):
        row = row_of(two_of_each, tmp_path / str(number), video_stream=number, audio_stream=number, decoder=decoder)
        sound, rate = soundfile.read(tmp_path / str(number) / row["audio"])
        assert row["width"] == width
        assert np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound) == pytest.approx(tone, abs=2)
    for option in ("video_stream", "audio_stream"):
        assert row_of(two_of_each, tmp_path, decoder=decoder, **{option: 2})["reason"] == "no_such_stream"


@pytest.fixture(scope="session")
def mute(make: Make) -> Path:
    return make("no_sound.mp4", *X264, "-an")


@pytest.fixture(scope="session")
def blind(make: Make) -> Path:
    return make("no_picture.m4a", "-c:a", "aac", inputs=("sine=f=440:d=40",))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_clip_without_sound_is_kept_as_that(decoder: str, mute: Path, tmp_path: Path) -> None:
    assert row_of(mute, tmp_path, decoder=decoder)["reason"] == "no_audio"
    assert row_of(mute, tmp_path, decoder=decoder, allow_missing="video")["reason"] == "no_audio"
    for allowed in ("audio", "both"):
        row = row_of(mute, tmp_path / allowed, decoder=decoder, allow_missing=allowed)
        assert (row["status"], row["modalities"], row["audio"], len(row["frames"])) == ("ok", ["video"], "", 10)
        folder = (tmp_path / allowed / row["frames"][0]).parent
        assert sorted(path.suffix for path in folder.iterdir()) == [".jpg"] * 10  # No file of zeros.


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_clip_without_picture_is_kept_as_that(decoder: str, blind: Path, tmp_path: Path) -> None:
    assert row_of(blind, tmp_path, decoder=decoder, allow_missing="audio")["reason"] == "no_video"
    rows = rows_of(
        blind, tmp_path, Segment(31_000, 8_000), stride_s=4.0, window_s=4.0, decoder=decoder, allow_missing="both"
    )
    assert [(row["start_s"], row["modalities"], row["frames"], row["crop"]) for row in rows] == [
        (31.0, ["audio"], [], []),
        (35.0, ["audio"], [], []),
    ]
    for row in rows:
        sound, rate = soundfile.read(tmp_path / row["audio"])
        assert len(sound) == 4 * rate
        assert np.abs(np.fft.rfft(sound)).argmax() / 4 == pytest.approx(440, abs=2)


def test_a_window_without_its_sound_is_never_filled_with_zeros(make: Make, tmp_path: Path) -> None:
    picture = "testsrc2=s=64x64:d=4"
    clip = make("short_sound.mkv", *X264, "-c:a", "flac", inputs=(picture, "sine=d=1.6"))
    options = {"window_s": 2.0, "stride_s": 2.0}
    assert [row["reason"] for row in rows_of(clip, tmp_path / "1", **options)] == ["short_audio", "too_short"]
    rows = rows_of(clip, tmp_path / "2", allow_missing="audio", **options)
    assert [(row["status"], row["modalities"]) for row in rows] == [
        ("flagged", ["audio", "video"]),
        ("ok", ["video"]),
    ]


def test_damage_is_not_taken_for_absence(mute: Path, plain: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert row_of(empty, tmp_path, allow_missing="both")["reason"] == "empty"
    text = tmp_path / "text.mp4"
    text.write_text("nothing")
    assert row_of(text, tmp_path, allow_missing="both")["reason"] == "unreadable"


def test_segments_of_one_video_are_read_once(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = make("minute_64.mp4", *X264, "-c:a", "aac", inputs=("testsrc2=s=64x36:r=10:d=60", "sine=f=300:d=60"))
    lines = [f"{long},{start},{start + 3}" for start in (40, 5, 20, 50)]
    (tmp_path / "a.csv").write_text("\n".join(["path,start,end", *lines, f"{tmp_path}/other.mp4,0,1"]))
    items = inputs.find(tmp_path / "a.csv").items
    assert [item.furthest_ms for item in items if item.path == str(long)] == [53_000] * 4
    settings, tools = Settings(size=64, frames=3), Tools(binary.find(), "test")
    opened: list[str] = []
    original = Source.__init__

    def count(self: Source, path: str, *rest: Any) -> None:
        opened.append(path)
        original(self, path, *rest)

    monkeypatch.setattr(Source, "__init__", count)

    def rows(out: Path, opener: Opener | None) -> list[dict[str, Any]]:
        return [row for item in items for row in extract(Task(item), out, settings, tools, opener=opener)]

    with Opener(settings) as opener:
        together = rows(tmp_path / "together", opener)
    assert opened.count(str(long)) == 1
    assert together == rows(tmp_path / "apart", None)
    assert opened.count(str(long)) == 5
