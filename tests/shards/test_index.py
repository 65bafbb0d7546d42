"""The index: opening shards, ours and others', and reading members through it."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from kdctool.errors import DataFault, VerificationFault
from kdctool.shards import index
from kdctool.shards.foreign import split_of
from kdctool.shards.read import ShardReader
from kdctool.shards.write import write_shard


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def flac(value: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(8000, value, np.int16), 16000, format="FLAC")
    return buffer.getvalue()


def sample(number: int, labels: list[str] | None = None) -> list[tuple[str, bytes]]:
    about = [("json", json.dumps({"labels": labels}).encode())] if labels is not None else []
    return [*about, ("flac", flac(number)), ("0.jpg", jpeg(number)), ("1.jpg", jpeg(number + 50))]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Two training shards of five and three clips and a test shard of two, with an index."""
    folder = tmp_path / "shards"
    folder.mkdir()
    sizes = {"train-000000.tar": 5, "train-000001.tar": 3, "test-000000.tar": 2}
    first, entries = 0, []
    for name, size in sizes.items():
        clips = [(f"clip-{n}", sample(n, ["dog"])) for n in range(first, first + size)]
        entries.append(write_shard(folder / name, name.partition("-")[0], clips))
        first += size
    index.write(index.Index(folder, ("cat", "dog"), False, {"frames": 2}, tuple(entries), {"manifest": "x"}))
    return folder


def test_a_split_numbers_its_clips_through_its_shards(ours: Path) -> None:
    opened = index.load(ours)
    split = opened.split("train")
    assert opened.splits == {"train": 8, "test": 2}
    assert (opened.labels, opened.multi_label, opened.settings) == (("cat", "dog"), False, {"frames": 2})
    assert (len(split), split.sizes) == (8, [5, 3])
    assert [split.key(i) for i in range(8)] == [f"clip-{n}" for n in range(8)]
    assert [split.path(i).name for i in (0, 4, 5, 7)] == ["train-000000.tar"] * 2 + ["train-000001.tar"] * 2
    assert list(split.members(6)) == ["json", "flac", "0.jpg", "1.jpg"]
    for wrong in (-1, 8):
        with pytest.raises(IndexError):
            split.key(wrong)


def test_members_are_read_as_they_were_written(ours: Path) -> None:
    reader = ShardReader(index.load(ours).split("train"))
    for i in (7, 0, 5, 4):
        assert reader.read(i, ["1.jpg", "json"]) == {"1.jpg": jpeg(i + 50), "json": b'{"labels": ["dog"]}'}
        assert reader.read(i, ["flac"])["flac"] == flac(i)


def test_an_unknown_split_or_member_names_those_that_exist(ours: Path) -> None:
    opened = index.load(ours)
    with pytest.raises(DataFault) as fault:
        opened.split("val")
    assert "train (8 clips), test (2 clips)" in fault.value.next_step
    with pytest.raises(DataFault, match=r"clip-0 has no member 'wav', only json, flac, 0.jpg, 1.jpg"):
        ShardReader(opened.split("train")).read(0, ["wav"])


