"""Annotations as published: what is read, which clip it is about, which boxes can be scored, and what is refused."""

import json

import numpy as np
import pytest

from kdctool.errors import DataFault, UsageFault
from kdctool.tasks import EvalData
from kdctool.tasks.annotated import annotated, asked_of
from kdctool.tasks.truth import load

WIDE = {"width": 640, "height": 480, "crop": [80, 0, 480, 480]}
"""A 4:3 source of which the middle square is stored."""


def about(source, **more):
    told = {"source": source, "start_s": 0.0, "duration_s": 10.0, "frame_times": [float(i) for i in range(10)]}
    return {**told, **WIDE, **more}


def evaluation(*abouts):
    uids = [f"uid-{i}" for i in range(len(abouts))]
    return EvalData([], uids, uids, len(uids), abouts=list(abouts))


def found(path, *abouts, given="auto", agreement="auto"):
    return annotated(path, given, agreement, evaluation(*abouts))


def vggss(folder, *entries):
    path = folder / "vggss.json"
    path.write_text(json.dumps([{"file": name, "class": "dog", "bbox": boxes} for name, boxes in entries]))
    return path


def avdigits(folder, name="test/000.mp4", split="test", frames=25, **more):
    moving = [[i, 10, i + 20, 30] for i in range(frames)]
    still = [[60, 60, 80, 100]] * frames
    row = {
        "file": name, "split": split, "label": "3", "onset_s": 0.5, "duration_s": 0.4, "width": 112, "height": 112,
        "fps": 12.5, "sounding": {"class": 3, "boxes": moving}, "silent": {"class": 5, "boxes": still}, **more,
    }  # fmt: skip
    path = folder / "truth.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return path


def test_vggss_boxes_are_mapped_through_the_crop(tmp_path):
    path = vggss(tmp_path, ("abc_000030", [[0.25, 0.5, 0.75, 1.2], [0.0, 0.0, 0.05, 1.0]]))
    truth = found(path, about("videos/abc_000030.mp4"))
    assert (truth.format, truth.agreement, truth.missing) == ("vggss", "union", {})
    # 160 and 480 of 640 pixels across are 80 and 400 of the 480 that are stored; the second box is left of them.
    assert truth.clips[0].sounding == [
        [pytest.approx(80 / 480, abs=1e-6), 0.5, pytest.approx(400 / 480, abs=1e-6), 1.0]
    ]
    assert truth.clips[0].silent == []


def test_a_padded_frame_shrinks_its_boxes(tmp_path):
    path = vggss(tmp_path, ("abc_000030", [[0.0, 0.0, 1.0, 1.0]]))
    truth = found(path, about("abc_000030.mp4", crop=[0, -80, 640, 640]))
    assert truth.clips[0].sounding == [[0.0, pytest.approx(80 / 640), 1.0, pytest.approx(560 / 640)]]


def test_clips_that_cannot_be_scored_are_counted_with_their_reason(tmp_path):
    whole = [[0.0, 0.0, 1.0, 1.0]]
    path = vggss(
        tmp_path,
        *((f"v{i:010d}_000030", whole) for i in range(3)),
        ("v0000000003_000030", [[0.0, 0.0, 0.1, 1.0]]),
        ("v0000000004_000030", [[0.5, 0.5, 0.5001, 0.5001]]),
    )
    clips = [about(f"v{i:010d}_000030.mp4") for i in range(5)]
    clips[1] = {**clips[1], "crop": []}
    clips.append(about("other.mp4"))
    truth = found(path, *clips)
    assert sorted(truth.clips) == [0, 2]
    assert truth.missing == {
        "crop_unknown": 1, "box_outside_crop": 1, "box_under_a_pixel": 1, "not_annotated": 1,
    }  # fmt: skip


