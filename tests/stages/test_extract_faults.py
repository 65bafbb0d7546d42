"""What happens to an extraction when the machine fails it: killed, out of space, without permission, not alone."""

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from extractions import tree

from kdctool.errors import EnvironmentFault
from kdctool.media.ledger import Ledger
from kdctool.media.rows import is_intact
from kdctool.media.settings import Settings
from kdctool.stages import extract, verify

SETTINGS = Settings(frames=3, size=32)
NUM_GOOD = 16
REPO = Path(__file__).parents[2]
COMMAND = (
    "import sys; from pathlib import Path; from kdctool.errors import KdctoolError;"
    "from kdctool.stages import extract; from kdctool.media.settings import Settings\n"
    "try: extract.run(Path(sys.argv[1]), Path(sys.argv[2]), Settings(frames=3, size=32), workers=2)\n"
    "except KdctoolError as error: print(error.cause, '|', error.next_step, file=sys.stderr); sys.exit(error.exit_code)"
)


def fill(folder: Path, video: bytes) -> Path:
    """16 good clips and three bad inputs."""
    folder.mkdir()
    for number in range(NUM_GOOD):
        (folder / f"{number:02d}.mp4").write_bytes(video)
    (folder / "empty.mp4").touch()
    (folder / "noise.mkv").write_bytes(random.Random(0).randbytes(5000))
    (folder / "cut.mp4").write_bytes(video[: len(video) // 2])
    return folder


@pytest.fixture
def videos(video: bytes, tmp_path: Path) -> Path:
    return fill(tmp_path / "videos", video)


def start(videos: Path, out: Path, **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(videos), str(out)],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def ended(process: "subprocess.Popen[str]", timeout: float = 60) -> tuple[int, str]:
    _, said = process.communicate(timeout=timeout)
    return process.returncode, said


def descendants_gone(out: Path) -> bool:
    """Whether no worker of this output folder is left, a moment after its parent was killed."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(b"kdctool.media.worker" in _command_line(pid) and _parent(pid) == 1 for pid in _processes()):
            return True
        time.sleep(0.05)
    return False


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def kill_and_rerun(videos: Path, out: Path, delay_s: float) -> None:
    """One kill -9 after `delay_s`; what was noted is whole, and the rerun makes no more than what was not noted."""
    process = start(videos, out)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert descendants_gone(out)
    ledger = Ledger(out)
    ledger.load()
    noted = [row for row in ledger.rows.values() if row["status"] != "quarantined"]
    assert all(is_intact(out, row) for row in noted)
    is_done = (out / "done.json").exists()
    made = extract.run(videos, out, SETTINGS, workers=2).num_made
    assert made <= NUM_GOOD + 3 - len(
        noted
    )  # A clip is lost only while it is under work; failures are found again at once.
    assert not (is_done and made)


@pytest.fixture(scope="session")
def calm(video: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """The files of an undisturbed run, and how long a command takes."""
    place = tmp_path_factory.mktemp("calm")
    videos = fill(place / "videos", video)
    began = time.monotonic()
    code, said = ended(start(videos, place / "out"))
    assert code == 0, said
    return tree(place / "out"), time.monotonic() - began


def kill_at_random_moments(
    videos: Path, tmp_path: Path, calm: tuple[dict[str, str], float], times: int, seed: int
) -> None:
    expected, seconds = calm
    rng = random.Random(seed)
    for number in range(times):
        out = tmp_path / f"out{number}"
        kill_and_rerun(videos, out, rng.uniform(0.2, 1.05) * seconds)
        assert tree(out) == expected
        assert verify.check(out).damages == []
        assert not list(out.rglob("*.partial"))
        shutil.rmtree(out)


def test_a_run_killed_at_a_random_moment_ends_in_the_same_bytes(
    videos: Path, tmp_path: Path, calm: tuple[dict[str, str], float]
) -> None:
    kill_at_random_moments(videos, tmp_path, calm, 3, seed=int(time.time()))


@pytest.mark.nightly
def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_bytes(
    videos: Path, tmp_path: Path, calm: tuple[dict[str, str], float]
) -> None:
    kill_at_random_moments(videos, tmp_path, calm, 20, seed=0)


def test_a_killed_run_of_other_inputs_loses_nothing_either(videos: Path, video: bytes, tmp_path: Path) -> None:
    """Killed, then rerun after inputs were added and removed."""
    out = tmp_path / "out"
    process = start(videos, out)
    while process.poll() is None and not (out / ".ledger.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    (videos / "00.mp4").unlink()
    (videos / "new.mp4").write_bytes(video)
    extract.run(videos, out, SETTINGS, workers=2)
    rows = {json.loads(line)["source"] for line in (out / "manifest.jsonl").read_text().splitlines()}
    assert rows - {"00.mp4"} == {path.name for path in videos.iterdir()}
    assert verify.check(out).damages == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """disk(mount options) -> a small disk of its own; mounting again changes its options."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        again = "remount," if mounted else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("small", "enough"), [("size=160k", "size=64m"), ("size=64m,nr_inodes=40", "size=64m,nr_inodes=4000")]
)
def test_a_full_disk_is_exit_4_and_the_rerun_goes_on(
    small: str, enough: str, disk: Callable[..., Path], videos: Path, tmp_path: Path, calm: tuple[dict[str, str], float]
) -> None:
    place = disk(small)
    code, said = ended(start(videos, place / "out"))
    assert code == 4
    for part in ("no space left while writing", "needs", "free in", "run the same command again"):
        assert part in said
    assert not list(place.rglob("*.partial"))
    assert not (place / "out" / "done.json").exists()
    ledger = Ledger(place / "out")
    ledger.load()
    kept = [row for row in ledger.rows.values() if row["status"] != "quarantined"]
    assert kept
    assert all(is_intact(place / "out", row) for row in kept)
    disk(enough)
    assert extract.run(videos, place / "out", SETTINGS, workers=2).num_made <= NUM_GOOD + 3 - len(kept)
    assert tree(place / "out") == calm[0]


def test_a_file_size_limit_is_a_full_disk(videos: Path, tmp_path: Path, calm: tuple[dict[str, str], float]) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    code, said = ended(start(videos, tmp_path / "out", preexec_fn=limited))
    assert (code, "no space left" in said) == (4, True)
    extract.run(videos, tmp_path / "out", SETTINGS, workers=2)
    assert tree(tmp_path / "out") == calm[0]


def test_a_read_only_place_is_exit_4_before_any_work(disk: Callable[..., Path], videos: Path) -> None:
    place = disk("size=1m")
    disk("ro")
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="cannot write"):
        extract.run(videos, place / "deep" / "out", SETTINGS)
    assert time.monotonic() - began < 5
    assert not list(place.iterdir())


