"""kdctool extract from and to s3:// (a server on this machine) and file://: what local folders give, byte for byte."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import s3
from extractions import fill, tree
from s3 import needs_s3

from kdctool.errors import DataFault, EnvironmentFault, Interrupted, UsageFault
from kdctool.media import inputs, parts, pool
from kdctool.media.settings import Item, Settings
from kdctool.places import Remote, lock
from kdctool.stages import extract, extract_work

pytestmark = pytest.mark.usefixtures("temporary")
SETTINGS = Settings(frames=2, size=32)
REPO = Path(__file__).parents[2]
NAMES = ["a.mp4", "sub/a.mp4", "with space.mp4", "*?[x].mp4", "日本 é.mp4", "a&b=c#d%20+.MP4"]


@pytest.fixture(scope="module")
def videos(video: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good clips with names of every kind, bad ones, and what is not looked at."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "empty.mp4").touch()
    return fill(folder, video, [*NAMES, ".hidden/x.mp4", "notes.txt", ".x.mp4"])


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What local folders give."""
    out = tmp_path_factory.mktemp("plain") / "out"
    extract.run(videos, out, SETTINGS, workers=1)
    return tree(out)


def run(videos: Any, out: Any, **options: Any) -> extract.Summary:
    return extract.run(videos, out, SETTINGS, **{"workers": 1} | options)


def test_file_urls_are_folders_of_this_machine(videos: Path, plain: dict[str, str], tmp_path: Path) -> None:
    done = run(f"file://{videos}", f"file://{tmp_path}/out")
    assert done.out == tmp_path / "out"
    assert tree(tmp_path / "out") == plain
    assert run(str(videos), str(tmp_path / "out")).num_made == 0
    (tmp_path / "list.txt").write_text(f"file://{videos}/a.mp4\n")
    (item,) = inputs.find(tmp_path / "list.txt").items
    assert (item.path, item.source) == (f"{videos}/a.mp4", f"{videos}/a.mp4")


@needs_s3
def test_any_pair_of_places_gives_the_same_bytes(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, tmp_path: Path
) -> None:
    url = bucket.fill(videos, "videos")
    done = run(url, tmp_path / "out", workers=2)
    assert (done.num_inputs, done.num_ignored) == (len(NAMES) + 2, 2)
    assert done.counts == {"ok": len(NAMES), "quarantined": 2}
    assert tree(tmp_path / "out") == plain
    for source, name in ((url, "one"), (videos, "two")):
        done = run(source, f"s3://bucket/{name}")
        assert str(done.out) == f"s3://bucket/{name}"
        assert bucket.tree(name) == plain


@needs_s3
def test_a_rerun_makes_only_what_is_missing(
    videos: Path, video: bytes, plain: dict[str, str], bucket: s3.Bucket, tmp_path: Path
) -> None:
    url, out = bucket.fill(videos, "videos"), "s3://bucket/out"
    run(url, out)
    asked = list[str]()
    bucket.fails = lambda method, path: asked.append(f"{method} {path}") or 0
    assert run(url, out, dry_run=True).num_todo == 0
    assert not [line for line in asked if line.startswith(("PUT", "POST", "DELETE"))]
    assert run(url, out).num_made == 0
    assert {line.split("?")[0] for line in asked if line.startswith("PUT")} == {"PUT /bucket/out/.lock"}
    assert bucket.tree("out") == plain
    lost = bucket.files.glob("bucket/out/clips/*/with-space-*")
    bucket.files.rm(lost, recursive=True)
    bucket.put("out/clips/00/half-0123456700/00.jpg", b"left by a kill")
    assert run(url, out).num_made == 1
    assert bucket.tree("out") == plain
    bucket.put("videos/a.mp4", video + bytes(100))
    bucket.put("videos/new.mp4", video)
    assert run(url, out).num_made == 2
    shutil.copytree(videos, tmp_path / "videos")
    (tmp_path / "videos" / "a.mp4").write_bytes(video + bytes(100))
    (tmp_path / "videos" / "new.mp4").write_bytes(video)
    run(tmp_path / "videos", tmp_path / "out")
    assert bucket.tree("out") == tree(tmp_path / "out")