def test_annotations_without_a_clip_are_missing(tmp_path):
    path = vggss(tmp_path, *((f"v{i:010d}_000030", [[0, 0, 1, 1]]) for i in range(7)))
    told = [about("v0000000002_000030.mp4"), about("nothing.mp4"), about("v0000000005_000030.mp4")]
    choice = asked_of(path, "auto", ["a", "b", "c"], told)
    assert choice.keep.tolist() == [True, False, True]
    assert choice.missing == {"not_in_split": 5}


def test_flickr_boxes_of_several_annotators_make_a_consensus(tmp_path):
    folder = tmp_path / "Annotations"
    folder.mkdir()
    box = "<bbox><label>1</label><xmin>64</xmin><ymin>0</ymin><xmax>{}</xmax><ymax>256</ymax></bbox>"
    (folder / "10000130166.xml").write_text(
        f"<annotation><a>{box.format(192)}</a><a>{box.format(128)}</a></annotation>"
    )
    truth = found(folder, about("10000130166.mp4"))
    assert (truth.format, truth.agreement) == ("flickr", "consensus")
    assert [round(corner[2], 6) for corner in truth.clips[0].sounding] == [round(400 / 480, 6), 0.5]
    sounding, silent = truth.part([0])
    assert sorted(np.unique(sounding).tolist()) == [0.0, 0.5, 1.0]
    assert not silent.any()
    assert found(folder, about("10000130166.mp4"), agreement="union").part([0])[0].max() == 1.0


def test_flickr_corners_without_names_are_the_last_four_numbers(tmp_path):
    (tmp_path / "1.xml").write_text("<x><y><bbox><n>7</n><a>0</a><b>64</b><c>128</c><d>256</d></bbox></y></x>")
    assert load(tmp_path).rows[0].boxes == ((0.0, 0.25, 0.5, 1.0),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,x1,y1,x2,y2\n1.jpg,0,64,128,256\n1.jpg,64,64,128,256\n", ((0, 0.25, 0.5, 1), (0.25, 0.25, 0.5, 1))),
        ("file,xmin,ymin,xmax,ymax\n1.jpg,0,0.25,0.5,1\n", ((0, 0.25, 0.5, 1),)),
        ("file,x1,y1,x2,y2,width,height\n1.jpg,0,120,320,480,640,480\n", ((0, 0.25, 0.5, 1),)),
    ],
)
def test_a_table_of_boxes_is_in_pixels_of_256_in_shares_or_of_its_own_size(tmp_path, text, expected):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    truth = load(path)
    assert truth.format == "flickr"
    assert [row.clip for row in truth.rows] == ["1.jpg"]
    assert truth.rows[0].boxes == expected


def test_avdigits_boxes_are_those_of_the_frame_that_is_scored(tmp_path):
    square = {"width": 112, "height": 112, "crop": [0, 0, 112, 112]}
    path = avdigits(tmp_path)
    times = [round(i * 0.2, 6) for i in range(10)]  # Ten frames of two seconds: the sixth is at 1.0 s, number 12 or 13.
    truth = found(path, about("test/000.mp4", frame_times=times, **square))
    number = int(1.0 * 12.5 + 0.5)
    assert truth.clips[0].sounding == [[pytest.approx(x / 112, abs=1e-6) for x in (number, 10, number + 20, 30)]]
    assert truth.clips[0].silent == [[pytest.approx(x / 112, abs=1e-6) for x in (60, 60, 80, 100)]]
    assert (truth.format, truth.agreement) == ("avdigits", "union")


def test_a_late_frame_takes_the_last_box_and_a_hidden_thing_has_none(tmp_path):
    path = avdigits(tmp_path, sounding={"class": 3, "boxes": [[0, 0, 56, 56], None]})
    row = load(path).rows[0]
    assert row.at(0.0)[0] == ((0.0, 0.0, 0.5, 0.5),)
    assert row.at(0.08)[0] == ()
    assert row.at(99.0)[0] == ()
    with pytest.raises(DataFault, match="no_box_in_frame"):
        found(path, about("test/000.mp4"))


