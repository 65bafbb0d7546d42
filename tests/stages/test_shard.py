"""kdctool shard and kdctool verify on an extraction folder made by hand."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from extractions import tree
from PIL import Image

from kdctool import files
from kdctool.errors import DataFault, EnvironmentFault, KdctoolError, UsageFault, VerificationFault
from kdctool.shards import index
from kdctool.shards.read import ShardReader
from kdctool.stages import shard, verify

SOURCES = (
    "a/clip.mp4",
    "b/clip.mp4",
    "00W1lcxW-WU_40.000.mp4",
    "naïve 映画.mp4",
    "-x'\"$(touch x).mp4",
    "bad\udcff.mkv",
)


def row_of(source: str, start_s: int, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(os.fsencode(source) + f"\0{start_s * 1000}".encode()).hexdigest()[:10]
    slug = "".join(c if c in "abcdefghijklmnopqrstuvwxyz0123456789_-" else "-" for c in Path(source).stem.lower())
    row = {
        "uid": f"{slug[:40]}-{digest}", "source": source, "source_id": f"id of {source}", "start_s": float(start_s),
        "duration_s": 1.0, "status": "ok", "reason": "", "modalities": ["audio", "video"], "frames": [],
        "frame_times": [0.0, 0.5], "audio": "", "audio_pad_s": 0.0, "width": 320, "height": 240,
        "rotation": 0, "crop": [40, 0, 240, 240], "labels": [], "split": "", "decoder": "pyav", "tool_versions": {},
        "sha256": "",
    }  # fmt: skip
    return row | changes


def write_clip(out: Path, row: dict[str, Any], number: int) -> None:
    """Make the files of a clip and fill in what its row says of them."""
    place = f"clips/{row['uid'][-10:-8]}/{row['uid']}"
    folder = out / place
    folder.mkdir(parents=True)
    for frame in range(2):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (number % 256, 100 * frame, 0)).save(buffer, "JPEG")
        (folder / f"{frame:02d}.jpg").write_bytes(buffer.getvalue())
    soundfile.write(folder / "audio.flac", np.full(1600, number, np.int16), 16000)
    names = ["00.jpg", "01.jpg", "audio.flac"]
    row["frames"], row["audio"] = [f"{place}/{name}" for name in names[:2]], f"{place}/audio.flac"
    row["sha256"] = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def write_manifest(out: Path, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row["uid"])
    (out / "manifest.jsonl").write_text("".join(files.canonical_json(row) + "\n" for row in rows))
    settings = {"frames": 2, "size": 32, "sample_rate": 16000, "window_s": 1.0, "audio": "flac", "decoder": "auto"}
    files.write_json(out / "done.json", {"settings": settings})


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clips of 22 videos (six with awkward names), one of them flagged, and two failed inputs."""
    folder = tmp_path_factory.mktemp("extracted")
    sources = [*SOURCES, *(f"videos/v{n:02d}.mp4" for n in range(16))]
    rows = [row_of(sources[n % 22], n // 22) for n in range(60)]
    rows[7] |= {"status": "flagged", "reason": "silent"}
    for number, row in enumerate(rows):
        write_clip(folder, row, number)
    failed = [row_of(f"bad{n}.mp4", 0, status="quarantined", reason="no_audio") for n in range(2)]
    write_manifest(folder, rows + failed)
    return folder


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips, for tests that run the command dozens of times."""
    folder = tmp_path_factory.mktemp("few")
    rows = [row_of(f"v{n}.mp4", 0) for n in range(9)]
    for number, row in enumerate(rows):
        write_clip(folder, row, number)
    write_manifest(folder, rows)
    return folder


@pytest.fixture
def shards(out: Path, tmp_path: Path) -> Path:
    shard.run(out, tmp_path / "shards", clips_per_shard=8)
    return tmp_path / "shards"


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return {row["uid"]: row for row in rows if row["status"] != "quarantined"}


def test_every_usable_clip_is_in_the_shards_once_and_every_other_row_is_counted(out: Path, tmp_path: Path) -> None:
    done = shard.run(out, tmp_path / "shards", clips_per_shard=8)
    assert (done.num_clips, done.num_rows, done.left_out) == (60, 62, {"no_audio": 2})
    assert (done.written, done.kept) == (sum(split["shards"] for split in done.splits.values()), 0)
    opened = index.load(tmp_path / "shards")
    assert opened.settings == {"frames": 2, "size": 32, "sample_rate": 16000, "window_s": 1.0, "audio": "flac"}
    assert opened.digest == done.digest
    uids = []
    for name in opened.splits:
        split = opened.split(name)
        reader = ShardReader(split)
        for i in range(len(split)):
            uids.append(split.key(i))
            assert list(split.members(i)) == ["json", "flac", "0.jpg", "1.jpg"]
            data = reader.read(i, ["json", "1.jpg", "flac"])
            about, row = json.loads(data["json"]), rows_of(out)[split.key(i)]
            expected = (
                "uid source source_id start_s duration_s labels frame_times audio_pad_s width height rotation crop"
            )
            assert about == {key: row[key] for key in [*expected.split(), "status", "modalities"]}
            folder = out / "clips" / row["uid"][-10:-8] / row["uid"]
            assert data["1.jpg"] == (folder / "01.jpg").read_bytes()
            assert data["flac"] == (folder / "audio.flac").read_bytes()
    assert sorted(uids) == sorted(rows_of(out))


def test_the_same_input_gives_the_same_bytes(out: Path, shards: Path, tmp_path: Path) -> None:
    shard.run(out, tmp_path / "again", clips_per_shard=8)
    assert tree(tmp_path / "again") == tree(shards)
    assert {path.name for path in shards.iterdir()} - set(tree(shards)) == {".lock"}


def test_plain_webdataset_reads_the_same_samples(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    opened = index.load(shards)
    split = opened.split("train")
    reader = ShardReader(split)
    urls = [str(shards / name) for name in split.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [split.key(i) for i in range(len(split))]
    for i, sample in enumerate(samples):
        assert {key: sample[key] for key in sample if not key.startswith("__")} == reader.read(i, split.members(i))


def test_tars_are_plain_ustar_with_fixed_fields(shards: Path) -> None:
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as file:
            for info in file:
                assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
                assert info.offset_data - info.offset == 512
                assert info.name.isascii()


def test_all_clips_of_a_video_are_held_out_together(shards: Path) -> None:
    opened = index.load(shards)
    homes: dict[str, set[str]] = {}
    for name in opened.splits:
        split = opened.split(name)
        for i in range(len(split)):
            about = json.loads(ShardReader(split).read(i, ["json"])["json"])
            homes.setdefault(about["source_id"], set()).add(name)
    assert all(len(names) == 1 for names in homes.values())
    assert 20 <= opened.splits["test"] <= 30


def test_any_shard_is_a_mixture(shards: Path) -> None:
    split = index.load(shards).split("train")
    keys = [split.key(i) for i in range(len(split))]
    assert keys != sorted(keys)


def test_splits_follow_the_options(out: Path, tmp_path: Path) -> None:
    assert set(shard.run(out, tmp_path / "a", holdout=False).splits) == {"train"}
    assert set(shard.run(out, tmp_path / "b", split="val").splits) == {"val"}
    with pytest.raises(UsageFault, match="--split"):
        shard.run(out, tmp_path / "c", split="a/b")
    assert not (tmp_path / "c").exists()


def test_a_dry_run_writes_nothing_and_estimates_the_bytes(out: Path, shards: Path, tmp_path: Path) -> None:
    done = shard.run(out, tmp_path / "dry", clips_per_shard=8, dry_run=True)
    assert not (tmp_path / "dry").exists()
    real = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert 0.8 * real < done.num_bytes < 1.2 * real


def test_a_second_run_keeps_what_is_done_and_writes_a_lost_shard_again(out: Path, shards: Path) -> None:
    before = tree(shards)
    again = shard.run(out, shards, clips_per_shard=8)
    assert (again.written, again.kept) == (0, len(before) - 1)
    (shards / "train-000001.tar").unlink()
    again = shard.run(out, shards, clips_per_shard=8)
    assert (again.written, again.kept) == (1, len(before) - 2)
    assert tree(shards) == before


def test_other_settings_or_another_manifest_are_refused_and_named(out: Path, shards: Path, tmp_path: Path) -> None:
    before = tree(shards)
    with pytest.raises(
        UsageFault, match=r"what differs: clips_per_shard \(was 8, is 9\), holdout \(was true, is false\)"
    ):
        shard.run(out, shards, clips_per_shard=9, holdout=False)
    csv = tmp_path / "labels.csv"
    csv.write_text("path,label\na/clip.mp4,dog\n")
    with pytest.raises(UsageFault, match="what differs: labels"):
        shard.run(out, shards, clips_per_shard=8, labels=csv)
    assert tree(shards) == before
    shard.run(out, shards, clips_per_shard=30, overwrite=True)
    fresh = tmp_path / "fresh"
    shard.run(out, fresh, clips_per_shard=30)
    assert tree(shards) == tree(fresh)


def test_tars_of_others_are_never_touched(out: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(b"theirs")
    for overwrite in (False, True):
        with pytest.raises(UsageFault, match="did not make"):
            shard.run(out, tmp_path, overwrite=overwrite)
    assert (tmp_path / "train-000000.tar").read_bytes() == b"theirs"


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked child; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("first_run", ["nothing", "other settings", "lost shard"])
def test_death_at_every_rename_and_removal_leaves_a_run_that_can_go_on(
    few: Path, tmp_path: Path, first_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before its n-th change of a name, for every n; the same command then gives the same bytes."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a dead process loses no written pages; a power cut would
    shard.run(few, tmp_path / "whole", clips_per_shard=3)
    expected = tree(tmp_path / "whole")
    overwrite = first_run == "other settings"

    def prepare(folder: Path) -> None:
        if first_run != "nothing":
            shard.run(few, folder, clips_per_shard=2 if overwrite else 3)
        if first_run == "lost shard":
            (folder / "train-000001.tar").unlink()

    def dying(folder: Path, deaths: int) -> None:
        left = [deaths]

        def counted(real: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: Any, **options: Any) -> None:
                if left[0] == 0:
                    os._exit(77)
                left[0] -= 1
                real(*arguments, **options)

            return call

        for name in ("replace", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))
        shard.run(few, folder, clips_per_shard=3, overwrite=overwrite)

    for deaths in range(200):
        folder = tmp_path / f"{deaths}"
        prepare(folder)
        code = in_child(lambda folder=folder, deaths=deaths: dying(folder, deaths))
        tars_are_whole(folder)
        shard.run(few, folder, clips_per_shard=3, overwrite=overwrite and not (folder / ".building").is_dir())
        assert tree(folder) == expected
        if code == 0:
            assert deaths > 3
            return
        assert code == 77
    pytest.fail("the run never ended by itself")


def tars_are_whole(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        assert verify._structure(path) == []
    if (folder / "index.json").is_file() and not (folder / ".building").is_dir():
        named = {entry.name for entry in index.read(folder).entries}
        assert named - {path.name for path in folder.glob("*.tar")} <= {"train-000001.tar"}


def test_kill_9_at_random_moments_loses_nothing(out: Path, shards: Path, tmp_path: Path) -> None:
    shard.run(out, tmp_path / "whole", clips_per_shard=1)
    expected = tree(tmp_path / "whole")
    target = tmp_path / "killed"
    code = "import sys; from pathlib import Path; from kdctool.stages import shard\n"
    code += "shard.run(Path(sys.argv[1]), Path(sys.argv[2]), clips_per_shard=1)"
    draw = random.Random(5)
    kills = 0
    for goal in (1, 20, 45):
        child = subprocess.Popen([sys.executable, "-c", code, str(out), str(target)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while len(list(target.glob("*.tar"))) < goal and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        tars_are_whole(target)
    assert kills >= 2
    done = shard.run(out, target, clips_per_shard=1)
    assert done.kept >= 20
    assert tree(target) == expected


def test_no_torch_is_imported(out: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kdctool.stages import shard, verify\n"
        "shard.run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "verify.run(Path(sys.argv[2])); verify.run(Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules; import webdataset; assert webdataset.TarWriter and webdataset.WebDataset"
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(tmp_path / "s")], check=True, capture_output=True)


def test_labels_come_from_the_file_and_rows_without_a_clip_are_listed(out: Path, tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text('path,label,split\na/clip.mp4,"bow-wow, big",train\nvideos/v00.mp4,cat;dog,val\nnone.mp4,dog,\n')
    done = shard.run(out, tmp_path / "shards", labels=csv)
    assert (done.num_labels, done.multi_label) == (3, True)
    assert (done.unmatched, done.unmatched_examples) == (1, ["labels.csv:4: 'none.mp4'"])
    assert done.unlabelled == 60 - 6
    assert done.splits["val"]["clips"] == 3
    assert done.without_split == 54
    opened = index.load(tmp_path / "shards")
    assert opened.labels == ("bow-wow, big", "cat", "dog")
    split = opened.split("val")
    assert json.loads(ShardReader(split).read(0, ["json"])["json"])["labels"] == ["cat", "dog"]


def test_labels_and_splits_of_the_manifest_are_used_and_a_shared_video_is_told(tmp_path: Path) -> None:
    rows = [row_of("v.mp4", n, labels=["dog"], split=("train", "test")[n % 2]) for n in range(4)]
    for number, row in enumerate(rows):
        write_clip(tmp_path / "out", row, number)
    write_manifest(tmp_path / "out", rows)
    done = shard.run(tmp_path / "out", tmp_path / "shards")
    assert (done.num_labels, done.unlabelled, done.shared_sources) == (1, 0, 1)
    assert {name: counts["clips"] for name, counts in done.splits.items()} == {"train": 2, "test": 2}


def test_a_label_that_is_not_in_the_list_ends_before_anything_is_written(out: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\na/clip.mp4,dgo\n")
    (tmp_path / "list.txt").write_text("cat\ndog\n")
    with pytest.raises(DataFault, match=r"labels.csv:2: label 'dgo' is not in .*list.txt") as fault:
        shard.run(out, tmp_path / "shards", labels=tmp_path / "labels.csv", label_list=tmp_path / "list.txt")
    assert fault.value.next_step == "did you mean 'dog'?"
    assert not (tmp_path / "shards").exists()
    (tmp_path / "labels.csv").write_text("path,label\na/clip.mp4,dog\n")
    shard.run(out, tmp_path / "shards", labels=tmp_path / "labels.csv", label_list=tmp_path / "list.txt")
    assert index.load(tmp_path / "shards").labels == ("cat", "dog")


def test_an_unfinished_extraction_is_refused_with_the_command_that_makes_it(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="no folder"):
        shard.run(tmp_path / "none", tmp_path / "shards")
    with pytest.raises(DataFault, match=r"manifest\.jsonl") as fault:
        shard.run(tmp_path, tmp_path / "shards")
    assert fault.value.next_step == f"kdctool extract VIDEOS {tmp_path}"
    write_manifest(tmp_path, [row_of("bad.mp4", 0, status="quarantined", reason="empty")])
    with pytest.raises(DataFault, match="no usable clip: empty 1"):
        shard.run(tmp_path, tmp_path / "shards")
    (tmp_path / "done.json").unlink()
    with pytest.raises(DataFault, match=r"done\.json"):
        shard.run(tmp_path, tmp_path / "shards")
    with pytest.raises(UsageFault, match="extraction folder"):
        shard.run(out, out)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"uid":"', '"uid":"../'),
        lambda text: text + text.splitlines(keepends=True)[0],
        lambda text: text.replace('"frame_times"', '"times"'),
        lambda text: text.replace('"frames":[', '"frames":["02.jpg",'),
        lambda text: text.replace('"sha256":"', '"sha256":"0'),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error_that_names_the_place(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    row = row_of("v.mp4", 0)
    write_clip(tmp_path / "out", row, 1)
    write_manifest(tmp_path / "out", [row])
    path = tmp_path / "out/manifest.jsonl"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataFault, match="manifest"):
        shard.run(tmp_path / "out", tmp_path / "shards", holdout=False)
    assert list((tmp_path / "shards").glob("*.tar*")) == []


def test_a_second_process_on_the_same_folder_is_told_so(out: Path, tmp_path: Path) -> None:
    with files.locked(tmp_path / "shards"), pytest.raises(EnvironmentFault, match="in use"):
        shard.run(out, tmp_path / "shards")


def test_a_full_disk_ends_with_what_is_needed_and_goes_on_later(out: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with pytest.raises(EnvironmentFault, match=r"need about .* are free"):
            shard.run(out, mount / "shards", clips_per_shard=8)
        assert list((mount / "shards").glob("*.tar*")) == []
        subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
        shard.run(out, mount / "shards", clips_per_shard=8)
        assert verify.run(mount / "shards").damages == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def damaged(shards: Path) -> list[tuple[str, str, str]]:
    return [(damage.kind, damage.file, damage.member) for damage in verify.check(shards).damages]


def test_verify_names_every_kind_of_damage_to_a_tar(shards: Path) -> None:
    assert verify.run(shards).damages == []
    path = shards / "train-000001.tar"
    whole = path.read_bytes()
    entry = next(entry for entry in index.read(shards).entries if entry.name == path.name)
    names = entry.member_names()
    member = 5
    offset = int(entry.offsets[member])

    for cut, first in ((0, 0), (offset - 512, member), (offset - 300, member), (offset + 5, member)):
        path.write_bytes(whole[:cut])
        found = verify.check(shards).damages
        assert (found[0].kind, found[0].member, found[0].offset) == ("short", names[first], int(entry.offsets[first]))
        assert f"has {cut} of {len(whole)} bytes" in found[0].text
        assert found[0].file == path.name

    flipped = bytearray(whole)
    flipped[offset + 3] ^= 16
    path.write_bytes(flipped)
    assert damaged(shards) == [("bit flip", path.name, names[member])]
    assert verify.check(shards).damages[0].offset == offset

    flipped = bytearray(whole)
    flipped[offset - 512 + 2] ^= 1
    path.write_bytes(flipped)
    assert verify.check(shards).damages[0].kind == "header"
    assert verify.check(shards).damages[0].offset == offset - 512

    flipped = bytearray(whole)
    flipped[offset + int(entry.lengths[member])] = 7  # padding
    path.write_bytes(flipped)
    assert damaged(shards) == [("bit flip", path.name, "")]

    path.write_bytes(whole + b"x")
    assert ("long", path.name, "") in damaged(shards)
    path.unlink()
    assert damaged(shards) == [("missing", path.name, "")]
    path.write_bytes(whole)
    (shards / "extra-0.tar").write_bytes(whole)
    with pytest.raises(VerificationFault, match=r"extra-0.tar: is not in the index \(extra\)") as fault:
        verify.run(shards)
    assert fault.value.exit_code == 5


def test_any_flipped_bit_of_a_tar_is_found(shards: Path) -> None:
    path = shards / "test-000000.tar"
    whole = path.read_bytes()
    draw = random.Random(3)
    for _ in range(25):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert {file for _, file, _ in damaged(shards)} == {path.name}


def test_verify_finds_a_changed_index_and_an_unfinished_folder(shards: Path) -> None:
    text = (shards / "index.json").read_text()
    (shards / "index.json").write_text(text.replace('"multi_label":false', '"multi_label":true'))
    assert damaged(shards) == [("index", "index.json", "")]
    (shards / "index.json").unlink()
    (shards / ".building").mkdir()
    assert damaged(shards) == [("missing", "index.json", "")]
    with pytest.raises(DataFault, match="not complete"):
        index.load(shards)


def test_verify_checks_tars_of_others_without_writing(shards: Path) -> None:
    (shards / "index.json").unlink()
    report = verify.run(shards)
    assert "nothing to compare with" in report.notes[0]
    assert not (shards / "index.json").exists()
    path = shards / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:4096])
    assert [(kind, file) for kind, file, _ in damaged(shards)] == [("short", path.name)]


def test_verify_checks_the_files_of_an_extraction(tmp_path: Path) -> None:
    row, other = row_of("v.mp4", 0), row_of("v.mp4", 1)
    for number, each in enumerate((row, other)):
        write_clip(tmp_path, each, number)
    write_manifest(tmp_path, [row, other])
    assert verify.run(tmp_path).num_files == 6
    folder = tmp_path / "clips" / row["uid"][-10:-8] / row["uid"]
    for name in ("00.jpg", "audio.flac"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        assert [(damage.kind, Path(damage.file).name) for damage in verify.check(tmp_path).damages] == [
            ("content", name)
        ]
        (folder / name).write_bytes(data[:-1] + b"?")
        assert len(verify.check(tmp_path).damages) == 1
        (folder / name).write_bytes(data)
    (folder / "01.jpg").unlink()
    with pytest.raises(VerificationFault, match="holds 1 frames"):
        verify.run(tmp_path)


def test_a_manifest_that_changed_after_extraction_is_refused_and_found(tmp_path: Path) -> None:
    row = row_of("v.mp4", 0)
    write_clip(tmp_path / "out", row, 1)
    write_manifest(tmp_path / "out", [row])
    (tmp_path / "out/quarantine.jsonl").write_text("")
    done = files.read_json(tmp_path / "out/done.json")
    done["digests"] = {
        name: files.sha256_file(tmp_path / "out" / name) for name in ("manifest.jsonl", "quarantine.jsonl")
    }
    files.write_json(tmp_path / "out/done.json", done)
    assert verify.run(tmp_path / "out").num_files == 3
    (tmp_path / "out/quarantine.jsonl").write_text("{}\n")
    assert [damage.file for damage in verify.check(tmp_path / "out").damages] == ["quarantine.jsonl"]
    write_manifest(tmp_path / "out", [row | {"labels": ["dog"]}])
    files.write_json(tmp_path / "out/done.json", done)
    with pytest.raises(VerificationFault, match=r"not the one that done.json was written for"):
        verify.run(tmp_path / "out")
    with pytest.raises(DataFault, match=r"not the one that done.json was written for"):
        shard.run(tmp_path / "out", tmp_path / "shards")


def test_verify_checks_manifests_of_runs_checkpoints_and_exports(tmp_path: Path) -> None:
    for step in ("step-00000001", "step-00000002"):
        folder = tmp_path / "checkpoints" / step
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(step.encode())
        (folder / "state.json").write_text("{}")
        hashes = {name: files.sha256_file(folder / name) for name in ("model.safetensors", "state.json")}
        files.write_json(folder / "manifest.json", {"files": hashes})
    (folder / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "checkpoints", folder):
        report = verify.run(place)
        assert report.num_files == (2 if place == folder else 4)
        assert "does not list 1 files" in report.notes[0]
    (folder / "model.safetensors").write_bytes(b"step-00000003")
    with pytest.raises(VerificationFault, match=r"step-00000002/model.safetensors: does not match its sha256"):
        verify.run(tmp_path)
    (folder / "model.safetensors").unlink()
    assert verify.check(folder).damages[0].kind == "missing"
    files.write_json(folder / "manifest.json", {"files": {"../../../secret": "0"}})
    assert verify.check(folder).damages[0].kind == "refused"
    (folder / "manifest.json").write_text("[]")
    assert verify.check(folder).damages[0].kind == "index"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageFault, match="nothing that can be verified"):
        verify.run(tmp_path / "empty")
    with pytest.raises(UsageFault, match="not a folder"):
        verify.run(tmp_path / "none")


@pytest.mark.parametrize("fmt", ["human", "json"])
def test_both_commands_print_their_summary_and_the_next_command(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fmt: str
) -> None:
    from kdctool import cli

    place = str(tmp_path / "shards")
    assert cli.run(["shard", str(out), place, "--clips-per-shard", "20", "--format", fmt]) == 0
    text = capsys.readouterr().out
    if fmt == "json":
        payload = json.loads(text)
        assert (payload["num_clips"], payload["num_rows"], payload["left_out"]) == (60, 62, {"no_audio": 2})
    else:
        assert "60 of 62 rows of the manifest; left out: no_audio 2" in text
        assert f"next: kdctool recipe new --from {place} > mine.toml, then kdctool pretrain mine.toml" in text
    assert cli.run(["verify", place, "--format", fmt]) == 0
    assert "shards" in capsys.readouterr().out
    path = next(Path(place).glob("test*.tar"))
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.run(["verify", place]) == 5
    assert f"{path.name}:" in capsys.readouterr().err


def test_every_fault_of_this_room_has_a_next_step(out: Path, tmp_path: Path) -> None:
    for call in (
        lambda: shard.run(tmp_path / "none", tmp_path / "s"),
        lambda: shard.run(tmp_path, tmp_path / "s"),
        lambda: shard.run(out, tmp_path / "s", labels=tmp_path / "none.csv"),
        lambda: verify.run(tmp_path),
        lambda: index.load(tmp_path),
    ):
        with pytest.raises(KdctoolError) as fault:
            call()
        assert fault.value.next_step
        assert "\n" not in fault.value.cause
