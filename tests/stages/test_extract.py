"""kdctool extract as a whole: what it writes, what a rerun does, what it refuses."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from extractions import make_video, tree

from kdctool.errors import DataFault, EnvironmentFault, Interrupted, UsageFault
from kdctool.files import locked
from kdctool.media import binary
from kdctool.media.rows import content_digest, members
from kdctool.media.settings import Settings
from kdctool.stages import extract

SETTINGS = Settings(frames=3, size=32)
REPO = Path(__file__).parents[2]
CLIPS = REPO.parent / "shared" / "data" / "clips"
NAMES = [
    "with space.mp4",
    "quote'\"`.mp4",
    "$(touch x);.mp4",
    "-dash.mp4",
    "%03d.mp4",
    "a:b.mp4",
    "new\nline.mp4",
    "日本 é.mp4",
    "a.b.c.mp4",
    "--.mp4",
    "--help.mp4",
    "-i.mp4",
    "tab\there.mp4",
    "back\\slash.mp4",
    "*?[x].mp4",
    "a;b&c|d.mp4",
    "🎺.mp4",
    "\u202eright-to-left\u202c עברית.mp4",
    "e\u0301.mp4",
    "\u00e9.mp4",
    "UPPER.MP4",
    "upper.mp4",
    "concat:x.mp4",
    "http:x.mp4",
    "two..dots.mp4",
]


@pytest.fixture
def videos(video: bytes, tmp_path: Path) -> Path:
    """Six good clips in two folders, with equal stems, and three bad ones."""
    folder = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4", "sub/a.mp4", "sub/b.mp4", "sub/c.mp4", "sub/.hidden/x.mp4", "d.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(video)
    (folder / "empty.mp4").touch()
    (folder / "noise.mkv").write_bytes(random.Random(0).randbytes(5000))
    (folder / "cut.mp4").write_bytes(video[: len(video) // 2])
    (folder / "notes.txt").write_text("not a video")
    return folder


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_bytes().splitlines()]


def inodes(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_ino for path in (out / "clips").rglob("*")}


def test_every_input_is_in_the_manifest_once(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = extract.run(videos, out, SETTINGS, workers=2)
    rows = manifest(out)
    assert [row["uid"] for row in rows] == sorted({row["uid"] for row in rows})
    assert {row["source"]: row["reason"] for row in rows} == {
        **dict.fromkeys(("a.mp4", "b.mp4", "d.mp4", "sub/a.mp4", "sub/b.mp4", "sub/c.mp4"), ""),
        "empty.mp4": "empty",
        "noise.mkv": "unreadable",
        "cut.mp4": "truncated",
    }
    assert (done.counts, done.num_ignored, done.num_made) == ({"ok": 6, "quarantined": 3}, 1, 9)
    quarantined = [json.loads(line) for line in (out / "quarantine.jsonl").read_bytes().splitlines()]
    assert quarantined == [row for row in rows if row["status"] == "quarantined"]
    for row in rows:
        if row["status"] == "ok":
            assert (len(row["frames"]), len(row["frame_times"]), row["modalities"]) == (3, 3, ["audio", "video"])
            assert content_digest([(out / name).read_bytes() for name in members(row)]) == row["sha256"]
    record = json.loads((out / "done.json").read_text())
    assert record["settings"] == SETTINGS.record()
    assert record["digests"]["manifest.jsonl"] == sha256((out / "manifest.jsonl").read_bytes()).hexdigest()
    assert not list(out.rglob("*.partial"))


def test_both_decoders_write_the_same_files(videos: Path, tmp_path: Path) -> None:
    for decoder in ("pyav", "ffmpeg"):
        extract.run(videos, tmp_path / decoder, Settings(frames=3, size=32, decoder=decoder))  # type: ignore[arg-type]
    one, other = (
        {name: digest for name, digest in tree(tmp_path / d).items() if name.endswith("jpg")}
        for d in ("pyav", "ffmpeg")
    )
    assert one.keys() == other.keys()
    times = [[row["frame_times"] for row in manifest(tmp_path / d)] for d in ("pyav", "ffmpeg")]
    assert times[0] == times[1]


def test_a_rerun_makes_only_what_is_missing(videos: Path, video: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.run(videos, out, SETTINGS)
    before, places = tree(out), inodes(out)
    again = extract.run(videos, out, SETTINGS)
    assert (again.num_todo, again.num_made) == (0, 0)
    assert tree(out) == before
    (videos / "new.mp4").write_bytes(video)
    lost = next(path for path in (out / "clips").glob("*/b-*"))
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    assert extract.run(videos, out, SETTINGS).num_made == 2
    assert before.items() <= {name: digest for name, digest in tree(out).items()}.items() | {
        (name, before[name]) for name in ("manifest.jsonl", "done.json", ".ledger.jsonl", "duplicates.json")
    }
    kept = {path: inode for path, inode in inodes(out).items() if path in places and str(lost) not in path}
    assert all(places[path] == inode for path, inode in kept.items())


def test_a_changed_input_is_made_again_and_its_old_clips_go(videos: Path, video: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.run(videos, out, SETTINGS)
    (videos / "noise.mkv").write_bytes(video)
    (videos / "a.mp4").write_bytes(b"")
    assert extract.run(videos, out, SETTINGS).num_made == 2
    rows = {row["source"]: row for row in manifest(out)}
    assert (rows["noise.mkv"]["status"], rows["a.mp4"]["reason"]) == ("ok", "empty")
    assert len(list((out / "clips").glob("*/*"))) == 6


def command(videos: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path;"
        "from kdctool.stages import extract; from kdctool.media.settings import Settings;"
        "extract.run(Path(sys.argv[1]), Path(sys.argv[2]), Settings(frames=3, size=32), workers=2)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(videos), str(out)],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_killed_run_goes_on_to_the_same_bytes(videos: Path, video: bytes, tmp_path: Path) -> None:
    for number in range(20):
        (videos / f"more{number}.mp4").write_bytes(video)
    calm, out = tmp_path / "calm", tmp_path / "out"
    extract.run(videos, calm, SETTINGS, workers=2)
    for rows_before_kill in (2, 9):
        process = command(videos, out)
        ledger = out / ".ledger.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if ledger.exists() and ledger.read_bytes().count(b'"row"') >= rows_before_kill:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "done.json").exists()
    with open(ledger, "ab") as file:
        file.write(b'{"input":"torn')  # What a kill inside an append leaves.
    (out / "clips" / "00").mkdir(parents=True, exist_ok=True)
    (out / "clips" / "00" / "x-0000000000.partial").mkdir()
    done = extract.run(videos, out, SETTINGS, workers=2)
    assert 0 < done.num_made <= 29 - 9 + 2  # Two were under work.
    assert tree(out) == tree(calm)


def test_a_clip_that_a_power_cut_emptied_is_made_again(videos: Path, tmp_path: Path) -> None:
    calm, out = tmp_path / "calm", tmp_path / "out"
    extract.run(videos, calm, SETTINGS)
    process = command(videos, out)
    ledger = out / ".ledger.jsonl"
    while process.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b'"row"') >= 4):
        time.sleep(0.005)
    process.kill()
    process.wait()
    for path in (out / "clips").rglob("*.jpg"):
        path.write_bytes(b"")
    extract.run(videos, out, SETTINGS)
    assert tree(out) == tree(calm)


def test_sigterm_ends_a_run_that_can_go_on(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = extract.Ledger.note

    def note(self: Any, *given: Any) -> None:
        original(self, *given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(extract.Ledger, "note", note)
    with pytest.raises(Interrupted) as caught:
        extract.run(videos, tmp_path / "out", SETTINGS)
    assert caught.value.exit_code == 75
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert extract.run(videos, tmp_path / "out", SETTINGS).counts["ok"] == 6


def test_hostile_names_pass_through(video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    names = [os.fsencode(name) for name in [*NAMES, "x" * 251 + ".mp4"]] + [b"\xff\xfe.mp4"]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(video)
    for decoder in ("pyav", "ffmpeg"):
        out = tmp_path / decoder
        done = extract.run(folder, out, Settings(frames=2, size=32, decoder=decoder))  # type: ignore[arg-type]
        assert done.counts == {"ok": len(names)}
        assert {os.fsencode(row["source"]) for row in manifest(out)} == set(names)
        (out / "manifest.jsonl").read_bytes().decode("ascii")
    assert not (tmp_path / "x").exists()


def test_other_settings_are_refused_by_name(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.run(videos, out, SETTINGS)
    before = tree(out)
    with pytest.raises(UsageFault, match=re.escape("--frames (3 there, 4 now), --size (32 there, 64 now)")):
        extract.run(videos, out, Settings(frames=4, size=64))
    assert tree(out) == before
    assert extract.run(videos, out, Settings(frames=4, size=64), overwrite=True).num_made == 9
    assert all(len(row["frames"]) == 4 for row in manifest(out) if row["status"] == "ok")


def test_output_and_input_are_kept_apart(videos: Path, tmp_path: Path) -> None:
    before = tree(videos)
    (tmp_path / "link").symlink_to(videos)
    for out in (videos, videos / "out", videos / "sub" / ".." / "out", tmp_path / "link" / "out", tmp_path):
        with pytest.raises(UsageFault):
            extract.run(videos, out, SETTINGS)
    assert tree(videos) == before


def test_a_folder_with_other_things_is_not_written_to(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageFault, match="thesis"):
        extract.run(videos, out, SETTINGS, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageFault, match="is a file"):
        extract.run(videos, out / "thesis.tex", SETTINGS)


def test_clips_of_other_videos_are_not_mixed_in_by_mistake(videos: Path, video: bytes, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    extract.run(videos, out, SETTINGS)
    other.mkdir()
    (other / "z.mp4").write_bytes(video)
    with pytest.raises(UsageFault, match="other videos"):
        extract.run(other, out, SETTINGS)


def test_clips_whose_video_is_gone_are_kept_and_counted(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.run(videos, out, SETTINGS)
    (videos / "a.mp4").unlink()
    done = extract.run(videos, out, SETTINGS)
    assert (done.num_absent, done.counts["ok"]) == (1, 6)


def test_a_dry_run_writes_nothing(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = extract.run(videos, out, SETTINGS, dry_run=True)
    assert (plan.num_inputs, plan.num_todo, plan.num_ignored, plan.is_dry_run) == (9, 9, 1, True)
    assert plan.num_bytes == sum(path.stat().st_size for path in videos.rglob("*.m??") if ".hidden" not in str(path))
    assert not out.exists()
    told = plan.estimate
    assert told is not None
    done = extract.run(videos, out, SETTINGS)
    assert told.num_sampled == 8
    assert told.num_clips == pytest.approx(done.counts["ok"], abs=1.5)
    assert told.usable == pytest.approx(6 / 9, abs=0.15)
    rows = [row for row in manifest(out) if row["frames"]]
    loose = sum(4096 * -(-(out / name).stat().st_size // 4096) for row in rows for name in members(row)) + 4096 * len(
        rows
    )
    assert told.loose_bytes == pytest.approx(loose, rel=0.3)
    assert 0.4 * loose < told.tar_bytes < 1.5 * loose
    assert 0 < told.seconds < 60
    again = extract.run(videos, out, SETTINGS, dry_run=True)
    assert (again.num_todo, again.estimate) == (0, None)


def test_twins_of_every_kind_are_kept_apart_and_reported(videos: Path, tmp_path: Path) -> None:
    for name in ("A.mp4", "\u00e9.mp4", "e\u0301.mp4"):
        (videos / name).write_bytes((videos / "a.mp4").read_bytes())
    done = extract.run(videos, tmp_path / "out", SETTINGS)
    rows = [row for row in manifest(tmp_path / "out") if row["status"] == "ok"]
    assert len({row["uid"] for row in rows}) == len({row["audio"] for row in rows}) == 9
    told = json.loads((tmp_path / "out" / "duplicates.json").read_text())
    assert [sorted(group["sources"]) for group in told["same_bytes"]] == [sorted(row["source"] for row in rows)]
    assert (done.num_same_bytes, done.num_look_alike) == (8, 0)
    record = json.loads((tmp_path / "out" / "done.json").read_text())
    assert (
        record["digests"]["duplicates.json"] == sha256((tmp_path / "out" / "duplicates.json").read_bytes()).hexdigest()
    )


def test_clips_that_lack_a_modality_are_counted(videos: Path, video: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(video)
    mute = ["-i", str(tmp_path / "x.mp4"), "-an", "-c", "copy", str(videos / "mute.mp4")]
    subprocess.run([binary.find(), "-v", "error", *mute], check=True)
    assert extract.run(videos, tmp_path / "strict", SETTINGS).reasons["no_audio"] == 1
    done = extract.run(videos, tmp_path / "out", Settings(frames=3, size=32, allow_missing="audio"))
    assert (done.lacking, done.counts["ok"]) == ({"without audio": 1}, 7)
    again = extract.run(videos, tmp_path / "out", Settings(frames=3, size=32, allow_missing="audio"))
    assert (again.num_made, again.lacking) == (0, {"without audio": 1})


def test_a_folder_of_an_earlier_version_goes_on_with_the_same_settings(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.run(videos, out, SETTINGS)
    ledger = out / ".ledger.jsonl"
    first, *rest = ledger.read_text().splitlines()
    known = ("audio", "decoder", "frames", "jpeg_quality", "sample_rate", "size", "stride_s", "window_s")
    settings = {key: value for key, value in json.loads(first)["settings"].items() if key in known}
    ledger.write_text("\n".join([json.dumps({"settings": settings}), *rest, ""]))
    assert extract.run(videos, out, SETTINGS).num_made == 0
    with pytest.raises(UsageFault, match=re.escape("--fit (crop there, pad now)")):
        extract.run(videos, out, Settings(frames=3, size=32, fit="pad"))


def test_quarantined_inputs_are_tried_again_when_asked(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.run(videos, out, SETTINGS)
    before = tree(out)
    assert extract.run(videos, out, SETTINGS, retry_quarantined=True).num_made == 3
    assert tree(out) == before


def test_too_many_bad_clips_end_with_a_data_fault_and_a_manifest(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"3 of 9 .* more than --max-bad 0.2"):
        extract.run(videos, tmp_path / "out", SETTINGS, max_bad=0.2)
    assert len(manifest(tmp_path / "out")) == 9
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    (only_bad / "x.mp4").touch()
    with pytest.raises(DataFault, match="none of 1 clips is usable: 1 empty"):
        extract.run(only_bad, tmp_path / "out2", SETTINGS)


def test_a_second_run_on_the_same_folder_is_told_who_has_it(videos: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(EnvironmentFault, match=f"process {os.getpid()}"):
        extract.run(videos, tmp_path / "out", SETTINGS)


def test_without_ffmpeg_only_pyav_works(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCTOOL_FFMPEG", str(tmp_path / "no-ffmpeg"))
    with pytest.raises(EnvironmentFault, match="no-ffmpeg"):
        extract.run(videos, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
    done = extract.run(videos, tmp_path / "out", Settings(frames=3, size=32, decoder="pyav"))
    assert done.counts["ok"] == 6
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho something else\n")
    fake.chmod(0o755)
    monkeypatch.setenv("KDCTOOL_FFMPEG", str(fake))
    with pytest.raises(EnvironmentFault, match="is not ffmpeg"):
        extract.run(videos, tmp_path / "out2", SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"), [("frames", 0), ("size", 4), ("window_s", 0.0), ("stride_s", -1.0), ("audio", "mp3")]
)
def test_settings_that_make_no_sense_are_refused(name: str, value: Any, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault):
        extract.run(videos, tmp_path / "out", Settings(**{name: value}))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("long") / "long.mkv", seconds=12.5)


def test_a_stride_cuts_long_videos(long_video: Path, tmp_path: Path) -> None:
    done = extract.run(long_video.parent, tmp_path / "out", Settings(frames=2, size=32, window_s=5.0, stride_s=5.0))
    rows = sorted(manifest(tmp_path / "out"), key=lambda row: row["start_s"])
    assert [(row["start_s"], round(row["duration_s"], 1)) for row in rows] == [(0, 5), (5, 5), (10, 2.5)]
    assert len({row["source_id"] for row in rows}) == 1
    assert [row["frame_times"] for row in rows] == [[0, 2.5], [5, 7.5], [10, pytest.approx(11.2, abs=0.06)]]
    assert done.num_inputs == 1


def test_a_csv_gives_segments_and_todays_labels(long_video: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "a.csv", tmp_path / "out"
    text = "path,start,end,label,split\n{0},2,4,dog,train\n{0},6,8,cat,test\n{0},600,602,cow,test\n"
    table.write_text(text.format(long_video))
    extract.run(table, out, SETTINGS)
    rows = sorted(manifest(out), key=lambda row: row["start_s"])
    assert [(row["start_s"], row["duration_s"], row["labels"], row["split"], row["reason"]) for row in rows] == [
        (2, 2, ["dog"], "train", ""),
        (6, 2, ["cat"], "test", ""),
        (600, 0, ["cow"], "test", "outside"),
    ]
    table.write_text(text.format(long_video).replace("dog", "wolf"))
    assert extract.run(table, out, SETTINGS).num_made == 0
    assert sorted(row["labels"] for row in manifest(out)) == [["cat"], ["cow"], ["wolf"]]


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the shared clips are not beside this checkout")
def test_the_shared_clips_have_the_right_outcome(tmp_path: Path) -> None:
    extract.run(CLIPS, tmp_path / "out", Settings(), workers=1)
    rows = {row["source"]: row for row in manifest(tmp_path / "out")}
    assert {name: row["reason"] or row["status"] for name, row in rows.items()} == {
        "nasa_13013.mp4": "ok",
        "talk_clip.mp4": "ok",
        "bt709_full_range.mp4": "no_audio",
        "h264_10bits.mp4": "no_audio",
        "h265_10bits.mp4": "no_audio",
        "av1_video.mkv": "no_audio",
        "audio_only.wav": "no_video",
    }
    assert (rows["nasa_13013.mp4"]["width"], rows["nasa_13013.mp4"]["height"]) == (480, 270)
    assert rows["nasa_13013.mp4"]["frame_times"][:3] == pytest.approx([0, 0.967633, 1.968633], abs=1e-5)


def test_the_command_ends_with_a_table_and_the_next_command(
    extract_command: Callable[..., Any], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    extract_command(str(videos), str(out), "--frames", "3", "--size", "32")
    said = capsys.readouterr().out
    for part in ("6 of 9 usable", "truncated", "other files, ignored", "clips/s"):
        assert part in said
    assert f"next: kdctool shard {out} shards/" in said
    extract_command(str(videos), str(out), "--frames", "3", "--size", "32", "--format", "json")
    payload = json.loads(capsys.readouterr().out)
    assert (payload["counts"], payload["num_made"]) == ({"ok": 6, "quarantined": 3}, 0)
    extract_command(str(videos), str(tmp_path / "dry"), "--dry-run")
    said = capsys.readouterr().out
    for part in ("to do", "clips, about", "time, about", "disk, about"):
        assert part in said
    clip = "--fps 2 --size 48 --fit pad --clip-seconds 0.5 --stride 0.5 --video-stream 0"
    sound = "--audio opus --audio-rate 24000 --allow-missing both --audio-stream 0"
    extract_command(str(videos), str(tmp_path / "other"), *clip.split(), *sound.split())
    row = next(row for row in manifest(tmp_path / "other") if row["status"] == "ok")
    assert (len(row["frames"]), row["crop"], row["audio"][-5:]) == (1, [0, -8, 64, 64], ".opus")
    with pytest.raises(UsageFault, match="--frames and --fps"):
        extract_command(str(videos), str(tmp_path / "both"), "--frames", "3", "--fps", "2")


def test_media_and_its_command_import_no_torch() -> None:
    code = (
        "import sys, kdctool.stages.extract, kdctool.media.worker, kdctool.cli.show; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