def test_rows_of_other_splits_are_not_asked_for(tmp_path):
    for i in range(4):
        avdigits(tmp_path, f"train/{i}.mp4", split="train")
    path = avdigits(tmp_path, "test/0.mp4")
    avdigits(tmp_path, "test/1.mp4")
    choice = asked_of(path, "auto", ["a"], [about("test/0.mp4")])
    assert (choice.keep.tolist(), choice.missing) == ([True], {"not_in_split": 1})


def test_equal_names_in_two_folders_are_told_apart_by_path_or_refused(tmp_path):
    avdigits(tmp_path, "test/0.mp4")
    path = avdigits(tmp_path, "hard/0.mp4", split="hard")
    truth = load(path)
    clips, unmatched = truth.find(["a", "b"], [about("hard/0.mp4"), about("test/0.mp4")])
    assert {i: row.clip for i, row in clips.items()} == {0: "hard/0.mp4", 1: "test/0.mp4"}
    assert unmatched == 0
    ambiguous = vggss(tmp_path, ("0", [[0, 0, 1, 1]]))
    with pytest.raises(DataFault, match="may be a or b"):
        load(ambiguous).find(["a", "b"], [about("hard/0.mp4"), about("test/0.mp4")])


def test_boxes_that_came_with_the_shards_need_no_file():
    inside, outside, without = {"boxes": [[0.0, 0.0, 0.5, 0.5]]}, {"boxes": []}, {}
    truth = found(None, inside, outside, without)
    assert (truth.format, sorted(truth.clips)) == ("boxes", [0])
    assert truth.missing == {"box_outside_crop": 1, "not_annotated": 1}
    assert asked_of(None, "auto", list("abc"), [inside, outside, without]).keep.tolist() == [True, True, False]
    with pytest.raises(UsageFault, match="these shards have none"):
        asked_of(None, "auto", ["a"], [without])


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageFault, match="there is no"):
        load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1, 2]", "no known format"),
        ("a.json", "", "no known format"),
        ("a.csv", "file,x1,y1,x2\n", "no known format"),
        ("a.csv", "file,x1,y1,x2,y2\n1,0,0,x,1\n", "a.csv:2: no box"),
        ("a.csv", "file,x1,y1,x2,y2\n1,0,0,nan,1\n", "a.csv:2.*is no box"),
        ("a.csv", "file,x1,y1,x2,y2\n", "holds no annotation"),
        ("a.jsonl", '{"file": "x", "sounding": {}}\n', "a.jsonl:1: no row of AV-Digits"),
        ("a.json", '[{"file": "x", "class": "c", "bbox": [[1, 2]]}]', "no box of four numbers"),
    ],
)
def test_files_that_cannot_be_understood_are_data_faults(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataFault, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<x><bbox>", "is no XML"),
        ("<x><bbox><a>1</a></bbox></x>", "without four numbers"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x/>', "declares a document type"),
    ],
)
def test_xml_that_cannot_be_trusted_is_a_data_fault(tmp_path, text, message):
    (tmp_path / "1.xml").write_text(text)
    with pytest.raises(DataFault, match=message):
        load(tmp_path)


def test_a_folder_without_xml_and_bytes_that_are_no_text_are_data_faults(tmp_path):
    with pytest.raises(DataFault, match="without XML files"):
        load(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFault, match="no text in UTF-8"):
        load(tmp_path / "a.json")


def test_no_clip_matched_names_both_sides(tmp_path):
    path = vggss(tmp_path, ("abc_000030", [[0, 0, 1, 1]]))
    with pytest.raises(DataFault, match=r"abc_000030.*other\.mp4"):
        found(path, about("other.mp4"))


def test_the_format_can_be_forced(tmp_path):
    path = vggss(tmp_path, ("abc_000030", [[0, 0, 1, 1]]))
    assert load(path, "vggss").format == "vggss"
    with pytest.raises(DataFault):
        load(path, "avdigits")