def _read_in_child(reader: ShardReader, results: "multiprocessing.Queue[bytes]") -> None:
    results.put(reader.read(3, ["flac"])["flac"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_open_reader_works_in_other_processes(ours: Path, method: str) -> None:
    reader = ShardReader(index.load(ours).split("train"))
    expected = reader.read(3, ["flac"])["flac"]
    context = multiprocessing.get_context(method)
    results: multiprocessing.Queue[bytes] = context.Queue()  # type: ignore[assignment]
    child = context.Process(target=_read_in_child, args=(reader, results))
    child.start()
    assert results.get(timeout=30) == expected
    child.join()
    assert reader.read(3, ["flac"])["flac"] == expected


def test_a_spawned_reader_is_small(ours: Path) -> None:
    assert len(pickle.dumps(ShardReader(index.load(ours).split("train")))) < 6000


def test_a_damaged_member_is_named_with_shard_and_offset(ours: Path) -> None:
    split = index.load(ours).split("train")
    offset, length = split.members(6)["flac"]
    path = ours / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[offset + length // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataFault, match=rf"train-000001.tar: member clip-6.flac at offset {offset}: .*checksum"):
        ShardReader(split).read(6, ["flac"])
    assert len(ShardReader(split, check=False).read(6, ["flac"])["flac"]) == length
    path.write_bytes(data[: offset + 10])
    with pytest.raises(DataFault, match=rf"clip-6.flac at offset {offset}: 10 of {length} bytes are there"):
        ShardReader(split).read(6, ["flac"])
    data[offset - 512 + 124 : offset - 512 + 135] = b"00000000007"
    path.write_bytes(data)
    with pytest.raises(DataFault, match="another file lies there"):
        ShardReader(split, check=False).read(6, ["flac"])
    path.unlink()
    with pytest.raises(DataFault, match="cannot be opened"):
        ShardReader(split).read(6, ["flac"])


def test_short_missing_and_extra_tars_are_named_when_shards_are_opened(ours: Path) -> None:
    path = ours / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(
        VerificationFault, match=f"train-000001.tar is short: {len(whole) - 512} bytes, .* {len(whole)}"
    ):
        index.load(ours)
    path.unlink()
    with pytest.raises(VerificationFault, match=r"train-000001.tar is missing; the index counts 3 clips"):
        index.load(ours)
    path.write_bytes(whole)
    shutil.copy(path, ours / "train-000002.tar")
    with pytest.raises(VerificationFault, match=r"train-000002.tar is not in the index"):
        index.load(ours)


def test_missing_shards_say_which_commands_make_them(tmp_path: Path) -> None:
    for folder, word in ((tmp_path / "none", "no such folder"), (tmp_path, "no tar")):
        with pytest.raises(DataFault, match=word) as fault:
            index.load(folder)
        assert fault.value.next_step == f"kdctool extract VIDEOS out/, then kdctool shard out/ {folder}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"train-000000.tar"', '"../train-000000.tar"'),
        ('"clips":5', '"clips":6'),
        ('"splits":{"test":2', '"splits":{"test":3'),
        ('"bytes":', '"bytes":-'),
        ('"dog"', '"cow"'),
        ('"lengths":"', '"lengths":"A'),
        ('"lengths":"', '"lengths":"////'),
        ('"format":"kdctool-shards-1"', '"format":"kdctool-shards-9"'),
        ("{", "["),
    ],
)
def test_a_tampered_index_is_refused(ours: Path, old: str, new: str) -> None:
    path = ours / "index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataFault, match=r"index\.json"):
        index.load(ours)


def foreign(folder: Path, names: tuple[str, ...] = ("train-000.tar", "train-001.tar", "val-000.tar")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as file:
            for number in range(place * 2, place * 2 + 2):
                about = json.dumps({"labels": ["a", "b"] if number == 1 else ["a"]}).encode()
                for suffix, data in (("jpg", jpeg(number)), ("flac", flac(number)), ("json", about)):
                    info = tarfile.TarInfo(f"sub/vidéo {number}.{suffix}")
                    info.size, info.mtime = len(data), 1234.5
                    file.addfile(info, io.BytesIO(data))
    return folder


def test_tars_of_others_are_indexed_once_and_read_like_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = foreign(tmp_path / "theirs")
    opened = index.load(folder)
    assert "indexing 3 tars once" in capsys.readouterr().err
    assert opened.splits == {"train": 4, "val": 2}
    assert (opened.labels, opened.multi_label) == (("a", "b"), True)
    assert opened.settings == {"frames": 1, "audio": "flac", "size": 32, "sample_rate": 16000, "window_s": 0.5}
    split = opened.split("train")
    assert split.key(3) == "sub/vidéo 3"
    assert ShardReader(split).read(3, ["0.jpg", "flac"]) == {"0.jpg": jpeg(3), "flac": flac(3)}
    before = (folder / "index.json").read_bytes()
    again = index.load(folder)
    assert capsys.readouterr().err == ""
    assert again.digest == opened.digest
    assert (folder / "index.json").read_bytes() == before
    assert again.split("val").members(1) == opened.split("val").members(1)


def test_tars_of_others_may_be_left_alone(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs")
    with pytest.raises(DataFault, match=r"no index\.json"):
        index.load(folder, index_foreign=False)
    assert not (folder / "index.json").exists()


def test_a_cut_tar_of_others_is_named_before_anything_is_written(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs")
    path = folder / "train-001.tar"
    path.write_bytes(path.read_bytes()[:1536])
    with pytest.raises(VerificationFault, match=r"train-001.tar: cut .* at offset 1536"):
        index.load(folder)
    assert not (folder / "index.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
def test_a_folder_that_cannot_be_written_keeps_its_index_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        folder = foreign(place / "theirs")
        place.chmod(0o755)
        os.seteuid(65534)
        try:
            opened = index.load(folder)
        finally:
            os.seteuid(0)
        assert opened.splits == {"train": 4, "val": 2}
        assert "stays in memory" in capsys.readouterr().err
        assert not (folder / "index.json").exists()
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000123.tar", "train"),
        ("val_01.tar", "val"),
        ("000000.tar", "train"),
        ("a-b-7.tar", "a-b"),
        ("cc12m.tar", "cc12m"),
    ],
)
def test_the_split_of_a_foreign_tar_is_its_name_without_the_number(name: str, split: str) -> None:
    assert split_of(name) == split
