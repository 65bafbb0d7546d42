"""kdctool data audit and kdctool data convert on clips and lists made by hand."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from kdctool import cli, files
from kdctool.errors import DataFault, UsageFault
from kdctool.shards import index
from kdctool.shards.extraction import clip_folder
from kdctool.shards.read import ShardReader
from kdctool.stages import data_audit, data_convert, shard

A, B, C, D = "-aaaaaaaaa_", "bbbbbbbbb_1", "ccccccccccc", "ddddddddddd"
VGGSOUND = f"""{A},30,dog barking,train
{A},40,dog barking,test
{B},7,"people eating, crisps",train
{B},7,"people eating, crisps",test
{C},1,cat purring,test
{D},2,sheep bleating,test
{D},2,sheep bleating,test
"""


def row(source: str, **changes: Any) -> dict[str, Any]:
    tail = hashlib.sha256(f"{source}\0{round(changes.get('start_s', 0) * 1000)}".encode()).hexdigest()[:10]
    return {
        "uid": f"{Path(source).stem.lower().replace('.', '-')[:40]}-{tail}",
        "source": source, "source_id": f"id-{source}",
        "start_s": 0.0, "duration_s": 10.0, "status": "ok", "reason": "", "modalities": ["audio", "video"], "frames": 2,
        "frame_times": [0.0, 5.0], "audio": "audio.flac", "audio_pad_s": 0.0, "width": 320, "height": 240,
        "rotation": 0, "crop": [40, 0, 240, 240], "labels": [], "split": "", "decoder": "pyav",
        "tool_versions": {}, "sha256": "",
    } | changes  # fmt: skip


def extraction(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """An extraction folder; the media of a clip are bytes that name it, unless its row has `bytes`."""
    for one in rows:
        content = one.pop("bytes", one["uid"].encode())
        if one["status"] == "quarantined":
            continue
        place = clip_folder(folder, one["uid"])
        place.mkdir(parents=True)
        names = [f"{i:02d}.jpg" for i in range(one["frames"])] + ([one["audio"]] if one["audio"] else [])
        for name in names:
            (place / name).write_bytes(name.encode() + content)
        one["sha256"] = hashlib.sha256(b"".join((place / name).read_bytes() for name in names)).hexdigest()
    folder.mkdir(exist_ok=True)
    ordered = sorted(rows, key=lambda one: one["uid"])
    (folder / "manifest.jsonl").write_text("".join(files.canonical_json(one) + "\n" for one in ordered))
    files.write_json(folder / "done.json", {"settings": {"frames": 2}})
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two clips of A, one of B twice, one of C that failed, and a stranger; D is missing."""
    return extraction(
        tmp_path / "out",
        [
            row(f"{A}_000030.mp4"),
            row(f"{A}_000040.mp4"),
            row(f"x/{B}_000007.mp4", bytes=b"same"),
            row(f"y/{B}_7_17.mkv", bytes=b"same"),
            row(f"{C}_000001.mp4", status="quarantined", reason="no_audio"),
            row("stranger.mp4"),
        ],
    )


@pytest.fixture
def vggsound(tmp_path: Path) -> Path:
    path = tmp_path / "vggsound.csv"
    path.write_text(VGGSOUND)
    return path


def test_an_audit_counts_what_is_there_missing_double_and_shared(out: Path, vggsound: Path, tmp_path: Path) -> None:
    done = data_audit.run([vggsound], out, missing=tmp_path / "missing.txt")
    assert done.formats == ["vggsound"]
    assert (done.num_rows, done.num_listed, done.num_present, done.num_missing) == (7, 5, 3, 1)
    assert done.splits == {"train": data_audit.Coverage(2, 2), "test": data_audit.Coverage(4, 2)}
    assert done.quarantined == {"no_audio": 1}
    assert (tmp_path / "missing.txt").read_text() == f"{D}\n"
    assert (done.num_unlisted, done.unlisted_examples) == (1, ["stranger.mp4"])
    assert (done.listed_twice, done.listed_twice_examples) == (1, [f"{D} in line 7"])
    assert done.stored_twice_examples == [f"x/{B}_000007.mp4 = y/{B}_7_17.mkv"]
    assert (done.stored_twice, done.same_content) == (1, 1)
    (overlap,) = done.overlaps
    assert (overlap.first, overlap.second) == ("train", "test")
    assert (overlap.clips, overlap.clip_examples) == (1, [f"{B}_7"])
    assert (overlap.videos, sorted(overlap.video_examples)) == (2, sorted([A, B]))
    assert (overlap.clips_of_first, overlap.clips_of_second) == (2, 2)
    assert done.classes["dog barking"] == {"listed": 2, "present": 2}
    assert done.empty_classes == ["cat purring", "sheep bleating"]
    assert done.balance_text == "4, of 0 to 2 clips, median 0.5"


