"""Paths and URLs, and the folders of this machine that stand for places far away."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3
from s3 import needs_s3

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.places import Missing, Refused, Remote, Unreachable, is_url, located, parse
from kdctool.places.mirror import Mirror, spoken_of
from kdctool.places.scratch import scratch


def test_paths_stay_paths_and_urls_become_places(tmp_path: Path) -> None:
    assert parse("videos/a b") == Path("videos/a b")
    assert parse(tmp_path) is tmp_path
    assert parse("file:///data/a%20b") == Path("/data/a%20b")
    place = parse("S3://bucket/some/videos/")
    assert place == Remote("s3", "bucket/some/videos")
    assert isinstance(place, Remote)
    assert (str(place / "x"), place.name, str(place.parent)) == (
        "s3://bucket/some/videos/x",
        "videos",
        "s3://bucket/some",
    )
    assert (str(place.bucket), str(place.bucket.parent)) == ("s3://bucket", "s3://bucket")
    assert located("s3://bucket/*?[x].mp4").key == "bucket/*?[x].mp4"


@pytest.mark.parametrize(
    "text", ["http://bucket/x", "file://data/x", "s3://", "s3:///x", "hdfs://x/y", "s3://bucket/*.mp4", "s3://b/[x]"]
)
def test_what_is_no_known_url_is_a_usage_fault(text: str) -> None:
    with pytest.raises(UsageFault) as caught:
        parse(text)
    assert caught.value.next_step


def test_only_stores_are_asked_for_what_a_list_names() -> None:
    assert is_url("s3://bucket/x")
    assert is_url("gs://bucket/x")
    assert not any(is_url(text) for text in ("http://x/y", "file:///x", "s3:x", "s3:///x", "a/s3://x"))


def test_scratch_goes_with_its_process_and_after_a_kill_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal; from kdctool.places.scratch import scratch\n"
        "with scratch() as folder: (folder / 'x').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    repo = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=repo, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "x").exists()
    with scratch() as folder:
        assert not left.exists()
        with scratch() as other:
            assert folder.exists()
            assert other != folder
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Bucket]:
    with s3.serving(monkeypatch) as served:
        yield served


@needs_s3
def test_a_place_is_listed_read_and_written(bucket: s3.Bucket, tmp_path: Path) -> None:
    place = Remote("s3", "bucket/a")
    assert (place.kind(), place.bucket.kind(), Remote("s3", "nobucket").kind()) == ("", "folder", "")
    assert (place.children(), place.files()) == ({}, {})
    place.write_all({"x": b"12345", "deep/y": b"1"})
    bucket.put("a/", b"")  # What consoles of stores write for an empty folder.
    assert (place.kind(), (place / "x").kind(), (place / "none").kind()) == ("folder", "file", "")
    assert {name: stored.is_folder for name, stored in place.children().items()} == {"x": False, "deep": True}
    assert {name: stored.size for name, stored in place.files().items()} == {"x": 5, "deep/y": 1}
    assert ((place / "x").read(), (place / "x").read(1, 3), (place / "x").read(-2)) == (b"12345", b"23", b"45")
    assert not (place / "x").create(b"other")
    assert (place / "new").create(b"new")
    (place / "x").download(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"12345"
    (place / "z").upload(tmp_path / "x")
    assert (place / "z").size() == 5
    place.remove(["z", "not there"])
    (place / "deep").remove_tree()
    assert sorted(place.files()) == ["new", "x"]


@needs_s3
def test_every_failure_of_a_store_has_its_kind(bucket: s3.Bucket, tmp_path: Path) -> None:
    place = Remote("s3", "bucket/a")
    for call in (place.read, place.size, lambda: place.download(tmp_path / "x")):
        with pytest.raises(Missing, match="nothing at s3://bucket/a"):
            call()
    place.write(b"1")
    for status, kind in ((403, Refused), (500, Unreachable)):
        bucket.fails = lambda method, path, status=status: status  # type: ignore[misc]
        for call in (place.read, place.size, place.kind, place.children, place.files):
            with pytest.raises(kind, match="s3://bucket/a"):
                call()
        for write in (place.write, place.create):
            with pytest.raises(kind):
                write(b"2")
    bucket.fails = lambda method, path: 0
    os.symlink("/dev/full", tmp_path / "full")
    with pytest.raises(EnvironmentFault, match="no space left while writing"):
        place.download(tmp_path / "full")


@needs_s3
def test_a_store_that_has_no_exclusive_writing_replaces(bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = Remote("s3", "bucket/a"), list[str]()

    def only_first(status: int) -> Callable[[str, str], int]:
        """Fails the first writing."""
        asked.clear()

        def answer(method: str, path: str) -> int:
            asked.append(method)
            return status if method == "PUT" and asked.count("PUT") == 1 else 0

        return answer

    bucket.fails = only_first(501)
    assert place.create(b"1")
    assert (asked.count("PUT"), place.read()) == (2, b"1")
    bucket.fails = only_first(412)  # Some stores do not say which condition failed.
    assert not place.create(b"2")
    assert (asked.count("PUT"), place.read()) == (1, b"1")
    bucket.fails = lambda method, path: 0

    from s3fs import S3FileSystem

    original = S3FileSystem._call_s3

    async def old_botocore(self: Any, method: str, *first: Any, **given: Any) -> Any:
        """Its model of the request lacks the condition; a name that no model has stands for it."""
        if "IfNoneMatch" in given:
            given["NotIfNoneMatch"] = given.pop("IfNoneMatch")
        return await original(self, method, *first, **given)

    monkeypatch.setattr(S3FileSystem, "_call_s3", old_botocore)
    assert place.create(b"3")
    assert place.read() == b"3"


@needs_s3
def test_a_mistake_of_ours_is_no_sign_of_a_store_without_exclusive_writing(
    bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    async def broken(*_: Any, **__: Any) -> None:
        raise TypeError("a bug")

    place = Remote("s3", "bucket/a")
    place.write(b"1")
    monkeypatch.setattr(S3FileSystem, "_call_s3", broken)
    with pytest.raises(TypeError, match="a bug"):
        place.create(b"2")


@needs_s3
def test_a_mirror_sends_only_what_changed(bucket: s3.Bucket, tmp_path: Path) -> None:
    place = Remote("s3", "bucket/a")
    place.write_all({"x": b"1", "deep/y": b"2", "z": b"3"})
    mirror = Mirror(place, tmp_path / "a")
    mirror.clear()
    mirror.pull(["x", "deep/y"])
    (tmp_path / "a" / "x").write_bytes(b"changed")
    sent = list[str]()
    bucket.fails = lambda method, path: sent.append(path) or 0 if method == "PUT" else 0  # type: ignore[func-returns-value]
    mirror.push("x", "deep/y")
    mirror.push("x")
    assert sent == ["/bucket/a/x"]
    mirror.drop(["x"])
    mirror.push("x")
    assert (place / "x").read() == b"changed"
    with pytest.raises(UsageFault, match="s3://bucket/a/x is odd") as caught, spoken_of(tmp_path / "a", place):
        raise UsageFault(f"{tmp_path}/a/x is odd", f"look at {tmp_path}/a")
    assert caught.value.next_step == "look at s3://bucket/a"