@needs_s3
def test_lists_may_name_urls_and_lie_in_the_store(
    videos: Path, video: bytes, bucket: s3.Bucket, tmp_path: Path
) -> None:
    bucket.fill(videos, "videos")
    lines = "path,start,end,label\n{0}a.mp4,0,0.5,dog\n{0}a.mp4,0.5,1,cat\n{0}*?[x].mp4,,,dog\n{0}gone.mp4,,,cat\n"
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "*?[x].mp4"):
        (tmp_path / "videos" / name).write_bytes(video)
    (tmp_path / "videos" / "list.csv").write_text(lines.format(""))
    bucket.put("videos/list.csv", lines.format("").encode())
    done = run(tmp_path / "videos" / "list.csv", tmp_path / "local")
    assert done.counts == {"ok": 3, "quarantined": 1}
    run("s3://bucket/videos/list.csv", tmp_path / "one")
    assert tree(tmp_path / "one") == tree(tmp_path / "local")
    bucket.put("videos/urls.csv", lines.format("s3://bucket/videos/").encode())
    run("s3://bucket/videos/urls.csv", tmp_path / "two")
    assert tree(tmp_path / "two") == tree(tmp_path / "local")
    (tmp_path / "list.csv").write_text(lines.format("s3://bucket/videos/"))
    done = run(tmp_path / "list.csv", tmp_path / "three")
    assert done.reasons == {"missing": 1}
    rows = [json.loads(line) for line in (tmp_path / "three" / "manifest.jsonl").read_bytes().splitlines()]
    assert {row["source"] for row in rows} >= {"s3://bucket/videos/a.mp4", "s3://bucket/videos/*?[x].mp4"}


