"""Published label files: each format is found by its content and read as its authors meant it."""

from pathlib import Path

import pytest

from kdctool.errors import DataFault, UsageFault
from kdctool.shards.formats import LabelRow, formats
from kdctool.shards.labels import LabelOptions, detect, label_sources, read_class_names, read_labels

CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/m/068hy,"Pets"\n'


def read(tmp_path: Path, text: str, **options: str) -> list[LabelRow]:
    path = tmp_path / "labels"
    path.write_text(text, encoding="utf-8")
    return read_labels(path, **options)  # type: ignore[arg-type]


def short(rows: list[LabelRow]) -> list[tuple[object, ...]]:
    return [(row.clip, row.start_s, row.end_s, row.labels, row.split) for row in rows]


@pytest.mark.parametrize("name", formats.names())
def test_every_format_is_found_by_its_content_alone(tmp_path: Path, name: str) -> None:
    example = formats.get(name).cls.example
    (tmp_path / "list").write_text(example)
    assert detect(tmp_path / "list") == name
    (tmp_path / "list").write_text("\ufeff" + example.replace("\n", "\r\n"), encoding="utf-8")
    rows = read_labels(tmp_path / "list")
    assert rows == read_labels(tmp_path / "list", format=name)
    assert all(row.clip and row.labels and row.origin.endswith("list") for row in rows)


@pytest.mark.parametrize("name", formats.names())
def test_a_damaged_line_ends_with_its_file_and_place(tmp_path: Path, name: str) -> None:
    damaged = formats.get(name).cls.example.rstrip("\n") + "\nx,,,,,,,&&\n"
    with pytest.raises(DataFault, match=r"labels(:\d+:| is not JSON)") as fault:
        read(tmp_path, damaged)
    assert fault.value.next_step


def test_audioset_has_comments_spaces_after_commas_and_several_mids(tmp_path: Path) -> None:
    text = '# YTID, start_seconds, end_seconds, positive_labels\n--aE2O5G5WE, 0.000, 10.000, "/m/03fwl,/m/04rlf"\n'
    assert short(read(tmp_path, text)) == [("--aE2O5G5WE", 0.0, 10.0, ("/m/03fwl", "/m/04rlf"), "")]


def test_vggsound_keeps_commas_of_quoted_labels(tmp_path: Path) -> None:
    text = '"---g-f_I2yQ",1,"people eating, crisps",test\n-abcdefghij,305,dog barking,train\n'
    assert short(read(tmp_path, text)) == [
        ("---g-f_I2yQ", 1.0, 11.0, ("people eating, crisps",), "test"),
        ("-abcdefghij", 305.0, 315.0, ("dog barking",), "train"),
    ]
    assert short(read(tmp_path, "YouTube ID,start seconds,label,train/test split\n" + text)) == short(
        read(tmp_path, text)
    )


def test_kinetics_test_lists_have_no_label(tmp_path: Path) -> None:
    text = "youtube_id,time_start,time_end,split\n--abcdefghi,84,94,test\n"
    assert short(read(tmp_path, text)) == [("--abcdefghi", 84.0, 94.0, (), "test")]


def test_ave_names_the_video_whatever_the_event(tmp_path: Path) -> None:
    text = "Rodents, rats, mice&RUhOCu3LNXM&good&3&10\nChurch bell&RUhOCu3LNXM&good&0&3\n"
    assert short(read(tmp_path, text)) == [
        ("RUhOCu3LNXM", None, None, ("Rodents, rats, mice",), ""),
        ("RUhOCu3LNXM", None, None, ("Church bell",), ""),
    ]


def test_the_json_of_cavmae_and_the_one_of_kdc_mae_give_the_same(tmp_path: Path) -> None:
    ours = '{"data": [{"video_id": "a_000001", "wav": "/w", "video_path": "/v", "labels": "/m/1,/m/2"}]}'
    theirs = '{"data": [{"id": "a_000001", "audio": "/w", "video_path": "/v", "label": "/m/1,/m/2"}]}'
    assert (
        short(read(tmp_path, ours)) == short(read(tmp_path, theirs)) == [("a_000001", None, None, ("/m/1", "/m/2"), "")]
    )