def test_missing_clips_as_a_table_have_their_place_labels_and_splits(out: Path, vggsound: Path, tmp_path: Path) -> None:
    data_audit.run([vggsound], out, missing=tmp_path / "missing.csv")
    with open(tmp_path / "missing.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"id": D, "start_s": "2", "end_s": "12", "labels": "sheep bleating", "split": "test"}
        ]


def test_shards_are_audited_like_the_clips_they_were_made_of(out: Path, vggsound: Path, tmp_path: Path) -> None:
    shard.run(out, tmp_path / "shards", holdout=False)
    of_clips, of_shards = (data_audit.run([vggsound], place) for place in (out, tmp_path / "shards"))
    skipped = {"clips": "", "quarantined": {}, "num_missing": 0, "missing_ids": 0}
    assert of_shards.quarantined == {}
    assert of_shards.num_missing == 2
    assert of_clips.payload() | skipped == of_shards.payload() | skipped


def test_a_list_alone_is_audited_too_and_several_files_have_splits(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f'{A}, 30.000, 40.000, "/m/1,/m/2"\n{B}, 7.000, 17.000, "/m/1"\n')
    (tmp_path / "eval.csv").write_text(f'{A}, 50.000, 60.000, "/m/3"\n')
    done = data_audit.run([f"train={tmp_path}/train.csv", f"test={tmp_path}/eval.csv"])
    assert {split: coverage.listed for split, coverage in done.splits.items()} == {"train": 2, "test": 1}
    assert [(o.clips, o.videos, o.video_examples) for o in done.overlaps] == [(0, 1, [A])]
    assert done.empty_classes == []


def test_a_list_without_splits_is_compared_by_the_splits_of_the_shards(out: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"{A}_000030.mp4,dog\n{A}_000040.mp4,dog\n")
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    for number, one in enumerate(rows):
        one["split"] = ("train", "test")[number % 2] if A in one["source"] else "train"
    (out / "manifest.jsonl").write_text("".join(files.canonical_json(one) + "\n" for one in rows))
    done = data_audit.run([tmp_path / "list.csv"], out)
    assert done.splits == {"": data_audit.Coverage(2, 2)}
    assert [(o.clips, o.videos) for o in done.overlaps] == [(0, 1)]