@needs_s3
def test_an_object_that_cannot_be_fetched_is_quarantined_and_tried_again(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, out = bucket.fill(videos, "videos"), "s3://bucket/out"
    original = inputs.find
    refused = {"/bucket/videos/a.mp4": 403, "/bucket/videos/sub/a.mp4": 500}

    def find(*given: Any) -> inputs.Inputs:
        found = original(*given)
        bucket.remove("videos/with space.mp4")  # After it was listed, before it is fetched.
        bucket.fails = lambda method, path: refused.get(path, 0)
        return found

    monkeypatch.setattr(inputs, "find", find)
    done = run(url, out)
    assert done.counts == {"ok": len(NAMES) - 3, "quarantined": 5}
    assert {reason: done.reasons[reason] for reason in ("missing", "no_permission", "io_error")} == {
        "missing": 1,
        "no_permission": 1,
        "io_error": 1,
    }
    monkeypatch.undo()
    bucket.fails = lambda method, path: 0
    bucket.fill(videos, "videos")
    assert run(url, out).num_made == 0
    assert run(url, out, retry_quarantined=True).num_made == 5
    assert bucket.tree("out") == plain


@needs_s3
def test_a_store_that_goes_away_stops_the_run_and_blames_no_video(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = bucket.fill(videos, "videos")
    original = extract.Ledger.note

    def note(self: Any, *given: Any) -> None:
        original(self, *given)
        bucket.fails = lambda method, path: 403 if "/videos" in path or method == "GET" else 0

    monkeypatch.setattr(extract.Ledger, "note", note)
    with pytest.raises(EnvironmentFault, match="cannot go on reading s3://bucket/videos: not allowed"):
        run(url, tmp_path / "out")
    bucket.fails = lambda method, path: 0
    monkeypatch.setattr(extract.Ledger, "note", original)
    bucket.fails = lambda method, path: 403 if method == "PUT" and "/clips/" in path else 0
    with pytest.raises(EnvironmentFault, match="not allowed: s3://bucket/out/clips/"):
        run(url, "s3://bucket/out")
    bucket.fails = lambda method, path: 0
    assert not bucket.files.exists("bucket/out/.lock")
    assert 0 < run(url, tmp_path / "out").num_made < len(NAMES) + 2
    assert run(url, "s3://bucket/out").num_made > 0
    assert tree(tmp_path / "out") == bucket.tree("out") == plain


def command(videos: str, out: str, part: str = "") -> "subprocess.Popen[bytes]":
    code = (
        "import sys; from kdctool.media import parts; from kdctool.errors import KdctoolError;"
        "from kdctool.stages import extract; from kdctool.media.settings import Settings\n"
        "try: extract.run(sys.argv[1], sys.argv[2], Settings(frames=2, size=32), workers=1,"
        " part=parts.parse(sys.argv[3]) if sys.argv[3] else None)\n"
        "except KdctoolError as error: sys.exit(error.exit_code)"
    )
    given = [sys.executable, "-c", code, videos, out, part]
    return subprocess.Popen(given, cwd=REPO, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_notes(bucket: s3.Bucket, process: "subprocess.Popen[bytes]", count: int = 1) -> None:
    """Until so many inputs are noted as done, or the command has ended."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            notes = [bucket.files.cat_file(name) for name in bucket.files.find("bucket/out/.notes")]
            if b"".join(notes).count(b'"uids"') >= count:
                return
        time.sleep(0.01)
    assert process.poll() == 0, "no clip was noted"


@needs_s3
def test_a_killed_run_goes_on_from_any_machine(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, temporary: Path
) -> None:
    url, go_on = bucket.fill(videos, "videos"), threading.Event()
    # The last but one in order: the command waits for it, all before it are noted.
    bucket.fails = lambda method, path: 0 if not path.endswith("/with space.mp4") or go_on.wait(100) else 500
    process = command(url, "s3://bucket/out")
    wait_for_notes(bucket, process, count=len(NAMES))
    process.send_signal(signal.SIGKILL)
    process.wait()
    go_on.set()
    assert not bucket.files.exists("bucket/out/done.json")
    assert bucket.files.exists("bucket/out/.lock")
    assert list(temporary.iterdir())  # The next command clears up after it, and needs nothing of it.
    assert run(url, "s3://bucket/out").num_made == 2
    assert bucket.tree("out") == plain


@needs_s3
def test_a_run_that_is_stopped_has_noted_every_clip(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[str]()
    original = extract.Ledger.note

    def note(self: Any, *given: Any) -> None:
        original(self, *given)
        made.append(given[-1]["uid"])
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(extract.Ledger, "note", note)
    with pytest.raises(Interrupted):
        run(videos, "s3://bucket/out")
    monkeypatch.undo()
    assert not bucket.files.exists("bucket/out/.lock")
    assert run(videos, "s3://bucket/out").num_made == len(NAMES) + 2 - len(made)
    assert bucket.tree("out") == plain


@needs_s3
def test_notes_in_many_small_objects_are_read_in_order(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdctool.media import remote_home, tail

    monkeypatch.setattr(tail, "_LARGE", 1)
    monkeypatch.setattr(tail, "_EVERY_S", 0.01)
    monkeypatch.setattr(remote_home.RemoteHome, "ended", lambda self, part: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        run(videos, "s3://bucket/out")
    assert len(bucket.files.find("bucket/out/.notes")) > 3
    monkeypatch.undo()
    assert run(videos, "s3://bucket/out").num_made == 0
    assert bucket.tree("out") == plain


@needs_s3
def test_parts_on_machines_without_a_common_disk_give_what_one_command_gives(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket
) -> None:
    url = bucket.fill(videos, "videos")
    processes = [command(url, "s3://bucket/out", f"{number}/3") for number in (1, 2, 3)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
    assert bucket.tree("out") == plain
    done = [run(videos, "s3://bucket/in_turn", part=parts.parse(f"{number}/2")) for number in (1, 2)]
    assert [d.is_merged for d in done] == [False, True]
    assert done[0].waiting_for == (2,)
    assert bucket.tree("in_turn") == plain


@needs_s3
def test_one_command_does_what_killed_parts_left(videos: Path, plain: dict[str, str], bucket: s3.Bucket) -> None:
    first = run(videos, "s3://bucket/out", part=parts.parse("1/3")).num_made
    process = command(str(videos), "s3://bucket/out", "2/3")
    wait_for_notes(bucket, process)
    process.kill()
    process.wait()
    with pytest.raises(UsageFault, match="s3://bucket/out holds parts of 3"):
        run(videos, "s3://bucket/out", part=parts.parse("1/4"))
    assert 0 < run(videos, "s3://bucket/out").num_made < len(NAMES) + 2 - first
    assert bucket.tree("out") == plain


@needs_s3
def test_what_lies_there_is_respected(videos: Path, plain: dict[str, str], bucket: s3.Bucket) -> None:
    bucket.put("mine/thesis.pdf", b"x")
    with pytest.raises(UsageFault, match=r"s3://bucket/mine is not empty and holds no extraction \(thesis\.pdf"):
        run(videos, "s3://bucket/mine")
    run(videos, "s3://bucket/out")
    bucket.put("out/README", b"x")
    with pytest.raises(UsageFault, match=r"s3://bucket/out holds clips of other settings: --size \(32 there, 64 now\)"):
        extract.run(videos, "s3://bucket/out", Settings(frames=2, size=64), workers=1)
    done = extract.run(videos, "s3://bucket/out", Settings(frames=1, size=32), workers=1, overwrite=True)
    assert done.num_made == len(NAMES) + 2
    assert len([name for name in bucket.tree("out") if name.endswith(".jpg")]) == len(NAMES)
    run(videos, "s3://bucket/out", overwrite=True)
    assert bucket.files.cat_file("bucket/out/README") == b"x"
    bucket.remove("out/README")
    assert bucket.tree("out") == plain
    bucket.put("bad/empty.mp4", b"")
    with pytest.raises(DataFault, match=r"none of 1 clips is usable"):
        run("s3://bucket/bad", "s3://bucket/of_bad")
    assert bucket.files.exists("bucket/of_bad/quarantine.jsonl")


@needs_s3
def test_a_lock_keeps_others_out_until_its_owner_is_gone(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {"process": 12, "host": "far", "machine": "another one", "started": 1.0}
    bucket.put("out/.lock", json.dumps(elsewhere).encode())
    with pytest.raises(EnvironmentFault, match="s3://bucket/out is in use by process 12 on far") as caught:
        run(videos, "s3://bucket/out")
    assert "delete s3://bucket/out/.lock" in caught.value.next_step
    with pytest.raises(EnvironmentFault, match="in use by process 12"):
        run(videos, "s3://bucket/out", part=parts.parse("1/2"))
    assert bucket.tree("out").keys() == {".lock"}
    monkeypatch.setattr(lock, "STALE_S", -1.0)
    run(videos, "s3://bucket/out")
    monkeypatch.undo()
    assert bucket.tree("out") == plain
    mine = lock._me()
    bucket.put("out/.lock-1-of-2", json.dumps(mine).encode())
    with pytest.raises(EnvironmentFault, match=f"in use by process {os.getpid()}"):
        run(videos, "s3://bucket/out")
    run(videos, "s3://bucket/out", part=parts.parse("2/2"))
    bucket.put("out/.lock-1-of-2", json.dumps(mine | {"started": 1.0}).encode())  # The number went to a new process.
    run(videos, "s3://bucket/out")
    assert bucket.tree("out") == plain


@needs_s3
def test_a_lock_that_is_held_is_renewed(bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Remote("s3", "bucket/out")
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    renewed = list[str]()
    with lock.locked(place, ".lock", r"\.lock"):
        bucket.fails = lambda method, path: renewed.append(path) or 0 if method == "PUT" else 0
        deadline = time.monotonic() + 30
        while len(renewed) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(EnvironmentFault, match="in use"), lock.locked(place, ".lock", r"\.lock"):
            pass
    assert set(renewed) == {"/bucket/out/.lock"}
    assert len(renewed) >= 3
    assert place.children() == {}


@needs_s3
def test_places_that_do_not_work_are_told_at_once(
    videos: Path, bucket: s3.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageFault, match="s3://nobucket/videos does not exist"):
        run("s3://nobucket/videos", tmp_path / "out")
    with pytest.raises(UsageFault, match="s3://bucket/nothing does not exist"):
        run("s3://bucket/nothing", tmp_path / "out")
    with pytest.raises(UsageFault, match="there is no bucket s3://nobucket"):
        run(videos, "s3://nobucket/out")
    bucket.put("videos/notes.txt.gz", b"x")
    with pytest.raises(DataFault, match="no media files in s3://bucket/videos"):
        run("s3://bucket/videos", tmp_path / "out")
    with pytest.raises(UsageFault, match="neither a folder nor a"):
        run("s3://bucket/videos/notes.txt.gz", tmp_path / "out")
    url = bucket.fill(videos, "videos")
    for inside in (url, f"{url}/out"):
        with pytest.raises(UsageFault, match="lies inside the input"):
            run(url, inside)
    bucket.fails = lambda method, path: 403
    with pytest.raises(EnvironmentFault, match="not allowed: s3://bucket/videos"):
        run(url, tmp_path / "out")
    bucket.fails = lambda method, path: 403 if method == "PUT" else 0
    with pytest.raises(EnvironmentFault, match=r"not allowed: s3://bucket/out/\.lock"):
        run(videos, "s3://bucket/out")
    bucket.fails = lambda method, path: 0
    assert not (tmp_path / "out").exists()


@needs_s3
def test_a_store_without_credentials_or_answer_is_an_environment_fault(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.point_at(monkeypatch, "http://127.0.0.1:9")
    for source, out in (("s3://bucket/videos", tmp_path / "out"), (videos, "s3://bucket/out")):
        began = time.monotonic()
        with pytest.raises(EnvironmentFault, match=r"cannot reach s3://bucket.*127\.0\.0\.1:9") as caught:
            run(source, out)
        assert time.monotonic() - began < 30
        assert caught.value.exit_code == 4
    s3.point_at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(EnvironmentFault, match="no credentials for s3://bucket/videos") as caught:
        run("s3://bucket/videos", tmp_path / "out")
    assert "AWS_PROFILE" in caught.value.next_step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, package: str
) -> None:
    from kdctool.places import remote

    original = remote.importlib.util.find_spec
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None if name == package else original(name))
    for source, out in ((f"{protocol}://bucket/videos", tmp_path / "out"), (videos, f"{protocol}://bucket/out")):
        with pytest.raises(EnvironmentFault, match=f"the package {package} is not installed") as caught:
            run(source, out)
        assert caught.value.next_step == f"pip install 'kdctool[{protocol}]'"
    assert not (tmp_path / "out").exists()


@needs_s3
def test_fetched_videos_lie_on_this_machine_only_while_they_are_decoded(
    videos: Path, bucket: s3.Bucket, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ffmpeg = Settings(frames=2, size=32, decoder="ffmpeg")
    extract.run(videos, tmp_path / "plain", with_ffmpeg, workers=1)
    most, original = [0], pool.Pool._listen

    def listen(self: Any, worker: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):  # A worker deleted a folder while it was looked through.
            most[0] = max(most[0], len(list(temporary.rglob("input*"))))
        return original(self, worker)

    monkeypatch.setattr(pool.Pool, "_listen", listen)
    extract.run(bucket.fill(videos, "videos"), tmp_path / "out", with_ffmpeg, workers=2)
    assert 1 <= most[0] <= 2
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


def test_a_worker_may_write_a_file_as_large_as_the_largest_video_in_the_store() -> None:
    def limit(*items: Item) -> int:
        return extract_work.tools(Settings(decoder="pyav"), items).file_bytes

    assert limit(Item("/x.mp4", "x.mp4")) == limit(Item("s3://b/x.mp4", "x.mp4", stored_bytes=-1)) == 1 << 30
    assert limit(Item("s3://b/x.mp4", "x.mp4", stored_bytes=7 << 30), Item("/y.mp4", "y.mp4")) == 7 << 30


@needs_s3
@pytest.mark.nightly
@pytest.mark.parametrize("part", ["", "1/1"])
def test_a_failure_of_any_request_leaves_a_run_that_can_go_on(
    video: bytes, bucket: s3.Bucket, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_MERGE_TRIES", 2)  # The lock whose deletion failed is not given free.
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).write_bytes(video if name < "c.mp4" else b"")
    run(tmp_path / "videos", tmp_path / "out")
    options = {"part": parts.parse(part) if part else None}
    number = 0
    while True:
        (tmp_path / "videos" / "b.mp4").write_bytes(video)
        run(tmp_path / "videos", "s3://bucket/out", overwrite=True)
        (tmp_path / "videos" / "b.mp4").write_bytes(video + bytes(50))
        run(tmp_path / "videos", tmp_path / "out")
        left = [number]

        def fails(method: str, path: str, left: list[int] = left) -> int:
            if method in ("PUT", "POST", "DELETE"):
                left[0] -= 1
            return 403 if left[0] < 0 and method not in ("GET", "HEAD") else 0

        bucket.fails = fails
        try:
            run(tmp_path / "videos", "s3://bucket/out", **options)
        except EnvironmentFault:
            pass
        finally:
            bucket.fails = lambda method, path: 0
        for name in bucket.files.glob("bucket/out/.lock*"):  # Of this process, which is not gone.
            bucket.files.rm(name)
        again = run(tmp_path / "videos", "s3://bucket/out", **options)
        assert again.is_merged
        assert bucket.tree("out") == tree(tmp_path / "out"), number
        if left[0] >= 0:
            break
        number += 1
    assert number > 8


@needs_s3
def test_the_command_takes_urls(
    videos: Path, plain: dict[str, str], bucket: s3.Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdctool.cli import run as command_line

    url = bucket.fill(videos, "videos")
    given = ["extract", url, "s3://bucket/out", "--frames", "2", "--size", "32", "--workers", "1"]
    assert command_line([*given, "--dry-run"]) == 0
    assert "trying" not in bucket.tree("out")
    assert command_line(given) == 0
    assert "next: kdctool shard s3://bucket/out shards/" in capsys.readouterr().out
    assert command_line([*given, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "s3://bucket/out"
    assert bucket.tree("out") == plain
    assert command_line(["verify", "s3://bucket/out"]) == 2
    assert command_line(["extract", "http://bucket/videos", "out"]) == 2
    assert "s3://BUCKET/FOLDER" in capsys.readouterr().err
