"""Pictures as clips of one frame: what is kept, what is made anew, and what is quarantined with which reason."""

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_folders import PICTURES, encoded, picture
from PIL import Image

from kdctool.errors import DataFault, UsageFault
from kdctool.media import inputs, still
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Item, Segment, Settings
from kdctool.stages import extract, verify


def read(folder: Path, data: bytes, name: str = "a.jpg", **settings: Any) -> still.Picture:
    path = folder / name
    path.write_bytes(data)
    return still.read(
        str(path), Item(str(path), name), Settings(**{"frames": 1, "images": True, "fit": "keep", **settings})
    )


def reason(folder: Path, data: bytes, **settings: Any) -> str:
    with pytest.raises(Rejected) as caught:
        read(folder, data, **settings)
    return caught.value.reason


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a picture of this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_a_jpeg_that_need_not_shrink_is_kept_byte_for_byte(tmp_path: Path) -> None:
    data = encoded(picture(1))
    found = read(tmp_path, data)
    assert found.content == data
    assert (found.width, found.height, found.crop) == (60, 44, [0, 0, 60, 44])


def test_the_short_side_of_a_large_picture_becomes_size(tmp_path: Path) -> None:
    found = read(tmp_path, encoded(picture(1, (300, 200))), size=100)
    stored = Image.open(io.BytesIO(found.content))
    assert stored.size == (150, 100)
    assert (found.width, found.height, found.crop) == (300, 200, [0, 0, 300, 200])


@pytest.mark.parametrize(("fit", "shown"), [("crop", [75, 0, 150, 150]), ("pad", [0, -75, 300, 300])])
def test_a_picture_is_made_square_where_that_is_asked(tmp_path: Path, fit: str, shown: list[int]) -> None:
    found = read(tmp_path, encoded(picture(1, (300, 150))), size=100, fit=fit)
    assert found.pixels.shape == (100, 100, 3)
    assert found.crop == shown


def test_a_turned_photograph_is_stored_upright(tmp_path: Path) -> None:
    image, exif = picture(3, (60, 44)), Image.Exif()
    exif[0x0112] = 6
    found = read(tmp_path, encoded(image, exif=exif))
    assert (found.width, found.height, found.rotation) == (44, 60, 270)
    assert found.pixels.shape == (60, 44, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_pixel_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(picture(1).convert(mode), "JPEG" if mode == "CMYK" else kind)
    found = read(tmp_path, data)
    stored = Image.open(io.BytesIO(found.content))
    assert stored.format == "JPEG"
    assert stored.mode == "RGB"


def test_of_sixteen_bits_the_upper_eight_are_seen(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = read(tmp_path, encoded(Image.fromarray(wide), "PNG"))
    assert np.array_equal(found.pixels[..., 0], (wide >> 8).astype(np.uint8))


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    assert read(tmp_path, encoded(picture(1), "WEBP", lossless=True), "a.jpg").pixels.shape == (44, 60, 3)


def test_hostile_pictures_have_their_reasons(tmp_path: Path) -> None:
    whole = encoded(picture(1, (200, 200)))
    assert reason(tmp_path, whole[: len(whole) // 2]) == "truncated"
    assert reason(tmp_path, b"no picture at all") == "unreadable"
    assert reason(tmp_path, encoded(picture(1), "GIF")) == "unreadable"
    assert reason(tmp_path, b"") == "empty"
    assert reason(tmp_path, bomb(30_000, 30_000)) == "too_large"
    assert reason(tmp_path, bomb(8_000, 8_000)) == "too_large"
    assert reason(tmp_path, bomb(64, 64)) in ("truncated", "decode_error")
    png = bytearray(encoded(picture(1), "PNG"))
    png[60] ^= 0xFF
    assert reason(tmp_path, bytes(png)) in ("truncated", "decode_error", "unreadable")


def test_a_strip_that_readers_would_refuse_is_not_stored(tmp_path: Path) -> None:
    strip = Image.new("RGB", (65_000, 400))
    assert reason(tmp_path, encoded(strip), size=512) == "too_large"


def test_a_picture_has_no_later_moment(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(1)))
    with pytest.raises(Rejected, match="outside"):
        still.read(str(path), Item(str(path), "a.jpg", Segment(2000)), PICTURES)


def test_a_folder_of_pictures_becomes_clips_and_quarantine(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "dogs").mkdir(parents=True)
    (folder / "dogs" / "1.JPG").write_bytes(encoded(picture(1)))
    (folder / "2.png").write_bytes(encoded(picture(2), "PNG"))
    (folder / "bad.webp").write_bytes(b"RIFF")
    (folder / "video.mp4").write_bytes(b"is left alone")
    os.mkfifo(folder / "pipe.jpg")
    done = extract.run(str(folder), str(out), PICTURES, workers=1)
    rows = {row["source"]: row for row in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "dogs/1.JPG": "", "2.png": "", "bad.webp": "unreadable", "pipe.jpg": "is_fifo",
    }  # fmt: skip
    kept = rows["dogs/1.JPG"]
    assert (kept["modalities"], kept["audio"], kept["frame_times"]) == (["video"], "", [0.0])
    assert (out / kept["frames"][0]).read_bytes() == (folder / "dogs" / "1.JPG").read_bytes()
    assert done.num_ignored == 1
    assert not verify.check(out).damages
    again = extract.run(str(folder), str(out), PICTURES, workers=1)
    assert again.num_made == 0


def test_pictures_among_videos_are_left_alone_and_told_of_where_there_is_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(picture(1)))
    with pytest.raises(DataFault) as caught:
        inputs.find(tmp_path)
    assert "1 pictures: --images" in caught.value.next_step
    (tmp_path / "1.jpg").rename(tmp_path / "1.mp4")
    with pytest.raises(DataFault) as caught:
        inputs.find(tmp_path, images=True)
    assert "leave --images out" in caught.value.next_step


@pytest.mark.parametrize("wrong", [{"frames": 3}, {"fps": 1.0}, {"stride_s": 2.0}])
def test_settings_of_time_do_not_go_with_pictures(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageFault, match="one frame"):
        Settings(**{"frames": 1, "images": True, **wrong}).check()


def test_frames_of_videos_cannot_keep_their_shape() -> None:
    with pytest.raises(UsageFault, match="--images"):
        Settings(fit="keep").check()


def test_a_folder_of_videos_is_recorded_as_before() -> None:
    assert "images" not in Settings().record()