def test_exit_3_only_when_nothing_matches(
    out: Path, vggsound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["data", "audit", str(vggsound), "--clips", str(out)]) == 0
    text = capsys.readouterr().out
    assert "3 of 5" in text
    assert "train and test" in text
    assert cli.run(["data", "audit", str(vggsound), "--clips", str(out), "--format", "json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert (payload["num_present"], payload["overlaps"][0]["videos"]) == (3, 2)
    (tmp_path / "other.csv").write_text("zzzzzzzzzzz,5,dog,train\n")
    assert cli.run(["data", "audit", str(tmp_path / "other.csv"), "--clips", str(out)]) == 3
    captured = capsys.readouterr()
    assert "0 of 1" in captured.out
    assert "no clip of" in captured.err
    assert cli.run(["data", "audit", str(vggsound)]) == 0


def test_folders_and_missing_need_clips(out: Path, vggsound: Path, tmp_path: Path) -> None:
    for call in (
        lambda: data_audit.run(["folders"]),
        lambda: data_audit.run([vggsound], missing=tmp_path / "m.txt"),
        lambda: data_audit.run([vggsound], tmp_path / "none"),
        lambda: data_audit.run([tmp_path / "none.csv"], out),
    ):
        with pytest.raises(UsageFault) as fault:
            call()
        assert fault.value.next_step
    with pytest.raises(DataFault, match="neither extracted clips nor shards"):
        data_audit.run([vggsound], vggsound.parent)
    assert data_audit.run(["folders"], out).num_present == 2


def test_published_lists_label_shards_and_videos_are_held_out_whole(out: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text(f'{A}, 30.000, 40.000, "/m/1,/m/2"\n{B}, 7.000, 17.000, "/m/2"\n')
    (tmp_path / "classes.csv").write_text('index,mid,display_name\n0,/m/2,"Speech, male"\n1,/m/1,Dog\n2,/m/9,Cat\n')
    done = shard.run(
        out, tmp_path / "shards", labels=[f"test={tmp_path}/eval.csv"], class_names=tmp_path / "classes.csv"
    )
    opened = index.load(tmp_path / "shards")
    assert opened.labels == ("Speech, male", "Dog", "Cat")
    assert (opened.multi_label, opened.splits, done.unmatched) == (True, {"train": 2, "test": 3}, 0)
    with pytest.raises(UsageFault, match=r"what differs: class_names .*, labels"):
        shard.run(out, tmp_path / "shards")


def test_boxes_travel_into_the_shards_mapped_through_the_crop(out: Path, tmp_path: Path) -> None:
    (tmp_path / "vggss.json").write_text(
        json.dumps([{"file": f"{A}_000030", "class": "dog", "bbox": [[-0.1, 0.0, 0.5, 0.5]]}])
    )
    shard.run(out, tmp_path / "shards", labels=tmp_path / "vggss.json", holdout=False)
    split = index.load(tmp_path / "shards").split("train")
    reader = ShardReader(split)
    boxes = {split.key(i): json.loads(reader.read(i, ["json"])["json"]).get("boxes") for i in range(len(split))}
    assert [found for found in boxes.values() if found is not None] == [[[0.0, 0.0, 0.5, 0.5]]]


@pytest.mark.parametrize("of_shards", [False, True])
def test_a_cavmae_export_names_files_that_are_there_and_reads_back(out: Path, tmp_path: Path, of_shards: bool) -> None:
    (tmp_path / "labels.csv").write_text(
        f'path,label,split\n{A}_000030.mp4,"dog, big",train\n{A}_000040.mp4,cat,test\nx/{B}_000007.mp4,cat,train\n'
        f"y/{B}_7_17.mkv,cat,train\nstranger.mp4,cat,train\n"
    )
    shard.run(out, tmp_path / "shards", labels=tmp_path / "labels.csv")
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    if not of_shards:
        for one in rows:
            one["labels"], one["split"] = ["dog, big"] if "30" in one["source"] else ["cat"], "train"
        (out / "manifest.jsonl").write_text("".join(files.canonical_json(one) + "\n" for one in rows))
    target = tmp_path / "cav" / "all.json"
    target.parent.mkdir()
    done = data_convert.run(tmp_path / "shards" if of_shards else out, target)
    assert (done.num_clips, done.num_rows, done.left_out) == (5, 5, {}) if of_shards else (5, 6, {"no_audio": 1})
    data = json.loads(target.read_text())["data"]
    usable = {one["uid"] for one in rows if one["status"] == "ok"}
    assert {entry["video_id"] for entry in data} == usable
    for entry in data:
        content = entry["video_id"].encode() if "bbbb" not in entry["video_id"] else b"same"
        assert Path(entry["wav"]).read_bytes() == b"audio.flac" + content
        for i in range(2):
            frame = Path(entry["video_path"]) / f"frame_{i}" / f"{entry['video_id']}.jpg"
            assert frame.read_bytes() == f"{i:02d}.jpg".encode() + content
    assert (tmp_path / "cav" / "all_labels.csv").read_text() == (
        'index,mid,display_name\n0,"label_0","cat"\n1,"label_1","dog, big"\n'
    )
    assert (tmp_path / "cav" / "all_test.json").exists() == of_shards
    again = shard.run(out, tmp_path / "again", labels=target, class_names=tmp_path / "cav" / "all_labels.csv")
    assert (again.unmatched, again.unlabelled, again.num_labels) == (0, 0, 2)
    with pytest.raises(UsageFault, match="exists"):
        data_convert.run(out, target)


def test_clips_without_sound_or_frames_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [row("a.mp4", labels=["dog"]), row("b.mp4", audio="", modalities=["video"]), row("c.wav", frames=0)]
    done = data_convert.run(extraction(tmp_path / "o", rows), tmp_path / "x.json", media=False)
    assert (done.num_clips, done.num_rows, done.left_out) == (1, 3, {"no_audio": 1, "no_video": 1})
    assert not (tmp_path / "x").exists()
    for target, to in ((tmp_path / "y.txt", "cavmae"), (tmp_path / "y.json", "other")):
        with pytest.raises(UsageFault):
            data_convert.run(tmp_path / "o", target, to=to)
