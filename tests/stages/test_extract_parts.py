"""kdctool extract --part: many machines, one result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extractions import fill, tree

from kdctool.errors import DataFault, EnvironmentFault, UsageFault
from kdctool.files import locked
from kdctool.media import parts
from kdctool.media.inputs import find
from kdctool.media.parts import Part
from kdctool.media.settings import Item, Segment, Settings
from kdctool.stages import extract

SETTINGS = Settings(frames=2, size=32)
REPO = Path(__file__).parents[2]
NUM_GOOD = 8


@pytest.fixture(scope="module")
def videos(video: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good clips and two bad ones; each of three parts has some."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "empty.mp4").touch()
    return fill(folder, video, (f"{number}.mp4" for number in range(NUM_GOOD)))


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one command without parts writes."""
    out = tmp_path_factory.mktemp("plain") / "out"
    extract.run(videos, out, SETTINGS, workers=1)
    return tree(out)


def run(videos: Path, out: Path, part: str = "", **options: Any) -> extract.Summary:
    return extract.run(videos, out, SETTINGS, workers=1, part=parts.parse(part) if part else None, **options)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_three_parts_in_any_order_give_what_one_command_gives(
    videos: Path, plain: dict[str, str], tmp_path: Path, order: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    done = [run(videos, out, f"{number}/3") for number in order]
    assert [d.is_merged for d in done] == [False, False, True]
    assert [d.waiting_for for d in done] == [tuple(sorted(order[1:])), order[2:], ()]
    assert all(0 < d.num_made < NUM_GOOD for d in done)
    assert sum(d.num_made for d in done) == NUM_GOOD + 2
    assert done[-1].counts == {"ok": NUM_GOOD, "quarantined": 2}
    assert tree(out) == plain
    again = run(videos, out, "2/3")
    assert (again.num_made, again.is_merged, tree(out)) == (0, True, plain)


def test_parts_in_folders_of_their_own_are_copied_together_and_merged(
    videos: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in (1, 2, 3):
        assert not run(videos, tmp_path / str(number), f"{number}/3").is_merged
    for number in (3, 1):
        shutil.copytree(tmp_path / str(number), out, dirs_exist_ok=True)
    with pytest.raises(DataFault, match=r"\d of 10 inputs are not done"):
        run(videos, out, merge=True)
    assert not (out / "done.json").exists()
    shutil.copytree(tmp_path / "2", out, dirs_exist_ok=True)
    assert run(videos, out, merge=True).num_made == 0
    assert tree(out) == plain


def test_parts_at_the_same_time_give_what_one_command_gives(
    videos: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    processes = [command(videos, out, f"{number}/3") for number in (1, 2, 3)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
    assert tree(out) == plain


def test_a_command_without_parts_does_the_rest(videos: Path, plain: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = run(videos, out, "2/3").num_made
    assert run(videos, out).num_made == NUM_GOOD + 2 - made
    assert tree(out) == plain


def command(videos: Path, out: Path, part: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from kdctool.media import parts;"
        "from kdctool.stages import extract; from kdctool.media.settings import Settings;"
        "extract.run(Path(sys.argv[1]), Path(sys.argv[2]), Settings(frames=2, size=32), workers=1,"
        " part=parts.parse(sys.argv[3]))"
    )
    given = [sys.executable, "-c", code, str(videos), str(out), part]
    return subprocess.Popen(given, cwd=REPO, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_part_goes_on_and_its_clips_are_kept(videos: Path, plain: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ledger = out / parts.parse("1/2").ledger
    process = command(videos, out, "1/2")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (ledger.exists() and b'"uids"' in ledger.read_bytes()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not parts.is_complete(ledger)
    other = run(videos, out, "2/2")
    assert (other.is_merged, other.waiting_for) == (False, (1,))
    with open(ledger, "ab") as file:
        file.write(b'{"input":"torn')  # What a kill inside an append leaves.
    rest = run(videos, out, "1/2")
    assert rest.num_made + other.num_made < NUM_GOOD + 2
    assert rest.is_merged
    assert tree(out) == plain


def test_new_videos_are_added_by_parts_as_by_one_command(videos: Path, tmp_path: Path) -> None:
    more, one, out = tmp_path / "videos", tmp_path / "one", tmp_path / "out"
    shutil.copytree(videos, more)
    for number in (1, 2):
        run(more, out, f"{number}/2")
    shutil.copy(more / "0.mp4", more / "later.mp4")
    home = parts.number_of(Item("", "later.mp4"), 2)
    assert run(more, out, f"{3 - home}/2").num_made == 0
    done = run(more, out, f"{home}/2")
    assert (done.num_made, done.is_merged) == (1, True)
    run(more, one)
    assert tree(out) == tree(one)


def test_more_files_move_no_input_and_segments_stay_with_their_file() -> None:
    items = [Item("", f"{number}.mp4") for number in range(3000)]
    counts = [sum(parts.number_of(item, 3) == number for item in items) for number in (1, 2, 3)]
    assert min(counts) > 900
    assert sum(counts) == 3000
    homes = {parts.number_of(Item("", "a.mp4", Segment(start, 1000)), 1000) for start in range(100)}
    assert homes == {parts.number_of(Item("", "a.mp4"), 1000)}
    # Other machines, other versions: the split is part of the contract with folders that are under way.
    assert [parts.number_of(Item("", f"{number}.mp4"), 5) for number in range(6)] == SPLIT_OF_FIVE


SPLIT_OF_FIVE = [1, 3, 5, 4, 4, 5]


def test_a_running_part_keeps_others_out(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out, shared=True), locked(out, Part(1, 3).lock):
        with pytest.raises(EnvironmentFault, match=f"process {os.getpid()}"):
            run(videos, out, "1/3")
        with pytest.raises(EnvironmentFault, match=f"process {os.getpid()}"):
            run(videos, out)
        assert run(videos, out, "2/3").num_made > 0
    with locked(out), pytest.raises(EnvironmentFault, match="in use"):
        run(videos, out, "3/3")


def test_parts_that_do_not_fit_together_are_refused(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out, "1/3")
    before = tree(out)
    with pytest.raises(UsageFault, match="parts of 3"):
        run(videos, out, "1/4")
    for part in (Part(2, 3), Part(1, 3), None):
        with pytest.raises(UsageFault, match=r"--size \(32 there, 64 now\)"):
            extract.run(videos, out, Settings(frames=2, size=64), part=part)
    for options in ({"overwrite": True}, {"merge": True}):
        with pytest.raises(UsageFault, match="--part 2/3"):
            run(videos, out, "2/3", **options)
    assert tree(out) == before


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "a/b", "1/3/4", "-1/3", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageFault, match="is no part"):
        parts.parse(text)


def test_an_empty_part_is_fine(videos: Path, plain: dict[str, str], tmp_path: Path) -> None:
    out, count = tmp_path / "out", 100
    found = find(videos)
    empty = next(n for n in range(1, count + 1) if not Part(n, count).of(found).items)
    done = run(videos, out, f"{empty}/{count}")
    assert (done.num_inputs, done.num_made, done.is_merged) == (0, 0, False)
    run(videos, out)
    assert tree(out) == plain


def test_the_command_says_what_is_missing(
    extract_command: Callable[..., Any], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    extract_command(str(videos), str(out), "--frames", "2", "--size", "32", "--part", "1/2")
    said = capsys.readouterr().out
    assert "1/2" in said
    assert "next: the other parts (2)" in said
    extract_command(str(videos), str(out), "--frames", "2", "--size", "32", "--part", "2/2", "--format", "json")
    payload = json.loads(capsys.readouterr().out)
    assert (payload["part"], payload["is_merged"], payload["waiting_for"]) == ("2/2", True, [])
    extract_command(str(videos), str(out), "--frames", "2", "--size", "32", "--merge")
    assert f"next: kdctool shard {out} shards/" in capsys.readouterr().out
