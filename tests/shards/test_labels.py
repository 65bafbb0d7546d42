"""Label files: cells, headers, lists, and the join with a manifest's clips."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kdctool.errors import DataFault, UsageFault
from kdctool.shards.formats import Box, split_cell
from kdctool.shards.labels import check_known, read_label_list, read_labels
from kdctool.shards.matching import match_labels


@dataclass
class Clip:
    uid: str
    source: str
    labels: tuple[str, ...] = ()
    split: str = ""
    start_s: float = 0.0
    end_s: float = 10.0
    source_id: str = ""
    boxes: tuple[Box, ...] = ()


def rows(tmp_path: Path, text: str, **options: tuple[str, ...]) -> list[tuple[str, tuple[str, ...], str]]:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return [(row.clip, row.labels, row.split) for row in read_labels(path, **options)]


def test_a_label_column_keeps_commas_and_splits_at_semicolons_and_bars(tmp_path: Path) -> None:
    text = '\ufeffpath,label,split\r\na.mp4,"playing violin, fiddle",train\r\n'
    text += '"b, c.mp4",dog;cat|dog,\r\n\r\nd.mp4,,test\r\n'
    assert rows(tmp_path, text) == [
        ("a.mp4", ("playing violin, fiddle",), "train"),
        ("b, c.mp4", ("dog", "cat"), ""),
        ("d.mp4", (), "test"),
    ]


def test_a_labels_column_splits_at_commas_too(tmp_path: Path) -> None:
    assert rows(tmp_path, 'uid,labels\nx-1,"dog, cat"\nx-2,"a, b;c"\nx-3,a|b\n') == [
        ("x-1", ("dog", "cat"), ""),
        ("x-2", ("a, b", "c"), ""),
        ("x-3", ("a", "b"), ""),
    ]


def test_a_cell_that_is_a_name_of_the_list_is_one_label(tmp_path: Path) -> None:
    assert split_cell("Male speech, man speaking", frozenset({"Male speech, man speaking"}), commas=True) == [
        "Male speech, man speaking"
    ]


def test_tabs_and_semicolons_may_separate_columns(tmp_path: Path) -> None:
    assert rows(tmp_path, "path\tlabel\na b.mp4\tdog, big\n") == [("a b.mp4", ("dog, big",), "")]
    assert rows(tmp_path, "path;label\na.mp4;dog\n") == [("a.mp4", ("dog",), "")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a.mp4:dog\n", "first line"),
        ("path,label\n", "names no clips"),
        ("path,color\na,b\n", "first line"),
        ("", "first line"),
        ("path,label\na.mp4\n", ":2: 1 columns, the header has 2"),
        ("path,label\na.mp4,dog,cat\n", ":2: 3 columns"),
        ("path,label\n,dog\n", ":2: no path"),
        ("path,label,split\na,b,te/st\n", "cannot be called 'te/st'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(DataFault) as fault:
        rows(tmp_path, text)
    assert word in fault.value.cause


def test_a_missing_label_file_is_a_usage_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="No such file"):
        read_labels(tmp_path / "none.csv")


def test_a_label_list_keeps_its_order_and_refuses_repetitions(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("dog\n\ncat \n")
    assert read_label_list(path) == ("dog", "cat")
    path.write_text("dog\ncat\ndog\n")
    with pytest.raises(DataFault, match="'dog' more than once"):
        read_label_list(path)
    path.write_text("\n")
    with pytest.raises(DataFault, match="empty"):
        read_label_list(path)


def test_an_unknown_label_is_named_with_its_place_and_a_likely_name() -> None:
    with pytest.raises(DataFault, match=r"labels.csv:3: label 'dgo' is not in list.txt \(2 such labels\)") as fault:
        check_known(
            [("dog", "labels.csv:2"), ("dgo", "labels.csv:3"), ("x", "labels.csv:4")], ("cat", "dog"), "list.txt"
        )
    assert fault.value.next_step == "did you mean 'dog'?"


def joined(tmp_path: Path, text: str, clips: list[Clip]) -> list[str]:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return [row.clip for row in match_labels(clips, read_labels(path))]


def test_a_path_labels_every_clip_of_its_video_and_several_rows_add_up(tmp_path: Path) -> None:
    clips = [
        Clip("u1", "a/x.mp4"),
        Clip("u2", "a/x.mp4"),
        Clip("u3", "b/x.mp4", ("old",)),
        Clip("u4", "y.mp4", ("old",)),
    ]
    text = "path,label,split\na/x.mp4,dog,train\n./a/x.mp4,cat,\nb/x.mp4,new,test\nz.mp4,dog,\ny.mp4,,\n"
    assert joined(tmp_path, text, clips) == ["z.mp4"]
    assert [clip.labels for clip in clips] == [("dog", "cat"), ("dog", "cat"), ("new",), ("old",)]
    assert [clip.split for clip in clips] == ["train", "train", "test", ""]


def test_uids_match_uids_only(tmp_path: Path) -> None:
    clips = [Clip("u1", "a.mp4"), Clip("u2", "u1")]
    assert joined(tmp_path, "uid,label\nu1,dog\na.mp4,cat\n", clips) == ["a.mp4"]
    assert [clip.labels for clip in clips] == [("dog",), ()]


def test_absolute_paths_and_a_leading_folder_match_by_one_common_prefix(tmp_path: Path) -> None:
    clips = [Clip("u1", "a/x.mp4"), Clip("u2", "y.mp4")]
    text = "path,label\n/data/videos/a/x.mp4,dog\n/data/videos/y.mp4,cat\n/data/other/y.mp4,cow\n"
    assert joined(tmp_path, text, clips) == ["/data/other/y.mp4"]
    assert [clip.labels for clip in clips] == [("dog",), ("cat",)]


def test_two_folders_that_would_fit_equally_match_nothing(tmp_path: Path) -> None:
    clips = [Clip("u1", "x.mp4")]
    assert joined(tmp_path, "path,label\ntrain/x.mp4,dog\nval/x.mp4,cat\n", clips) == ["train/x.mp4", "val/x.mp4"]


def test_a_stray_path_does_not_borrow_a_clip_when_others_match_as_they_are(tmp_path: Path) -> None:
    clips = [Clip("u1", "x.mp4"), Clip("u2", "y.mp4")]
    assert joined(tmp_path, "path,label\nx.mp4,dog\nother/y.mp4,cat\n", clips) == ["other/y.mp4"]


def test_one_clip_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r":3 puts 'x.mp4' into 'test', line 2 into 'train'"):
        joined(tmp_path, "path,label,split\nx.mp4,a,train\nx.mp4,a,test\n", [Clip("u1", "x.mp4")])
