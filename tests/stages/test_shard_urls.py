"""kdctool shard and extract --to-shards from and to s3:// (a server on this machine) and file://."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import s3
from conftest import make_extraction
from extractions import make_video, tree
from s3 import needs_s3

from kdctool.errors import DataFault, EnvironmentFault, UsageFault
from kdctool.media.settings import Settings
from kdctool.places import Remote
from kdctool.shards import building
from kdctool.shards.destination import RemoteDestination
from kdctool.stages import extract, extract_to_shards, shard, verify

pytestmark = pytest.mark.usefixtures("temporary")
SETTINGS = Settings(frames=2, size=32)
NUM_CLIPS = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/, and with loose/ and shards/ that two commands made of them."""
    folder = tmp_path_factory.mktemp("made")
    videos = folder / "videos"
    videos.mkdir()
    for number in range(NUM_CLIPS):
        make_video(videos / f"{number}.mp4", hertz=300 + 50 * number)
    (videos / "empty.mkv").touch()
    extract.run(videos, folder / "loose", SETTINGS, workers=1)
    shard.run(folder / "loose", folder / "shards", clips_per_shard=2)
    return folder


def tars(found: dict[str, str]) -> dict[str, str]:
    """Without the record of the extraction that --to-shards keeps."""
    return {name: value for name, value in found.items() if not name.startswith("extraction/")}


def test_file_urls_are_folders_of_this_machine(made: Path, tmp_path: Path) -> None:
    done = shard.run(f"file://{made}/loose", f"file://{tmp_path}/shards", clips_per_shard=2)
    assert done.folder == str(tmp_path / "shards")
    assert tree(tmp_path / "shards") == tree(made / "shards")


@needs_s3
def test_any_pair_of_places_gives_the_same_bytes(made: Path, bucket: s3.Bucket, tmp_path: Path) -> None:
    url = bucket.fill(made / "loose", "out")
    assert shard.run(url, "s3://bucket/shards", clips_per_shard=2, dry_run=True).num_bytes > 0
    assert bucket.tree("shards") == {}
    done = shard.run(url, "s3://bucket/shards", clips_per_shard=2)
    assert (done.folder, done.num_clips, done.kept) == ("s3://bucket/shards", NUM_CLIPS, 0)
    assert bucket.tree("shards") == tree(made / "shards")
    shard.run(url, tmp_path / "shards", clips_per_shard=2)
    assert tree(tmp_path / "shards") == tree(made / "shards")
    assert verify.run(tmp_path / "shards").num_files > 0
    shard.run(made / "loose", "s3://bucket/others", clips_per_shard=2)
    assert bucket.tree("others") == tree(made / "shards")
    again = shard.run(url, "s3://bucket/shards", clips_per_shard=2)
    assert (again.written, again.digest) == (0, done.digest)
    bucket.remove(f"shards/{sorted(tars(bucket.tree('shards')))[-1]}")
    assert shard.run(url, "s3://bucket/shards", clips_per_shard=2).written == 1
    assert bucket.tree("shards") == tree(made / "shards")


