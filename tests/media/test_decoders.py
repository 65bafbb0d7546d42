"""Both decoders give what a full sequential decoding gives, on the clips that break other tools."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kdctool.media import binary, decode_ffmpeg, decode_pyav
from kdctool.media.clip import choose
from kdctool.media.geometry import geometry
from kdctool.media.plan import Plan, plan, windows
from kdctool.media.settings import Segment, Settings, Tools
from kdctool.media.source import Source

SETTINGS = Settings(size=96)
X264 = ("-c:v", "libx264", "-preset", "fast")
AAC = ("-c:a", "aac", "-ac", "2")

CASES: dict[str, tuple[str, ...]] = {
    "b_frames.mp4": (*X264, "-g", "25", *AAC),
    "no_b_frames.mov": (*X264, "-bf", "0", *AAC),
    "open_gop.mkv": (*X264, "-g", "20", "-x264-params", "open-gop=1:scenecut=0", *AAC),
    "two_b_levels.mp4": (*X264, "-bf", "6", "-b_strategy", "2", *AAC),
    "variable_rate.mkv": ("-vf", "select='gt(random(3),0.4)'", "-fps_mode", "vfr", *X264, *AAC),
    "variable_rate.mp4": ("-vf", "select='gt(random(5),0.6)'", "-fps_mode", "vfr", *X264, *AAC),
    "ten_bit.mkv": (
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-x265-params",
        "log-level=none",
        "-pix_fmt",
        "yuv420p10le",
        *AAC,
    ),
    "hevc_open_gop.mp4": (
        *("-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=none:keyint=20:open-gop=1:scenecut=0"),
        *("-tag:v", "hvc1", *AAC),
    ),
    "ten_bit_h264.mp4": (*X264, "-pix_fmt", "yuv420p10le", *AAC),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"),
    "av1.mkv": ("-t", "1", "-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1", *AAC),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "4", "-c:a", "mp3"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-q:v", "4", "-c:a", "mp2"),
    "flv1.flv": ("-c:v", "flv", "-q:v", "4", "-c:a", "mp3"),
    "late_start.ts": (*X264, *AAC, "-output_ts_offset", "100"),
    "interlaced.mp4": (*X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1", *AAC),
    "odd_size.mkv": ("-vf", "scale=321:179", "-pix_fmt", "yuv444p", *X264, *AAC),
    "wide_pixels.mp4": ("-vf", "setsar=4/3", *X264, *AAC),
    "full_range.mp4": (
        "-vf",
        "scale=out_range=pc:out_color_matrix=bt709",
        "-color_range",
        "pc",
        "-colorspace",
        "bt709",
        *X264,
        *AAC,
    ),
    "mono_8k.mkv": (*X264, "-ar", "8000", "-ac", "1", "-c:a", "pcm_s16le"),
    "surround_48k.mp4": (*X264, "-ar", "48000", "-af", "pan=5.1|c0=c0|c2=0.5*c0|c3=c0", "-c:a", "aac"),
    "one_frame.mkv": ("-frames:v", "1", "-t", "0.2", *X264, "-c:a", "flac"),
}


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools(binary.find(), "test")


def planned(path: Path, segment: Segment | None = None) -> tuple[Source, Plan]:
    source = Source(str(path))
    source.read_packets(None)
    shape = geometry(decode_pyav.first_frame(source), source.video_stream.sample_aspect_ratio, SETTINGS.size)
    return source, plan(source, SETTINGS, windows(source, SETTINGS, segment)[0], shape)


def sequential(path: Path, source: Source, wanted: Plan) -> list[np.ndarray]:
    """The rule, spelled out: decode every frame, take the last whose time is not after start + i * window / N."""
    with av.open(str(path)) as container:
        stream = container.streams[source.video.index]
        stream.codec_context.thread_count = 1
        frames = list(container.decode(stream))
    times = [frame.pts * frame.time_base for frame in frames]
    scaler = decode_pyav._Scaler(wanted.geometry.scaled, source.video.time_base)
    begin = times[0] + wanted.window.start
    moments = [begin + i * wanted.window.length / SETTINGS.frames for i in range(SETTINGS.frames)]
    return [scaler(frames[max(k for k, time in enumerate(times) if time <= moment)]) for moment in moments]


def assert_alike(path: Path, tools: Tools, segment: Segment | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    source, wanted = planned(path, segment)
    truth = sequential(path, source, wanted)
    fast, fast_sound = decode_pyav.decode(source, wanted)
    isolated, isolated_sound = decode_ffmpeg.decode(source, wanted, tools)
    source.close()
    for one, other in zip(fast, truth, strict=True):
        np.testing.assert_array_equal(one, other)  # Skipping changes nothing, not one bit.
    apart = np.abs(np.stack(isolated).astype(int) - np.stack(truth))
    # The two may be built on different versions of libswscale: half a level on average, four at the worst pixels.
    assert apart.mean() <= 0.5
    assert np.percentile(apart, 99.9) <= 4
    # Versions differ in how many samples a codec leaves after the end; the resampler spreads that over its length.
    length = min(len(fast_sound), len(isolated_sound))
    assert abs(len(fast_sound) - len(isolated_sound)) <= 160
    assert np.sqrt(np.mean((fast_sound[:length] - isolated_sound[:length]) ** 2)) <= 1e-3
    return fast, fast_sound


@pytest.mark.parametrize("name", CASES)
def test_both_decoders_give_the_frames_and_sound_of_a_full_decoding(
    name: str, make: Callable[..., Path], tools: Tools
) -> None:
    frames, sound = assert_alike(make(name, *CASES[name]), tools)
    assert len(frames) == SETTINGS.frames
    assert np.abs(sound).max() > 0.02


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_clip_is_the_turned_picture(
    degrees: int, make: Callable[..., Path], plain: Path, tools: Tools
) -> None:
    turned = make(f"rot{degrees}.mp4", "-c", "copy", inputs=(plain,), before=("-display_rotation", str(degrees)))
    assert_alike(turned, tools)
    source, wanted = planned(turned)
    upright, straight = planned(plain)
    assert wanted.geometry.turn.degrees == degrees
    ours = wanted.geometry.finish(decode_pyav.decode(source, wanted)[0][3])
    reference = np.rot90(straight.geometry.finish(decode_pyav.decode(upright, straight)[0][3]), degrees // 90)
    np.testing.assert_array_equal(ours, reference)


def test_a_mirrored_clip_is_mirrored(make: Callable[..., Path], plain: Path, tools: Tools) -> None:
    source, wanted = planned(make("mirror.mp4", "-c", "copy", inputs=(plain,), before=("-display_hflip",)))
    upright, straight = planned(plain)
    ours = wanted.geometry.finish(decode_pyav.decode(source, wanted)[0][3])
    np.testing.assert_array_equal(ours, straight.geometry.finish(decode_pyav.decode(upright, straight)[0][3])[:, ::-1])


def test_an_edit_list_hides_what_a_player_hides(make: Callable[..., Path], tools: Tools) -> None:
    long = make("long_gop.mp4", "-c:v", "libx264", "-preset", "fast", "-g", "250", *AAC)
    cut = make("edit_list.mp4", "-c", "copy", inputs=(long,), before=("-ss", "1.3"))
    assert_alike(cut, tools)
    source, wanted = planned(cut)
    assert sum(entry.shown for entry in source.video.entries) < len(source.video.entries)
    assert float(wanted.window.length) == pytest.approx(1.7, abs=0.05)


def test_a_window_inside_a_long_video_is_exact_for_both(make: Callable[..., Path], tools: Tools) -> None:
    long = make("minute.mp4", *X264, *AAC, inputs=("testsrc2=s=64x36:r=10:d=60", "sine=f=300:d=60"))
    frames, sound = assert_alike(long, tools, Segment(42_340, 7_000))
    assert len(sound) == 7 * 16000
    assert len({frame.tobytes() for frame in frames}) == 10


def test_a_file_too_large_to_keep_is_read_again(
    make: Callable[..., Path], tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = make("minute.mp4", *X264, *AAC, inputs=("testsrc2=s=64x36:r=10:d=60", "sine=f=300:d=60"))
    monkeypatch.setattr("kdctool.media.source.KEPT_BYTES", 1000)
    source, _ = planned(long, Segment(20_000, 5_000))
    assert not source.is_kept
    assert_alike(long, tools, Segment(20_000, 5_000))


def test_late_sound_keeps_its_place(make: Callable[..., Path], plain: Path, tools: Tools) -> None:
    late = make(
        "late_sound.mkv",
        *("-map", "1:v", "-map", "0:a", "-c", "copy"),
        inputs=(plain, plain),
        before=("-itsoffset", "0.8"),
    )
    _, sound = assert_alike(late, tools)
    _, wanted = planned(late)
    onset = np.flatnonzero(np.abs(sound) > 0.02)[0] / 16000
    assert onset == pytest.approx(0.8, abs=0.04)
    assert float(wanted.audio_pad) == pytest.approx(0.8, abs=0.04)
    assert not sound[: int(0.7 * 16000)].any()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_flash_and_its_beep_stay_together(suffix: str, make: Callable[..., Path], tools: Tools) -> None:
    clip = make(
        f"flash.{suffix}",
        *(
            "-vf",
            "drawbox=color=white:t=fill:enable='gte(t,1.2)'",
            "-af",
            "volume='gte(t,1.2)':eval=frame",
            *X264,
            *AAC,
        ),
        inputs=("color=black:s=64x64:r=50:d=2", "sine=f=900:r=48000:d=2"),
    )
    frames, sound = assert_alike(clip, tools)
    beep = np.flatnonzero(np.abs(sound) > 0.03)[0] / 16000
    assert beep == pytest.approx(1.2, abs=0.04)
    assert [int(frame.mean() > 128) for frame in frames] == [0] * 6 + [1] * 4  # Frame 6 is the one at 1.2 s.


@pytest.mark.parametrize(("matrix", "size"), [("bt709", "128x72"), ("bt601", "128x72")])
@pytest.mark.parametrize("full", ["tv", "pc"])
def test_colours_survive_the_way_to_rgb(matrix: str, size: str, full: str, make: Callable[..., Path]) -> None:
    tag = {"bt709": "bt709", "bt601": "smpte170m"}[matrix]
    clip = make(
        f"colour_{matrix}_{full}.mp4",
        *(
            "-vf",
            f"scale=out_color_matrix={matrix}:out_range={full},format=yuv420p",
            "-colorspace",
            tag,
            "-color_range",
            full,
        ),
        *("-c:v", "libx264", "-crf", "1", *AAC),
        inputs=(f"color=c=0xC83214:s={size}:r=10:d=1,format=rgb24", "sine=d=1"),
    )
    source, wanted = planned(clip)
    frame = decode_pyav.decode(source, wanted)[0][0]
    np.testing.assert_allclose(frame.reshape(-1, 3).mean(axis=0), (0xC8, 0x32, 0x14), atol=2.5)


def test_sound_is_the_mean_of_the_channels(make: Callable[..., Path], tools: Tools) -> None:
    left_only = make(
        "left.mkv",
        *("-af", "pan=stereo|c0=c0|c1=0*c0", "-c:v", "libx264", "-c:a", "pcm_s16le"),
        inputs=("testsrc2=s=64x64:d=1", "sine=d=1"),
    )
    both = make(
        "both.mkv",
        *("-af", "pan=stereo|c0=c0|c1=c0", "-c:v", "libx264", "-c:a", "pcm_s16le"),
        inputs=("testsrc2=s=64x64:d=1", "sine=d=1"),
    )
    half, whole = assert_alike(left_only, tools)[1], assert_alike(both, tools)[1]
    assert np.abs(half).max() == pytest.approx(np.abs(whole).max() / 2, rel=0.01)


def test_auto_depends_on_the_codec_alone() -> None:
    assert [choose("auto", codec) for codec in ("h264", "vp9", "flv1")] == ["pyav", "pyav", "ffmpeg"]
    assert choose("ffmpeg", "h264") == "ffmpeg"


def test_frames_that_nobody_asked_for_are_skipped(make: Callable[..., Path]) -> None:
    source, wanted = planned(make("b_frames.mp4", *CASES["b_frames.mp4"]))
    needed = decode_pyav._needed(source, {wanted.pts[0], wanted.pts[-1]}, skip_groups=True)
    assert len(needed) == 2
    assert sum(last - first + 1 for first, last in needed) < len(source.video.entries) / 2


def test_the_frame_rule_is_exact_at_its_border(plain: Path) -> None:
    source, _ = planned(plain)
    pts = source.shown_pts()
    at = Fraction(pts[7]) * source.video.time_base
    assert source.last_before(pts, at) == pts[7]
    assert source.last_before(pts, at - Fraction(1, 10**9)) == pts[6]


def test_what_the_first_frame_decoded_is_used_and_changes_nothing(make: Callable[..., Path]) -> None:
    source, wanted = planned(make("b_frames.mp4", *CASES["b_frames.mp4"]))
    assert source.head is not None
    going_on = decode_pyav.decode(source, wanted)[0]
    assert source.head is None
    anew = decode_pyav.decode(source, wanted)[0]
    np.testing.assert_array_equal(np.stack(going_on), np.stack(anew))
    alone = decode_pyav.first_frame(source, goes_on=False)
    assert source.head is None
    assert alone.pts == decode_pyav.first_frame(source).pts == source.video.entries[0].pts


def test_an_mp4_is_opened_without_decoding_and_tells_the_same(make: Callable[..., Path]) -> None:
    for name in ("b_frames.mp4", "no_b_frames.mov", "ten_bit_h264.mp4", "surround_48k.mp4", "wide_pixels.mp4"):
        path = make(name, *CASES[name])
        with Source(str(path)).container as ours, av.open(str(path)) as plain:
            for one, other in zip(ours.streams, plain.streams, strict=True):
                assert (one.type, one.time_base, one.duration, one.start_time) == (
                    *(other.type, other.time_base),
                    *(other.duration, other.start_time),
                )
            for one, other in zip(ours.streams.video, plain.streams.video, strict=True):
                assert (one.width, one.height, one.sample_aspect_ratio) == (
                    *(other.width, other.height),
                    other.sample_aspect_ratio,
                )
            for one, other in zip(ours.streams.audio, plain.streams.audio, strict=True):
                assert (one.codec_context.sample_rate, one.channels) == (
                    other.codec_context.sample_rate,
                    other.channels,
                )