def test_vggss_keeps_its_boxes_negative_coordinates_included(tmp_path: Path) -> None:
    text = '[{"file": "v_000010", "class": "dog", "bbox": [[-0.1, 0, 0.5, 1.0], [0, 0, 1, 1]]}]'
    assert read(tmp_path, text)[0].boxes == ((-0.1, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0))
    with pytest.raises(DataFault, match="no box of four numbers"):
        read(tmp_path, text.replace("-0.1", "NaN"))


def test_class_names_turn_mids_into_names_in_the_order_of_their_index(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(CLASSES.replace("0,/m/09x0r", "7,/m/09x0r"))
    classes = read_class_names(tmp_path / "classes.csv")
    assert classes.names == ("Male speech, man speaking", "Pets", "Speech")
    (tmp_path / "eval.csv").write_text('-0RWZT-miFs, 0.000, 10.000, "/m/05zppz,/m/068hy"\n')
    options = LabelOptions((f"test={tmp_path}/eval.csv",), class_names=tmp_path / "classes.csv")
    given = options.read(())
    assert given.known == classes.names
    assert short(given.rows) == [("-0RWZT-miFs", 0.0, 10.0, ("Male speech, man speaking", "Pets"), "test")]


def test_a_mid_without_a_name_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(CLASSES)
    (tmp_path / "eval.csv").write_text('-0RWZT-miFs, 0.000, 10.000, "/m/zzz"\n')
    with pytest.raises(DataFault, match=r"eval.csv:1: label '/m/zzz' is not in .*classes.csv"):
        LabelOptions((str(tmp_path / "eval.csv"),), class_names=tmp_path / "classes.csv").read(())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a,b\n", "needs a first line"),
        ("", "needs a first line"),
        ("index,mid,display_name\nx,y,z\n", ":2: not index,mid,display_name"),
        ("index,mid,display_name\n0,a,dog\n1,b,dog\n", "'dog' more than once"),
        ("index,mid,display_name\n0,a,dog\n1,a,cat\n", "'a' more than once"),
    ],
)
def test_class_names_that_are_none_are_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataFault) as fault:
        read_class_names(tmp_path / "classes.csv")
    assert word in fault.value.cause


def test_an_unknown_format_and_an_unknown_name_of_one_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="first line is: 'once upon a time'") as fault:
        read(tmp_path, "once upon a time\n")
    assert "vggsound" in fault.value.next_step
    with pytest.raises(UsageFault, match="no label format is called 'vgg'"):
        LabelOptions(("x",), format="vgg").read(())


def test_a_split_stands_before_the_file_unless_a_file_has_that_name(tmp_path: Path) -> None:
    strange = tmp_path / "a=b.csv"
    strange.write_text("x")
    assert [(s.split, s.path) for s in label_sources([strange, "val=x.csv", "y.csv"])] == [
        ("", strange),
        ("val", Path("x.csv")),
        ("", Path("y.csv")),
    ]
    with pytest.raises(DataFault, match="cannot be called"):
        label_sources(["a b=x.csv"])


def test_folders_name_classes_and_a_split_folder_may_stand_before(tmp_path: Path) -> None:
    videos = ["dogs/1.mp4", "train/cats/2.mp4", "x/val/birds/3.mp4", "4.mp4", "test/5.mp4"]
    rows = LabelOptions(("folders",)).read(videos).rows
    assert [(row.clip, row.labels, row.split) for row in rows] == [
        ("dogs/1.mp4", ("dogs",), ""),
        ("train/cats/2.mp4", ("cats",), "train"),
        ("x/val/birds/3.mp4", ("birds",), "val"),
        ("test/5.mp4", ("test",), ""),
    ]
    with pytest.raises(DataFault, match="no video lies in a folder"):
        LabelOptions(("folders",)).read(["4.mp4"])
    with pytest.raises(UsageFault, match="stands alone"):
        LabelOptions(("folders", "x.csv")).read(videos)
