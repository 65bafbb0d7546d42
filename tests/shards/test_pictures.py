"""Image shards that others made, read as they are: labels in .cls or JSON, pictures that are not JPEG refused."""

import json
from pathlib import Path

import pytest
import torch
from picture_folders import encoded, picture, picture_shards

from kdctool import recipe as recipes
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.labels import read_labels
from kdctool.data.order import Request
from kdctool.errors import DataFault
from kdctool.shards import about, index
from kdctool.shards.write import write_shard
from kdctool.stages import recipe_new

RECIPE = recipes.validate({"name": "t", "model": {"image_size": 32}})


def theirs(folder: Path, members: list[list[tuple[str, bytes]]]) -> Path:
    folder.mkdir()
    write_shard(folder / "train-000.tar", "train", [(f"{n:04d}", found) for n, found in enumerate(members)])
    return folder


def jpeg(seed: int) -> tuple[str, bytes]:
    return "jpg", encoded(picture(seed))


@pytest.mark.parametrize(
    "label",
    [
        lambda n: [("cls", str(n).encode())],
        lambda n: [("json", json.dumps({"label": n}).encode())],
        lambda n: [("json", json.dumps({"cls": str(n), "caption": "x"}).encode())],
        lambda n: [("json", json.dumps({"labels": [str(n)]}).encode()), ("cls", b"999")],
        lambda n: [("json", b'{"caption": "x"}'), ("cls", str(n).encode() + b"\n")],
    ],
)
def test_labels_are_found_where_published_shards_keep_them(tmp_path: Path, label) -> None:
    numbers = (10, 2, 1, 2)
    made = index.load(theirs(tmp_path / "s", [[jpeg(n), *label(n)] for n in numbers]))
    assert made.labels == ("1", "2", "10")
    split = made.split("train")
    assert read_labels(made, split).label.tolist() == [2, 1, 0, 1]
    raw = Clips(made, split, RECIPE, training=False, with_labels=True, parts=("video",)).__getitems__(
        [Request(n, 0, n) for n in range(4)]
    )
    assert isinstance(raw, dict)
    assert raw["label"].argmax(1).tolist() == [2, 1, 0, 1]
    assert set(ToBatch(RECIPE, torch.device("cpu"), training=False)(raw)) == {"clip", "row", "frame", "label"}


def test_a_class_name_is_a_label_too(tmp_path: Path) -> None:
    made = index.load(theirs(tmp_path / "s", [[jpeg(1), ("cls", b"tench")], [jpeg(2), ("cls", b"ant")]]))
    assert made.labels == ("ant", "tench")


def test_captions_are_no_labels(tmp_path: Path) -> None:
    made = index.load(theirs(tmp_path / "s", [[jpeg(1), ("txt", b"a dog"), ("json", b'{"caption": "a dog"}')]]))
    assert made.labels == ()
    assert len(made.split("train")) == 1


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_pictures_that_are_not_jpeg_are_refused_with_the_way_out(tmp_path: Path, kind: str) -> None:
    folder = theirs(tmp_path / "s", [[(kind, encoded(picture(1), kind)), ("cls", b"1")]])
    with pytest.raises(DataFault, match=f"[.]{kind} pictures") as caught:
        index.load(folder)
    assert "--images --to-shards" in caught.value.next_step
    assert not (folder / "index.json").exists()


def test_a_mask_beside_a_jpeg_is_no_reason_to_refuse(tmp_path: Path) -> None:
    made = index.load(theirs(tmp_path / "s", [[jpeg(1), ("mask.png", encoded(picture(1), "png"))]]))
    assert len(made.split("train")) == 1


@pytest.mark.parametrize("wrong", [b"", b"\xff\xfe", b"x" * 300, b"a\0b"])
def test_a_cls_member_without_a_label_is_named(wrong: bytes) -> None:
    with pytest.raises(DataFault, match=r"clip 7[.]cls"):
        about.about({"cls": wrong}, "clip 7")


def test_a_folder_of_pictures_goes_through_the_same_commands(tmp_path: Path) -> None:
    made = index.load(picture_shards(tmp_path))
    assert made.labels == ("blue", "green", "red")
    assert made.settings == {"images": True, "frames": 1, "size": 512, "fit": "keep"}
    assert sum(made.splits.values()) == 48
    split = made.split("train")
    raw = Clips(made, split, RECIPE, training=True, with_labels=True, parts=("video",)).__getitems__([Request(0, 0, 0)])
    assert isinstance(raw, dict)
    assert raw["frame"].shape == (1, 3, 32, 32)
    assert (
        raw["frame"].float().mean((2, 3)).argmax()
        == {"blue": 0, "green": 1, "red": 2}[made.labels[int(raw["label"].argmax())]]
    )


def test_no_audio_visual_recipe_is_written_for_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="without sound") as caught:
        recipe_new.run(picture_shards(tmp_path))
    assert "hybrid_clip" in caught.value.next_step
