"""Folders, lists and CSV files become items; names of every kind survive."""

import os
import re
from pathlib import Path

import pytest

from kdctool.errors import DataFault, UsageFault
from kdctool.media import inputs
from kdctool.media.names import clip_folder, source_id, uid
from kdctool.media.settings import Segment

NAMES = [
    "with space.mp4",
    "quote'\".mp4",
    "$(touch x).mp4",
    "-dash.mp4",
    "%03d.mp4",
    "a:b.mp4",
    "new\nline.mp4",
    "日本.mp4",
    "dots.in.name.MP4",
]


def test_a_folder_is_searched_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name in [*NAMES, "sub/deep/x.webm", ".hidden/x.mp4", ".x.mp4", "notes.txt", "sub/readme"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = inputs.find(tmp_path)
    assert sorted(item.source for item in found.items) == sorted([*NAMES, "sub/deep/x.webm"])
    assert found.num_ignored == 3  # .x.mp4, notes.txt and sub/readme; a hidden folder is not entered.
    assert all(os.path.isabs(item.path) and os.path.exists(item.path) for item in found.items)


def test_links_between_folders_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    assert [item.source for item in inputs.find(tmp_path).items] == ["a/x.mp4"]


def test_what_looks_like_a_video_but_is_none_is_an_item_too(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    assert [item.source for item in inputs.find(tmp_path).items] == ["dangling.mp4", "fifo.mp4", "folder.mp4"]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.mp4"))).touch()
    (item,) = inputs.find(tmp_path).items
    assert os.fsencode(item.source) == b"\xff\xe9.mp4"
    assert re.fullmatch(r"[a-z0-9_-]+", uid(item.source, 0))


def test_missing_empty_and_foreign_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="does not exist"):
        inputs.find(tmp_path / "nothing")
    with pytest.raises(DataFault, match="no media files"):
        inputs.find(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageFault, match="neither"):
        inputs.find(tmp_path / "x.json")
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(DataFault, match="names no files"):
        inputs.find(tmp_path / "list.txt")


def test_one_file_is_an_input_by_the_name_it_has_in_its_folder(tmp_path: Path) -> None:
    for name in ("one.MP4", "two.mp4", "p.jpg"):
        (tmp_path / name).touch()
    (item,) = inputs.find(tmp_path / "one.MP4").items
    assert item in inputs.find(tmp_path).items
    assert [item.source for item in inputs.find(tmp_path / "p.jpg", images=True).items] == ["p.jpg"]
    for name, images in (("p.jpg", False), ("one.MP4", True)):
        with pytest.raises(UsageFault, match="neither"):
            inputs.find(tmp_path / name, images=images)


def test_a_list_names_files_relative_to_itself_or_absolute(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\ufeffa b.mp4\r\nsub/-x.mp4\n\n/elsewhere/y.mp4\na b.mp4\n../z.mp4\n")
    found = inputs.find(tmp_path / "list.txt")
    assert [item.source for item in found.items] == ["../z.mp4", "/elsewhere/y.mp4", "a b.mp4", "sub/-x.mp4"]
    assert found.items[2].path == str(tmp_path / "a b.mp4")
    assert found.num_duplicates == 1


def test_a_folder_and_a_list_of_it_give_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.mp4").touch()
    (tmp_path / "list.txt").write_text(f"{tmp_path}/sub/x.mp4\n")
    assert inputs.find(tmp_path / "list.txt").items == inputs.find(tmp_path).items


def test_a_csv_gives_segments_labels_and_splits(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "path,start,end,label,labels,split\n"
        'x.mp4,1.5,4,"violin, fiddle",,train\n'
        "x.mp4,7,,,dog;cat; dog,test\n"
        "y.mp4,,,,,\n"
    )
    first, second, third = inputs.find(tmp_path / "a.csv").items
    assert (first.segment, first.labels, first.split) == (Segment(1500, 2500), ("violin, fiddle",), "train")
    assert (second.segment, second.labels, second.split) == (Segment(7000, None), ("dog", "cat"), "test")
    assert (third.segment, third.labels, third.split) == (None, (), "")
    (tmp_path / "b.csv").write_text("path,start_s,duration_s\nx.mp4,1.5,2.5\n")
    assert inputs.find(tmp_path / "b.csv").items[0].segment == first.segment


def test_lines_that_name_a_clip_twice_give_it_all_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,start,end,label\nx.mp4,0,5,dog\nx.mp4,0,5,cat\n")
    found = inputs.find(tmp_path / "a.csv")
    assert [item.labels for item in found.items] == [("dog", "cat")]
    assert found.num_duplicates == 1
    (tmp_path / "a.csv").write_text("path,start,end\nx.mp4,0,5\nx.mp4,0,6\n")
    with pytest.raises(UsageFault, match=r"a\.csv:2 and :3"):
        inputs.find(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nx.mp4\n", "no column `path`"),
        ("path,start\nx.mp4,soon\n", ":2: start = 'soon'"),
        ("path,start\nx.mp4,nan\n", ":2: start = 'nan'"),
        ("path,start\nx.mp4,-1\n", ":2: start = '-1'"),
        ("path,start,end\nx.mp4,5,5\n", ":2: the segment ends"),
    ],
)
def test_a_wrong_csv_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageFault, match=re.escape(message)):
        inputs.find(tmp_path / "a.csv")


def test_uids_are_safe_and_distinct() -> None:
    sources = [*NAMES, "a/x.mp4", "b/x.mp4", "X.mp4", "x.mp4", "\u00e9.mp4", "e\u0301.mp4", "x.mkv", "..mp4", "x" * 255]
    uids = [uid(source, start) for source in sources for start in (0, 1, 10_000)]
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"[a-z0-9_-]{1,40}-[0-9a-f]{10}", name) for name in uids)
    assert clip_folder("x-0123456789") == "clips/01/x-0123456789"
    assert source_id("a/x.mp4") != source_id("b/x.mp4")
