"""Files that were made to do harm, and names that were: no hang, no request, no file opened that was not named."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kdctool.media import binary, decode_pyav
from kdctool.media.clip import extract
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.settings import Item, Segment, Settings, Tools

Make = Callable[..., Path]
X264 = ("-c:v", "libx264", "-preset", "ultrafast")
QUIET = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def pooled(paths: list[Path], out: Path, tools: Tools | None = None, segment: Segment | None = None) -> dict[str, str]:
    """Reason (or status) of each file, made in worker processes with their limits, as the command does."""
    tools = tools or Tools(binary.find(), "test", clip_timeout_s=30)
    with Pool(1, out, Settings(size=64), tools) as pool:
        made = [(row["source"], row["reason"] or row["status"]) for _, row in pool.run(tasks(paths, segment)) if row]
    found = dict(made)
    assert len(found) == len(made) == len(paths)
    return found


def tasks(paths: list[Path], segment: Segment | None = None) -> list[Task]:
    return [Task(Item(str(path), path.name, segment)) for path in paths]


def test_headers_that_claim_the_absurd_are_refused_quickly(make: Make, tmp_path: Path) -> None:
    small = make("small.mkv", "-c:v", "ffv1", "-c:a", "flac", inputs=("testsrc2=s=320x300:r=5:d=1", "sine=d=1"))
    data = small.read_bytes()
    for element, value in ((b"\xb0", 320), (b"\xba", 300)):  # PixelWidth and PixelHeight of Matroska.
        assert data.count(element + b"\x82" + value.to_bytes(2, "big")) == 1
        data = data.replace(element + b"\x82" + value.to_bytes(2, "big"), element + b"\x82\x40\x00")
    (tmp_path / "huge.mkv").write_bytes(data)
    tone = make("one_tone.wav", inputs=("sine=d=0.05",))
    many = make("many_streams.mkv", *("-map", "0") * 100, "-c", "copy", inputs=(tone,))
    thousand = make("thousand.mkv", *("-map", "0") * 10, "-c", "copy", inputs=(many,))
    began = time.monotonic()
    found = pooled([tmp_path / "huge.mkv", many, thousand], tmp_path / "out")
    assert found.pop("huge.mkv") in ("too_large", "decode_error")  # libav may believe the codec's own header.
    assert set(found.values()) == {"too_large"}
    assert time.monotonic() - began < 15


def test_a_frame_rate_of_65535_is_read_as_it_is(make: Make, tmp_path: Path) -> None:
    fast = make("65535.mp4", *X264, "-c:a", "aac", inputs=("testsrc2=s=32x32:r=65535:d=0.2", "sine=d=0.2"))
    began = time.monotonic()
    assert pooled([fast], tmp_path / "out") == {"65535.mp4": "ok"}
    assert time.monotonic() - began < 20


def test_a_day_long_video_costs_its_window_only(make: Make, tmp_path: Path) -> None:
    hour = make(
        "part.mkv",
        "-c:v",
        "ffv1",
        "-c:a",
        "flac",
        "-frame_size",
        "16384",
        inputs=("testsrc=s=16x16:r=0.2:d=600", "anullsrc=r=8000:d=600"),
    )
    day = make("day.mkv", "-c", "copy", inputs=(hour,), before=("-stream_loop", "143"))
    began = time.monotonic()
    assert pooled([day], tmp_path / "start") == {"day.mkv": "silent"}
    assert pooled([day], tmp_path / "end", segment=Segment(86_000_000, 10_000)) == {"day.mkv": "silent"}
    assert time.monotonic() - began < 30


def test_very_short_clips_are_clips_or_too_short(make: Make, tmp_path: Path) -> None:
    source = ("testsrc2=s=64x64:r=25:d=2", "sine=d=2")
    tenth = make("tenth.mkv", "-t", "0.1", *X264, "-c:a", "flac", inputs=source)
    one = make("one.mkv", "-frames:v", "1", "-t", "0.04", *X264, "-c:a", "flac", inputs=source)
    found = pooled([tenth, one], tmp_path / "out")
    assert found["tenth.mkv"] in ("ok", "static", "short_audio")
    assert found["one.mkv"] == "static"  # One frame, ten times.


def test_times_before_zero_are_times(make: Make, plain: Path, tmp_path: Path) -> None:
    early = make(
        "negative.mov", "-c", "copy", "-avoid_negative_ts", "disabled", "-output_ts_offset", "-0.7", inputs=(plain,)
    )
    rows = list(extract(Task(Item(str(early), "x.mkv")), tmp_path, Settings(size=64), Tools()))
    assert [(row["status"], row["reason"], row["detail"]) for row in rows] == [("ok", "", "")]
    assert rows[0]["frame_times"][0] == 0
    sound, rate = soundfile.read(tmp_path / rows[0]["audio"])
    assert np.abs(sound[: rate // 5]).max() > 0.02  # The tone begins with the picture.


def test_memory_that_a_decoder_must_not_have_costs_one_clip(make: Make, plain: Path, tmp_path: Path) -> None:
    """A large picture is fine with the usual limit and refused with a small one; the next clip is made."""
    large = make("large.mp4", *X264, "-c:a", "aac", inputs=("testsrc2=s=5000x3000:r=2:d=1", "sine=d=1"))
    (tmp_path / "next.mp4").write_bytes(plain.read_bytes())
    assert pooled([large], tmp_path / "usual") == {"large.mp4": "ok"}
    code = "import kdctool.media.worker; print(next(l for l in open('/proc/self/status') if 'VmPeak' in l).split()[1])"
    idle = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=QUIET).stdout) << 10
    tight = Tools(binary.find(), "test", clip_timeout_s=30, memory_bytes=idle + (60 << 20))
    found = pooled([large, tmp_path / "next.mp4"], tmp_path / "tight", tight)
    assert found["large.mp4"] in ("too_large", "decode_error", "decoder_crash")
    assert found["next.mp4"] == "ok"


def test_a_file_that_vanishes_while_it_is_read_is_missing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "brief.mp4"
    path.write_bytes(plain.read_bytes())
    original = decode_pyav.decode

    def vanish(*given: Any) -> Any:
        path.unlink(missing_ok=True)
        return original(*given)

    monkeypatch.setattr(decode_pyav, "decode", vanish)
    (row,) = extract(Task(Item(str(path), path.name)), tmp_path / "out", Settings(size=64, decoder="pyav"), Tools())
    assert (row["status"], row["reason"]) == ("quarantined", "missing")
    assert not (tmp_path / "out").exists()


def test_a_file_that_only_seemed_to_change_is_read_again(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdctool.media import opener

    path = tmp_path / "copied.mp4"
    original, calls = opener.unchanged, []

    def once(source: Any) -> None:
        calls.append(source)
        if len(calls) == 1:
            os.utime(path, (1, 1))
        original(source)

    path.write_bytes(plain.read_bytes())
    monkeypatch.setattr(opener, "unchanged", once)
    (row,) = extract(Task(Item(str(path), path.name)), tmp_path / "out", Settings(size=64, decoder="pyav"), Tools())
    assert (row["status"], len(calls)) == ("ok", 2)


def test_a_worker_uses_little_memory(make: Make, tmp_path: Path) -> None:
    clip = make("full_hd.mp4", *X264, "-c:a", "aac", inputs=("testsrc2=s=1920x1080:r=25:d=2", "sine=d=2"))
    code = (
        "import sys; from pathlib import Path; from kdctool.media.clip import extract\n"
        "from kdctool.media.messages import Task\n"
        "from kdctool.media.settings import Item, Settings, Tools\n"
        "given = Task(Item(sys.argv[1], 'x')), Path(sys.argv[2]), Settings(decoder='pyav'), Tools()\n"
        "for n in range(3): rows = list(extract(*given))\n"
        "assert rows[0]['status'] == 'ok', rows\n"
        # Not ru_maxrss: that begins with what the process that started this one had.
        "peak = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "sys.exit(f'{peak >> 10} MB' if peak > 300 << 10 else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(clip), str(tmp_path)], check=False).returncode == 0
