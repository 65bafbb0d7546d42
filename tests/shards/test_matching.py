"""Which file is which clip of a published list."""

from dataclasses import dataclass, field

import pytest

from kdctool.errors import DataFault
from kdctool.shards.extraction import boxes_in_frame
from kdctool.shards.formats import Box, LabelRow
from kdctool.shards.matching import Matcher, clip_of, match_labels, video_in_name

ID = "-_aB3dEfG_0"


@dataclass
class Clip:
    source: str
    start_s: float = 0.0
    end_s: float = 10.0
    uid: str = ""
    labels: tuple[str, ...] = ()
    split: str = ""
    source_id: str = ""
    boxes: tuple[Box, ...] = field(default=())

    def __post_init__(self) -> None:
        self.uid = self.uid or f"{self.source}@{self.start_s:g}"


def video(start: float | None, end: float | None = None, clip: str = ID, split: str = "") -> LabelRow:
    return LabelRow(clip, "video", ("dog",), split, 1, start, end)


def name(clip: str) -> LabelRow:
    return LabelRow(clip, "name", ("dog",), "", 1)


def found(clips: list[Clip], row: LabelRow, *others: LabelRow) -> list[str]:
    return [clip.uid for clip in Matcher(clips, [row, *others]).find(row)]


NAMES = [
    f"{ID}_000030.mp4",
    f"deep/er/{ID}_000030.WEBM",
    f"{ID}_000030_000040.mp4",
    f"{ID}_30.mp4",
    f"{ID}_30_40.mkv",
    f"{ID}_30.000.mp4",
    f"{ID}_30.000_40.000.mp4",
    f"{ID}_30000_40000.mp4",
    f"{ID}_30000.wav",
    f"Y{ID}_30.000.wav",
    f"Y{ID}_30.000_40.000.flac",
    f"{ID}.mp4",
    f"Y{ID}.wav",
]


@pytest.mark.parametrize("source", NAMES)
def test_every_usual_name_of_a_cut_clip_is_found(source: str) -> None:
    clips = [Clip(source), Clip("other_000030.mp4"), Clip(f"{ID[:-1]}9_000030.mp4")]
    assert found(clips, video(30.0, 40.0)) == [clips[0].uid]
    assert found(clips, video(30.0)) == [clips[0].uid]
    assert found(clips, video(None)) == [clips[0].uid]
    assert found(clips, video(30.0, clip="zzzzzzzzzzz")) == []


@pytest.mark.parametrize("source", NAMES[:-2])
def test_another_start_is_another_clip(source: str) -> None:
    assert found([Clip(source)], video(40.0, 50.0)) == []
    assert found([Clip(source)], video(3.0, 13.0)) == []


@pytest.mark.parametrize("written", [f"{ID}_000030", f"{ID}_000030.mp4", f"{ID}_30.000", f"x/{ID}_30_40.mp4"])
@pytest.mark.parametrize("source", NAMES)
def test_a_list_of_names_finds_the_clip_under_its_other_names(source: str, written: str) -> None:
    assert found([Clip(source), Clip("z.mp4")], name(written)) == [f"{source}@0"]


def test_two_segments_of_a_whole_video_are_found_where_they_were_cut() -> None:
    clips = [Clip(f"{ID}.mp4", start, start + 10) for start in (0.0, 30.0, 35.0, 40.0)]
    assert found(clips, video(30.0, 40.0), video(0.0, 10.0)) == [clips[1].uid]
    assert found(clips, video(0.0, 10.0), video(30.0, 40.0)) == [clips[0].uid]
    assert found(clips, video(50.0, 60.0), video(0.0)) == []


def test_windows_inside_a_segment_belong_to_it() -> None:
    clips = [Clip(f"{ID}.mp4", start, start + 5.2) for start in (25.0, 30.0, 35.0, 40.0)]
    assert found(clips, video(30.0, 40.0)) == [clips[1].uid, clips[2].uid]


def test_the_whole_file_is_the_only_listed_segment_but_never_one_of_several() -> None:
    clips = [Clip(f"{ID}.mp4")]
    assert found(clips, video(30.0, 40.0)) == [clips[0].uid]
    assert found(clips, video(30.0, 40.0), video(60.0, 70.0)) == []


def test_a_uid_is_a_name_too_and_equal_stems_are_all_meant() -> None:
    clips = [Clip("a/x.mp4", uid="x-0123456789"), Clip("b/x.mp4", uid="x-9876543210")]
    assert found(clips, name("x-9876543210")) == ["x-9876543210"]
    assert found(clips, name("a/x.mp4")) == ["x-0123456789"]
    assert found(clips, name("x")) == ["x-0123456789", "x-9876543210"]


def test_a_matched_clip_takes_labels_split_boxes_and_its_source_video() -> None:
    clips = [Clip(f"{ID}_000030.mp4"), Clip(f"{ID}_000040.mp4"), Clip("z.mp4", source_id="z")]
    rows = [
        LabelRow(ID, "video", ("dog",), "train", 1, 30.0, 40.0),
        LabelRow(ID, "video", ("cat",), "train", 2, 30.0, 40.0),
        LabelRow(f"{ID}_000040", "name", ("cow",), "", 3, boxes=((0.0, 0.0, 1.0, 1.0),)),
        LabelRow("lost", "name", (), "", 4),
    ]
    assert [row.clip for row in match_labels(clips, rows)] == ["lost"]
    assert [(c.labels, c.split, c.source_id) for c in clips] == [
        (("dog", "cat"), "train", ID),
        (("cow",), "", ID),
        ((), "", "z"),
    ]
    assert clips[1].boxes == ((0.0, 0.0, 1.0, 1.0),)


def test_one_clip_in_two_splits_of_two_files_names_both_places() -> None:
    rows = [
        LabelRow(ID, "video", (), "train", 7, 30.0, 40.0, origin="a.csv"),
        LabelRow(ID, "video", (), "test", 9, 30.0, 40.0, origin="b.csv"),
    ]
    with pytest.raises(DataFault, match=r"b.csv:9 puts .* into 'test', a.csv:7 into 'train'"):
        match_labels([Clip(f"{ID}_000030.mp4")], rows)


def test_a_clip_has_one_text_whichever_list_names_it() -> None:
    rows = [video(30.0, 40.0), name(f"{ID}_000030.mp4"), name(f"{ID}_30.000")]
    assert {clip_of(row) for row in rows} == {f"{ID}_30"}
    assert clip_of(LabelRow(f"v/{ID}_30.mp4", "path", (), "", 1)) == f"v/{ID}_30.mp4"
    assert video_in_name(f"a/{ID}_000030.mp4") == ID
    assert video_in_name("clip_01.mp4") == video_in_name(f"{ID}.mp4") == ""


def test_boxes_follow_the_crop_and_empty_ones_go() -> None:
    row = {"crop": [40, 0, 240, 240], "width": 320, "height": 240}
    boxes = ((0.125, 0.0, 0.875, 1.0), (-0.1, 0.5, 0.5, 1.2), (0.0, 0.0, 0.1, 1.0), (0.5, 0.5, 0.5, 0.9))
    assert boxes_in_frame(boxes, row) == [[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]]
    assert boxes_in_frame(boxes, row | {"crop": []}) == []
