"""Everything that is not data gets its own reason, quickly, and is never opened further than it takes to know."""

import http.server
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdctool.media
from kdctool.media import binary, inputs
from kdctool.media.clip import extract
from kdctool.media.messages import Task
from kdctool.media.quarantine import FLAGS, REASONS, Rejected
from kdctool.media.settings import Item, Segment, Settings, Tools

Make = Callable[..., Path]
X264 = ("-c:v", "libx264", "-preset", "ultrafast")


def row_of(path: Path, out: Path, decoder: Any = "pyav", segment: Segment | None = None) -> dict[str, Any]:
    settings = Settings(size=64, decoder=decoder)
    tools = Tools(binary.find(), "test", clip_timeout_s=30)
    item = Item(str(path), path.name, segment)
    rows = list(extract(Task(item), out, settings, tools))
    assert len(rows) == 1
    if rows[0]["status"] == "quarantined":
        assert not any(out.glob("clips/*/*"))  # Nothing of it is published.
        assert rows[0]["frames"] == []
        assert rows[0]["audio"] == ""
    return rows[0]


def reason_of(path: Path, out: Path, decoder: Any = "pyav") -> str:
    row = row_of(path, out, decoder)
    assert row["status"] == "quarantined", row
    return str(row["reason"])


def test_what_is_no_file_is_told_apart_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    began = time.monotonic()
    reasons = {
        name: reason_of(tmp_path / f"{name}.mp4", tmp_path)
        for name in ("empty", "folder", "fifo", "dangling", "loop", "gone")
    }
    assert time.monotonic() - began < 5
    assert reasons == {
        "empty": "empty",
        "folder": "is_folder",
        "fifo": "is_fifo",
        "dangling": "dangling_link",
        "loop": "symlink_loop",
        "gone": "missing",
    }
    assert reason_of(Path("/dev/zero"), tmp_path) == "is_special"


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the requests that it saw."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
def test_playlists_and_scripts_are_refused(
    suffix: str, decoder: str, plain: Path, tmp_path: Path, canary: tuple[str, list[str]]
) -> None:
    url, seen = canary
    (tmp_path / "neighbour.mp4").write_bytes(plain.read_bytes())
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?>'
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    texts = {
        "hls_file": hls.format(f"file://{plain}"),
        "hls_http": hls.format(f"{url}/x.ts"),
        "dash": dash.format(plain),
        "dash_http": dash.format(f"{url}/x.mp4"),
        "concat": "ffconcat version 1.0\nfile neighbour.mp4\n",
        "concat_absolute": f"ffconcat version 1.0\nfile 'file:{plain}'\n",
        "sdp": sdp,
        "hls_subfile": hls.format(f"subfile,,start,0,end,0,,:{plain}"),
        "hls_crypto": hls.format(f"crypto+file://{plain}"),
        "concat_http": f"ffconcat version 1.0\nfile '{url}/x.mp4'\n",
        "hls_after_spaces": "\n  " + hls.format(f"{url}/y.ts"),
        "asx": f'<ASX version="3.0"><Entry><Ref href="{url}/x.mp4"/></Entry></ASX>',
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_text(text)
        allowed = {"container_not_allowed"} | ({"unreadable"} if name == "asx" else set())
        assert reason_of(path, tmp_path / "out", decoder) in allowed, name
    assert seen == []


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
def test_a_list_that_names_addresses_opens_none(decoder: str, tmp_path: Path, canary: tuple[str, list[str]]) -> None:
    url, seen = canary
    (tmp_path / "list.txt").write_text(
        f"{url}/x.mp4\nhttp:x.mp4\nconcat:a.mp4|b.mp4\nfile://{tmp_path}/y.mp4\n-i.mp4\n"
    )
    items = inputs.find(tmp_path / "list.txt").items
    assert len(items) == 5
    assert {reason_of(Path(item.path), tmp_path / "out", decoder) for item in items} == {"missing"}
    assert seen == []


def test_damaged_headers_are_told_from_cut_files(make: Make, plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    fast_start = make("fast_start.mp4", "-c", "copy", "-movflags", "+faststart", inputs=(plain,)).read_bytes()
    mkv = make("whole.mkv", "-c", "copy", inputs=(plain,)).read_bytes()
    cases = {
        "noise.mp4": (random.Random(0).randbytes(40_000), "unreadable"),
        "text.mp4": (b"hello, this is no video\n" * 100, "unreadable"),
        "no_moov.mp4": (data[: len(data) // 2], "truncated"),
        "cut.mp4": (fast_start[: len(fast_start) * 6 // 10], "truncated"),
        "cut.mkv": (mkv[: len(mkv) // 2], "truncated"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert reason_of(tmp_path / name, tmp_path / "out") == reason, name


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
def test_noise_inside_a_file_is_a_decode_error(decoder: str, make: Make, tmp_path: Path) -> None:
    clip = make("to_damage.mp4", "-c:v", "libx264", "-crf", "18", "-g", "25", "-c:a", "aac")
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = random.Random(1).randbytes(20_000)
    (tmp_path / "noise.mp4").write_bytes(data)
    assert reason_of(tmp_path / "noise.mp4", tmp_path / "out", decoder) == "decode_error"
    again = [row_of(tmp_path / "noise.mp4", tmp_path / "out", decoder) for _ in range(2)]
    assert again[0] == again[1]  # No address, no pipe number: a rerun gives the same bytes.
    assert again[0]["detail"]


def test_missing_streams_are_named(make: Make, plain: Path, tmp_path: Path) -> None:
    cover = make("cover.png", "-frames:v", "1", inputs=("testsrc=s=64x64:d=1",))
    song = make(
        "song.m4a",
        *("-map", "0:a", "-map", "1:v", "-c:a", "aac", "-c:v", "copy", "-disposition:v:0", "attached_pic"),
        inputs=("sine=d=2", cover),
    )
    assert reason_of(song, tmp_path) == "no_video"
    assert reason_of(make("tone.wav", inputs=("sine=d=1",)), tmp_path) == "no_video"
    assert reason_of(make("mute.mp4", *X264, "-an"), tmp_path) == "no_audio"


def test_a_cover_picture_beside_a_video_is_not_taken_for_it(make: Make, plain: Path, tmp_path: Path) -> None:
    cover = make("large_cover.png", "-frames:v", "1", inputs=("testsrc=s=640x640:d=1",))
    both = make(
        "with_cover.mp4",
        *("-map", "1", "-map", "0", "-c", "copy", "-c:v:0", "png", "-disposition:v:0", "attached_pic"),
        inputs=(plain, cover),
    )
    row = row_of(both, tmp_path)
    assert (row["status"], row["width"], row["height"]) == ("ok", 320, 180)


def test_the_best_of_several_streams_is_taken(make: Make, tmp_path: Path) -> None:
    clip = make(
        "two_of_each.mkv",
        *("-map", "0", "-map", "1", "-map", "2", "-map", "3", *X264, "-c:a", "flac", "-disposition", "default"),
        inputs=("testsrc=s=64x64:d=1", "testsrc2=s=128x72:d=1", "anullsrc=r=8000:d=1", "sine=r=16000:d=1"),
    )
    row = row_of(clip, tmp_path)
    assert (row["width"], row["height"], row["status"]) == (128, 72, "ok")


def test_too_little_sound_is_too_short(make: Make, tmp_path: Path) -> None:
    picture = "testsrc2=s=64x64:d=4"
    short = make("short_sound.mkv", *X264, "-c:a", "flac", inputs=(picture, "sine=d=1.6"))
    assert reason_of(short, tmp_path / "1") == "too_short"
    enough = row_of(make("enough_sound.mkv", *X264, "-c:a", "flac", inputs=(picture, "sine=d=2.4")), tmp_path / "2")
    assert (enough["status"], enough["reason"]) == ("flagged", "short_audio")


def test_a_segment_outside_the_video_is_named(plain: Path, tmp_path: Path) -> None:
    assert row_of(plain, tmp_path, segment=Segment(60_000, 5_000))["reason"] == "outside"
    assert row_of(plain, tmp_path, segment=Segment(2_500, 5_000))["reason"] == "too_short"


def test_silent_and_frozen_clips_are_kept_and_flagged(make: Make, tmp_path: Path) -> None:
    silent = make("silent.mp4", *X264, "-c:a", "aac", inputs=("testsrc2=s=64x64:d=1", "anullsrc=d=1"))
    frozen = make("frozen.mp4", *X264, "-c:a", "aac", inputs=("color=gray:s=64x64:d=1", "sine=d=1"))
    both = make("black.mp4", *X264, "-c:a", "aac", inputs=("color=black:s=64x64:d=1", "anullsrc=d=1"))
    found = {path.stem: row_of(path, tmp_path / path.stem) for path in (silent, frozen, both)}
    assert {row["status"] for row in found.values()} == {"flagged"}
    assert {name: row["reason"] for name, row in found.items()} == {
        "silent": "silent",
        "frozen": "static",
        "black": "silent+static",
    }
    assert all(len(row["frames"]) == 10 for row in found.values())


def test_a_picture_bomb_is_refused_by_its_header(make: Make, tmp_path: Path) -> None:
    bomb = make("bomb.mp4", *X264, "-c:a", "aac", inputs=("color=black:s=9000x5000:r=1:d=1", "sine=d=1"))
    assert reason_of(bomb, tmp_path) == "too_large"


def test_a_picture_like_a_ribbon_is_refused(make: Make, tmp_path: Path) -> None:
    ribbon = make("ribbon.mkv", "-c:v", "ffv1", "-c:a", "flac", inputs=("testsrc2=s=8000x2:r=2:d=1", "sine=d=1"))
    assert reason_of(ribbon, tmp_path) == "too_large"


def test_a_thousand_frames_a_second_cost_no_more_than_their_window(make: Make, tmp_path: Path) -> None:
    fast = make("fast.mp4", *X264, "-c:a", "aac", inputs=("testsrc=s=32x32:r=1000:d=20", "sine=d=20"))
    assert row_of(fast, tmp_path)["status"] == "ok"


def test_a_file_that_changes_under_the_reader_is_not_data(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing.mp4"
    path.write_bytes(plain.read_bytes())
    from kdctool.media import decode_pyav

    original = decode_pyav.decode

    def touch_then_decode(*given: Any) -> Any:
        os.utime(path, (1, 1))
        return original(*given)

    monkeypatch.setattr(decode_pyav, "decode", touch_then_decode)
    assert reason_of(path, tmp_path / "out") == "changed"


def test_every_reason_that_the_code_gives_is_in_the_table() -> None:
    folder = Path(kdctool.media.__file__).parent
    used = {reason for file in folder.glob("*.py") for reason in re.findall(r'Rejected\(\s*"(\w+)"', file.read_text())}
    assert used <= REASONS.keys()
    assert not REASONS.keys() & FLAGS.keys()
    with pytest.raises(ValueError, match="not in the table"):
        Rejected("because")


def test_the_row_tells_where_the_crop_lies(make: Make, tmp_path: Path) -> None:
    wide = row_of(
        make(
            "wide_pixels_row.mp4",
            *X264,
            "-vf",
            "setsar=2/1",
            "-c:a",
            "aac",
            inputs=("testsrc2=s=100x100:d=1", "sine=d=1"),
        ),
        tmp_path,
    )
    assert (wide["width"], wide["height"], wide["crop"]) == (200, 100, [50, 0, 100, 100])


def test_the_files_are_what_the_row_says(plain: Path, tmp_path: Path) -> None:
    import soundfile
    from PIL import Image

    row = row_of(plain, tmp_path)
    frames = [np.asarray(Image.open(tmp_path / name)) for name in row["frames"]]
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 10
    sound, rate = soundfile.read(tmp_path / row["audio"], dtype="int16")
    assert (sound.shape, rate) == ((round(row["duration_s"] * 16000),), 16000)
    assert row["frame_times"][0] == 0
    assert np.diff(row["frame_times"]) == pytest.approx(row["duration_s"] / 10, abs=0.045)