@needs_s3
@pytest.mark.parametrize("place", ["begun", "written", "recorded", "finished"])
@pytest.mark.parametrize("after", [False, True])
def test_stopped_at_any_moment_it_goes_on(
    made: Path, bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch, place: str, after: bool
) -> None:
    original, calls = getattr(RemoteDestination, place), [0]

    def stop(self: Any, *given: Any) -> None:
        calls[0] += 1
        if calls[0] < 2 and place in ("written", "recorded"):
            original(self, *given)
            return
        if after:
            original(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(RemoteDestination, place, stop)
    with pytest.raises(KeyboardInterrupt):
        shard.run(made / "loose", "s3://bucket/shards", clips_per_shard=2)
    monkeypatch.undo()
    kept = shard.run(made / "loose", "s3://bucket/shards", clips_per_shard=2).kept
    assert kept >= {"begun": 0, "written": 1, "recorded": 1 + after, "finished": 4}[place]
    assert bucket.tree("shards") == tree(made / "shards")


@needs_s3
@pytest.mark.nightly
def test_death_at_every_request_leaves_a_run_that_can_go_on(
    tmp_path: Path, bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other shards are there before, so that the index, tars and records have to go, too."""
    out = make_extraction(tmp_path / "out", clips=6, seconds=0.1)
    options: dict[str, Any] = {"clips_per_shard": 3, "overwrite": True}
    shard.run(out, tmp_path / "shards", **options)
    expected, number = tree(tmp_path / "shards"), 0
    while True:
        shard.run(out, "s3://bucket/shards", clips_per_shard=2, overwrite=True)
        left = [number]

        def fails(method: str, path: str, left: list[int] = left) -> int:
            if method in ("PUT", "POST", "DELETE"):
                left[0] -= 1
            return 403 if left[0] < 0 and method != "GET" and method != "HEAD" else 0

        bucket.fails = fails
        try:
            shard.run(out, "s3://bucket/shards", **options)
        except EnvironmentFault:
            bucket.fails = lambda method, path: 0
        else:
            break
        if bucket.files.exists("bucket/shards/.lock"):  # Of this process, which is not gone.
            bucket.remove("shards/.lock")
        shard.run(out, "s3://bucket/shards", **options)
        assert bucket.tree("shards") == expected, number
        number += 1
    assert number > 10
    bucket.fails = lambda method, path: 0
    assert {name: value for name, value in bucket.tree("shards").items() if name != ".lock"} == expected


@needs_s3
def test_what_lies_there_is_respected(made: Path, bucket: s3.Bucket) -> None:
    bucket.put("foreign/mine.tar", b"x")
    for overwrite in (False, True):
        with pytest.raises(UsageFault, match=r"s3://bucket/foreign holds mine\.tar"):
            shard.run(made / "loose", "s3://bucket/foreign", overwrite=overwrite)
    assert bucket.tree("foreign").keys() == {"mine.tar"}
    shard.run(made / "loose", "s3://bucket/shards", clips_per_shard=3)
    with pytest.raises(UsageFault, match=r"s3://bucket/shards was made from something else.*clips_per_shard"):
        shard.run(made / "loose", "s3://bucket/shards", clips_per_shard=2)
    shard.run(made / "loose", "s3://bucket/shards", clips_per_shard=2, overwrite=True)
    assert bucket.tree("shards") == tree(made / "shards")


@needs_s3
def test_extractions_that_are_not_whole_are_told_by_their_url(made: Path, bucket: s3.Bucket, tmp_path: Path) -> None:
    for wrong, words in (("s3://bucket/none", "nothing at s3://bucket/none"), ("s3://nobucket/x", "nothing at")):
        with pytest.raises(UsageFault, match=words):
            shard.run(wrong, tmp_path / "shards")
    with pytest.raises(UsageFault, match="there is no bucket s3://nobucket"):
        shard.run(made / "loose", "s3://nobucket/shards")
    url = bucket.fill(made / "loose", "out")
    with pytest.raises(UsageFault, match="cannot go into the extraction folder s3://bucket/out"):
        shard.run(url, url)
    bucket.files.rm(bucket.files.glob("bucket/out/clips/*/3-*/00.jpg"))
    with pytest.raises(DataFault, match=r"s3://bucket/out/clips/../3-.* holds 1 frames .* the manifest says 2"):
        shard.run(url, tmp_path / "shards", clips_per_shard=2)
    bucket.remove("out/done.json")
    with pytest.raises(DataFault, match=r"s3://bucket/out has no done\.json"):
        shard.run(url, tmp_path / "shards")


@needs_s3
def test_to_shards_works_in_a_store(made: Path, bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = bucket.fill(made / "videos", "videos")
    options: dict[str, Any] = {"packing": {"clips_per_shard": 2}, "workers": 1}
    original, loose = building.record, list[int]()

    def record(folder: Path, entry: Any) -> None:
        original(folder, entry)
        loose.append(len(bucket.files.glob("bucket/shards/extraction/clips/*/*")))
        if len(loose) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(building, "record", record)
    with pytest.raises(KeyboardInterrupt):
        extract_to_shards.run(url, "s3://bucket/shards", SETTINGS, **options)
    assert loose == [NUM_CLIPS, NUM_CLIPS - 2]
    done, packed = extract_to_shards.run(url, "s3://bucket/shards", SETTINGS, **options)
    assert (done.num_made, packed and packed.kept) == (0, 1)
    assert tars(bucket.tree("shards")) == tree(made / "shards")
    kept = {name for name in bucket.tree("shards") if name.startswith("extraction/")}
    assert {"extraction/manifest.jsonl", "extraction/done.json"} <= kept
    assert not any("clips" in name or "lock" in name for name in kept)
    done, packed = extract_to_shards.run(url, "s3://bucket/shards", SETTINGS, **options)
    assert (done.num_made, packed and packed.written) == (0, 0)
    bucket.put("videos/new.mp4", (made / "videos" / "0.mp4").read_bytes())
    with pytest.raises(UsageFault, match=r"1 videos are new .* s3://bucket/shards.* 'new\.mp4'"):
        extract_to_shards.run(url, "s3://bucket/shards", SETTINGS, **options)


@needs_s3
def test_one_tar_at_a_time_lies_on_this_machine(
    made: Path, bucket: s3.Bucket, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(path.stat().st_size for path in (made / "shards").glob("*.tar"))
    usage = shutil.disk_usage(temporary)._replace(free=total // 2)
    monkeypatch.setattr(shard.shutil, "disk_usage", lambda path: usage)
    taken, original = list[int](), RemoteDestination.written

    def written(self: RemoteDestination, name: str) -> None:
        taken.append(sum(512 * path.stat().st_blocks for path in self.folder.glob("*.tar")))
        original(self, name)

    monkeypatch.setattr(RemoteDestination, "written", written)
    shard.run(made / "loose", "s3://bucket/shards", clips_per_shard=2)
    assert max(taken) < total // 2
    assert Remote("s3", "bucket/shards").children().keys() == tree(made / "shards").keys()


@needs_s3
def test_the_command_says_that_training_needs_a_copy(
    made: Path, bucket: s3.Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdctool.cli import run as command_line

    url = bucket.fill(made / "loose", "out")
    assert command_line(["shard", url, "s3://bucket/shards", "--clips-per-shard", "2"]) == 0
    said = capsys.readouterr().out
    assert "shards in s3://bucket/shards" in said
    assert "copy s3://bucket/shards to shards/ on this machine, then kdctool recipe new --from shards/" in said
    assert bucket.tree("shards") == tree(made / "shards")
