"""kdctool extract --to-shards: the tars of extract and shard, without both lying on the disk."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extractions import make_video, tree

from kdctool.errors import DataFault, EnvironmentFault, UsageFault
from kdctool.files import locked
from kdctool.media.settings import Settings
from kdctool.shards import building
from kdctool.stages import extract, extract_to_shards, shard, verify

SETTINGS = Settings(frames=2, size=32)
PACKING = {"clips_per_shard": 2}
NUM_GOOD = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/, and with loose/ and shards/ that two commands made of them."""
    folder = tmp_path_factory.mktemp("made")
    videos = folder / "videos"
    videos.mkdir()
    for number in range(NUM_GOOD):
        make_video(videos / f"{number}.mp4", hertz=300 + 50 * number)
    (videos / "noise.mkv").write_bytes(random.Random(0).randbytes(5000))
    extract.run(videos, folder / "loose", SETTINGS, workers=1)
    shard.run(folder / "loose", folder / "shards", **PACKING)
    return folder


def tars(folder: Path) -> dict[str, str]:
    """Hash of every tar and of the index; anything else that is there, too, but the extraction's record."""
    return {name: value for name, value in tree(folder).items() if not name.startswith("extraction/")}


def run(videos: Path, shards: Path, packing: dict[str, Any] = PACKING, **options: Any) -> Any:
    return extract_to_shards.run(videos, shards, SETTINGS, packing=packing, workers=1, **options)


def num_loose(shards: Path) -> int:
    return len(list((shards / "extraction" / "clips").glob("*/*")))


def test_the_bytes_are_those_of_extract_and_shard(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, loose = tmp_path / "shards", list[tuple[int, int]]()
    original = building.record

    def record(folder: Path, entry: Any) -> None:
        original(folder, entry)
        loose.append((len(list(folder.glob("*.tar"))), num_loose(folder)))

    monkeypatch.setattr(building, "record", record)
    done, packed = run(made / "videos", shards)
    assert (done.counts, packed.num_clips) == ({"ok": NUM_GOOD, "quarantined": 1}, NUM_GOOD)
    assert tars(shards) == tars(made / "shards")
    # When a tar is recorded, the clips of all earlier ones are gone.
    sizes = [len(entry) for entry in building.look(shards).entries.values()]
    assert loose[0] == (1, NUM_GOOD)
    assert loose[-1][0] == len(sizes)
    assert [count for _, count in loose] == sorted({count for _, count in loose}, reverse=True)
    assert not (shards / "extraction" / "clips").exists()
    for name in ("manifest.jsonl", "quarantine.jsonl", "done.json"):
        assert (shards / "extraction" / name).read_bytes() == (made / "loose" / name).read_bytes()
    assert verify.run(shards).num_files > 0
    again, repacked = run(made / "videos", shards)
    assert (again.num_made, repacked.written, tars(shards)) == (0, 0, tars(made / "shards"))


@pytest.mark.parametrize("place", ["record", "finish"])
@pytest.mark.parametrize("number", [1, 3])
def test_stopped_at_any_moment_it_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    shards, calls = tmp_path / "shards", [0]
    original: Callable[..., None] = getattr(building, place)

    def stop(*given: Any) -> None:
        calls[0] += 1
        if calls[0] == number or place == "finish":
            raise KeyboardInterrupt
        original(*given)

    monkeypatch.setattr(building, place, stop)
    with pytest.raises(KeyboardInterrupt):
        run(made / "videos", shards)
    monkeypatch.undo()
    assert not (shards / "index.json").exists()
    done, _ = run(made / "videos", shards)
    assert done.num_made == 0
    assert tars(shards) == tars(made / "shards")
    assert num_loose(shards) == 0


def test_a_lost_shard_is_made_again_from_its_videos(made: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    run(made / "videos", shards)
    (shards / "train-000000.tar").unlink()
    done, packed = run(made / "videos", shards)
    assert (done.num_made, packed.written) == (2, 1)
    assert tars(shards) == tars(made / "shards")


def test_other_videos_are_refused_before_anything_is_done(made: Path, tmp_path: Path) -> None:
    videos, shards = tmp_path / "videos", tmp_path / "shards"
    shutil.copytree(made / "videos", videos)
    run(videos, shards)
    before = tars(shards)
    with pytest.raises(UsageFault, match="--retry-quarantined"):
        run(videos, shards, retry_quarantined=True)
    shutil.copy(videos / "0.mp4", videos / "new.mp4")
    with pytest.raises(UsageFault, match=r"1 videos are new .* 'new\.mp4'"):
        run(videos, shards)
    with pytest.raises(UsageFault, match="clips_per_shard"):
        run(made / "videos", shards, {"clips_per_shard": 3})
    assert tars(shards) == before
    _, packed = run(videos, shards, overwrite=True)
    assert packed.num_clips == NUM_GOOD + 1
    assert verify.run(shards).num_files > 0


def test_folders_of_others_are_left_alone(made: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(made / "shards", shards)
    before = tars(shards)
    with pytest.raises(UsageFault, match="without --to-shards"):
        run(made / "videos", shards)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.tar").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(UsageFault, match=r"mine\.tar"):
            run(made / "videos", foreign, overwrite=overwrite)
    assert tars(shards) == before
    assert [path.name for path in foreign.iterdir()] == ["mine.tar"]
    with locked(tmp_path / "busy"), pytest.raises(EnvironmentFault, match="in use"):
        run(made / "videos", tmp_path / "busy")


def test_too_many_bad_clips_make_no_shards(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="--max-bad"):
        run(made / "videos", tmp_path / "shards", max_bad=0.0)
    assert not list((tmp_path / "shards").glob("*.tar"))


def test_the_disk_needs_room_for_one_shard_only(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(path.stat().st_size for path in (made / "shards").glob("*.tar"))
    usage = shutil.disk_usage(tmp_path)._replace(free=total // 2)
    monkeypatch.setattr(shard.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EnvironmentFault, match="the shards need about"):
        shard.run(made / "loose", tmp_path / "plain", **PACKING)
    run(made / "videos", tmp_path / "shards")
    assert tars(tmp_path / "shards") == tars(made / "shards")


def test_the_command_and_its_dry_run(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from kdctool.cli.extract import register

    app, shards = typer.Typer(), tmp_path / "shards"
    register(app)
    app.callback()(lambda: None)
    given = ["extract", str(made / "videos"), str(shards), "--frames", "2", "--size", "32"]
    packing = ["--clips-per-shard", "2"]
    app(args=[*given, "--to-shards", *packing, "--dry-run"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "more as shards" in said
    assert "with --to-shards" in said
    assert not shards.exists()
    app(args=[*given, "--to-shards", *packing], standalone_mode=False)
    assert "kdctool recipe new --from" in capsys.readouterr().out
    assert tars(shards) == tars(made / "shards")
    for more in (packing, ["--to-shards", "--part", "1/2"]):
        with pytest.raises(UsageFault, match="shard"):
            app(args=[*given, *more], standalone_mode=False)