def test_a_missing_parent_is_made(videos: Path, tmp_path: Path) -> None:
    assert extract.run(videos, tmp_path / "a" / "b" / "out", SETTINGS).counts["ok"] == NUM_GOOD


def test_what_may_not_be_read_is_named(video: bytes, tmp_path: Path) -> None:
    """Where nothing else is there, a closed sub-folder ends it; beside others it is a row, as a closed file is."""
    libc = ctypes.CDLL(None)

    def without_privilege() -> None:  # Root reads everything, until it gives up CAP_DAC_OVERRIDE and _READ_SEARCH.
        for capability in (1, 2):
            libc.prctl(24, capability, 0, 0, 0)

    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "closed").mkdir(parents=True)
    (videos / "closed").chmod(0)
    code, said = ended(start(videos, out, preexec_fn=without_privilege))
    assert (code, "cannot read the folder" in said and "closed" in said) == (2, True)
    assert not out.exists()
    (videos / "closed").rmdir()
    (videos / "closed.mp4").write_bytes(video)
    (videos / "closed.mp4").chmod(0)
    code, said = ended(start(videos, out, preexec_fn=without_privilege))
    assert (code, "1 no_permission" in said) == (3, True)
    (videos / "good.mp4").write_bytes(video)
    (videos / "secret").mkdir()
    (videos / "secret").chmod(0)
    code, said = ended(start(videos, out, preexec_fn=without_privilege))
    assert (code, f"cannot read the folder {videos / 'secret'}" in said) == (0, True)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted((row["source"], row["status"], row["reason"]) for row in rows) == [
        ("closed.mp4", "quarantined", "no_permission"),
        ("good.mp4", "ok", ""),
        ("secret", "quarantined", "no_permission"),
    ]
    code, said = ended(start(videos, out, preexec_fn=without_privilege))
    assert code == 0


def test_of_two_processes_on_one_folder_the_second_is_told_of_the_first(
    videos: Path, tmp_path: Path, calm: tuple[dict[str, str], float]
) -> None:
    out = tmp_path / "out"
    first = start(videos, out)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (out / ".ledger.jsonl").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        code, said = ended(start(videos, out))
        assert (code, f"in use by process {first.pid} on" in said) == (4, True)
    finally:
        first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0
    assert tree(out) == calm[0]
    assert extract.run(videos, out, SETTINGS).num_made == 0  # The lock went with its process.


DISK_THAT_FAILS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static int fails(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strstr(path, "fails-while-read") != NULL;
}
ssize_t read(int fd, void *to, size_t count) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "read");
    if (fails(fd)) { errno = EIO; return -1; }
    return real(fd, to, count);
}
"""


def test_a_disk_that_fails_costs_only_the_files_on_it(videos: Path, video: bytes, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to make reading fail")
    (tmp_path / "fails.c").write_text(DISK_THAT_FAILS)
    library = tmp_path / "fails.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "fails.c", "-ldl"], check=True)
    (videos / "fails-while-read.mp4").write_bytes(video)
    code, said = ended(start(videos, tmp_path / "out", env=os.environ | {"LD_PRELOAD": str(library)}))
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert {row["source"]: row["reason"] for row in rows if row["reason"]} == {
        "cut.mp4": "truncated",
        "empty.mp4": "empty",
        "fails-while-read.mp4": "io_error",
        "noise.mkv": "unreadable",
    }
    done = extract.run(videos, tmp_path / "out", SETTINGS, retry_quarantined=True)
    assert (done.counts["ok"], done.num_made) == (NUM_GOOD + 1, 4)
