"""Scanning tars: what a whole one holds, where a cut one is cut, and what is refused."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdctool.errors import DataFault, KdctoolError, VerificationFault
from kdctool.shards import tar
from kdctool.shards.entry import from_json, scanned, to_json
from kdctool.shards.write import write_shard

CLIPS = [(f"clip-{n}", [("json", b"{}"), ("flac", b"f" * (700 + n)), ("0.jpg", b"j" * 512)]) for n in range(4)]


def make(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_scan_finds_what_tarfile_finds(tmp_path: Path, format: int) -> None:
    members = [
        ("a/b.json", b"{}"),
        ("a/b.0.jpg", b"x" * 513),
        ("x" * 99 + "/" + "y" * 60 + ".flac", b""),
        ("c.txt", b"1"),
    ]
    if format != tarfile.USTAR_FORMAT:
        members += [("é" * 90 + ".jpg", b"12"), ("z" * 300 + ".jpg", b"3" * 2000)]
    path = make(tmp_path / "a.tar", members, format)
    with tarfile.open(path) as file:
        expected = [(info.name, info.offset_data, info.size) for info in file]
    assert [tuple(member) for member in tar.scan(path)] == expected


def test_an_entry_of_written_members_is_the_entry_of_the_scanned_tar(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "train-000000.tar", "train", CLIPS)
    assert to_json(written) == to_json(scanned(tmp_path / "train-000000.tar", "train"))
    with tarfile.open(tmp_path / "train-000000.tar") as file:
        assert [info.mtime + info.uid + info.gid for info in file] == [0] * 12


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clips=st.lists(
        st.tuples(
            st.text("abcé_-/", min_size=1, max_size=12),
            st.lists(st.sampled_from(["json", "flac", "0.jpg", "1.jpg", "txt"]), min_size=1, max_size=5, unique=True),
            st.integers(0, 3000),
        ),
        max_size=6,
        unique_by=lambda clip: clip[0],
    )
)
def test_an_entry_survives_json(tmp_path: Path, clips: list[tuple[str, list[str], int]]) -> None:
    samples = [("k" + key, [(suffix, b"x" * size) for suffix in suffixes]) for key, suffixes, size in clips]
    entry = write_shard(tmp_path / "a.tar", "train", samples)
    back = from_json(to_json(entry), "index.json")
    assert to_json(back) == to_json(entry)
    assert back.offsets.tolist() == entry.offsets.tolist()
    assert back.member_names() == [f"{key}.{suffix}" for key, members in samples for suffix, _ in members]


def cut_places(path: Path) -> list[tuple[str, int]]:
    members = tar.scan(path)
    end = members[-1].offset + 2 * 512  # its payload of 512 bytes, then one of the closing blocks
    return [
        ("empty", 0),
        ("boundary", members[3].offset - 512),
        ("header", members[4].offset - 200),
        ("member", members[4].offset + 100),
        ("boundary", members[5].offset - 512),
        ("boundary", end - 512),
        ("boundary", end),
    ]


def test_every_kind_of_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    write_shard(path, "train", CLIPS)
    whole = path.read_bytes()
    for word, size in cut_places(path):
        path.write_bytes(whole[:size])
        with pytest.raises(VerificationFault) as fault:
            tar.scan(path)
        assert word in fault.value.cause
        assert "train-000000.tar" in fault.value.cause
        assert "at offset" in fault.value.cause


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 20_000))
def test_no_prefix_of_a_tar_passes_for_a_tar(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tar"
    entry = write_shard(path, "train", CLIPS)
    end = int(entry.offsets[-1]) + 512 + 1024  # after both closing blocks only zeros follow
    whole = path.read_bytes()
    path.write_bytes(whole[: min(size, end - 1)])
    with pytest.raises(VerificationFault):
        tar.scan(path)


def test_a_zeroed_header_does_not_end_a_tar_quietly(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    entry = write_shard(path, "train", CLIPS)
    data = bytearray(path.read_bytes())
    start = int(entry.offsets[6]) - 512
    data[start : start + 512] = bytes(512)
    path.write_bytes(data)
    with pytest.raises(VerificationFault, match=f"more data follows, at offset {start},"):
        tar.scan(path)


def special(kind: bytes, name: str = "clip.jpg", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "word"),
    [
        (special(tarfile.SYMTYPE), "is a link"),
        (special(tarfile.LNKTYPE), "is a link"),
        (special(tarfile.CHRTYPE), "not a plain file"),
        (special(tarfile.BLKTYPE), "not a plain file"),
        (special(tarfile.FIFOTYPE), "not a plain file"),
        (special(tarfile.REGTYPE, "/etc/cron.d/x.jpg"), "absolute"),
        (special(tarfile.REGTYPE, "a/../../x.jpg"), "'..'"),
        (special(tarfile.REGTYPE, "..\\x.jpg"), "'..'"),
        (special(tarfile.REGTYPE, "C:\\x.jpg"), "absolute"),
        (special(tarfile.REGTYPE, "a\nb.jpg"), "control characters"),
        *((special(tarfile.REGTYPE, f"clip.{s}"), "pickle") for s in ("pyd", "pkl", "pth", "PICKLE", "pt", "pyd.gz")),
    ],
)
def test_hostile_members_are_refused_by_name(tmp_path: Path, info: tarfile.TarInfo, word: str) -> None:
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as file:
        file.addfile(special(tarfile.REGTYPE, "good.jpg"))
        file.addfile(info)
    with pytest.raises(DataFault) as fault:
        tar.scan(path)
    assert word in fault.value.cause
    assert ascii(info.name) in fault.value.cause


def test_thousands_of_extended_headers_and_giant_sizes_cost_nothing(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 5
    block = header.tobuf() + b"a.jpg".ljust(512, b"\0")
    path = tmp_path / "a.tar"
    last = tarfile.TarInfo("b.jpg").tobuf()
    path.write_bytes(block * 5000 + last + bytes(1024))
    assert [member.name for member in tar.scan(path)] == ["a.jpg"]
    header.size = 1 << 40
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataFault, match="extended header of"):
        tar.scan(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 9000), value=st.integers(0, 255), length=st.integers(1, 40))
def test_a_mutated_tar_is_read_or_refused_but_never_crashes(
    tmp_path: Path, place: int, value: int, length: int
) -> None:
    path = make(tmp_path / "a.tar", [("a.json", b"{}"), ("é" * 80 + ".jpg", b"x" * 600), ("b.flac", b"y")])
    data = bytearray(path.read_bytes())
    data[place : place + length] = bytes([value]) * len(data[place : place + length])
    path.write_bytes(data)
    try:
        members = tar.scan(path)
    except KdctoolError:
        return
    assert all(member.offset + member.length <= len(data) for member in members)
