"""CPU seconds of extracting a 10 s clip (user and system, children included), all methods clip by clip in one run.

pyav and ffmpeg are the product: a worker of its pool with JPEG, FLAC and ledger. Two yardsticks stand beside them.
The widespread way: ffmpeg writes the sound, sox keeps channel 1, OpenCV seeks once per frame, Pillow makes the JPEG.
The floor: `ffmpeg -threads 1 -i CLIP -map v -map a -f null -`, which decodes everything and writes nothing.
Both run with the system's ffmpeg where there is one, the floor and ffmpeg also with the one of imageio-ffmpeg.

    python benchmarks/extract.py                   three sizes and real clips, 5 rounds: about 15 minutes on 2 cores
    python benchmarks/extract.py --quick           640x360 only: under a minute
    python benchmarks/extract.py --memory 10000    also resident memory over that many clips of 160x90
    python benchmarks/extract.py --out FILE.json   also a FILE.md with the tables
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import extract_clips
from decoders import REAL, binaries
from harness import Result, finish, hardware, report, result, say

from kdctool.media import binary
from kdctool.media.ledger import Ledger
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.settings import Item, Settings, Tools

FRAMES, SIZE = 10, 224
TALK = REAL / "talk_clip.mp4"
PACKAGES = ("av", "numpy", "pillow", "soundfile", "ffmpeg-python", "imageio-ffmpeg", "opencv-python-headless")
_GROUPS = ("360p", "720p", "1080p", "no_b_frames_360p", "real_1080p", "real_720p")
GOALS = {
    "pyav_speedup_over_widespread": {
        "360p": 4.5,
        "no_b_frames_360p": 4.5,
        "1080p": 5,
        "real_1080p": 5,
        "real_720p": 3.5,
    },
    "ffmpeg_speedup_over_widespread": dict.fromkeys(_GROUPS, 2.2),
    "pyav_cost_over_floor": dict.fromkeys(_GROUPS, 0.65) | {"no_b_frames_360p": 0.75},
    "ffmpeg_cost_over_floor": dict.fromkeys(_GROUPS, 1.25),
}
"""Speed-ups: at least; costs: at most."""
_TICK = os.sysconf("SC_CLK_TCK")


class OneWorker:
    """The product's pool with one worker, and the ledger that its parent keeps; fed one clip at a time."""

    def __init__(self, out: Path, decoder: str, ffmpeg: str) -> None:
        self.settings = Settings(decoder=decoder, frames=FRAMES, size=SIZE)  # type: ignore[arg-type]
        out.mkdir(parents=True)
        self.ledger = Ledger(out)
        self.ledger.open(self.settings)
        self.pool = Pool(1, out, self.settings, Tools(ffmpeg, binary.version(ffmpeg) if decoder == "ffmpeg" else ""))
        self.next: Item | None = None
        self.count = 0
        self.events = self.pool.run(self._tasks())

    def _tasks(self) -> Iterator[Task]:
        while self.next is not None:
            yield Task(self.next)

    def __call__(self, clip: Path) -> float:
        self.count += 1
        self.next = Item(str(clip), f"{clip.stem}_{self.count}{clip.suffix}")
        size = clip.stat().st_size
        before, parent = self.worker_s() if self.pool._workers else 0.0, time.process_time()
        for item, row in self.events:
            if row is None:
                self.ledger.finish_input(item, size, ())
                break
            if row["status"] == "quarantined":
                raise RuntimeError(f"{clip} was not extracted: {row['reason']} {row['detail']}")
            self.ledger.note(item, size, row)
        return self.worker_s() - before + time.process_time() - parent

    @property
    def pid(self) -> int:
        return self.pool._workers[0].process.pid

    def worker_s(self) -> float:
        """CPU time of the worker, to the nanosecond, and of its ended children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime((~self.pid << 3) | 2) + (int(fields[13]) + int(fields[14])) / _TICK

    def memory_mb(self) -> float:
        """Resident memory of the worker; shared pages of libraries count."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> None:
        self.pool.__exit__()


def spent(work: Callable[[], object]) -> float:
    """CPU seconds of a call and of the processes it started."""
    before = _used()
    work()
    return _used() - before


def _used() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def widespread(ffmpeg: str, clip: Path, out: Path) -> None:
    """What the released scripts of the field do, one process and one seek after the other; imports are not counted."""
    import cv2
    from PIL import Image

    quiet = {"check": True, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both, sound = out / "both.wav", out / "sound.wav"
    subprocess.run([ffmpeg, "-y", "-i", str(clip), "-vn", "-ar", "16000", str(both)], **quiet)  # type: ignore[call-overload]
    subprocess.run(["sox", str(both), str(sound), "remix", "1"], **quiet)  # type: ignore[call-overload]
    video = cv2.VideoCapture(str(clip))
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    for index in range(FRAMES):
        video.set(cv2.CAP_PROP_POS_FRAMES, int(index * total / FRAMES))
        found, frame = video.read()
        if not found:
            raise RuntimeError(f"OpenCV found no frame {index} in {clip}")
        picture = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        scale = SIZE / min(picture.size)
        picture = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BILINEAR)
        left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
        picture.crop((left, top, left + SIZE, top + SIZE)).save(out / f"{index}.jpg")
    video.release()


def floor(ffmpeg: str, clip: Path) -> None:
    command = [ffmpeg, "-v", "error", "-nostdin", "-threads", "1", "-i", str(clip)]
    subprocess.run([*command, "-map", "v", "-map", "a", "-f", "null", "-"], check=True)


def missing() -> list[str]:
    """What the widespread way needs and is not there."""
    lacking = [] if shutil.which("sox") else ["sox"]
    try:
        import cv2  # noqa: F401
    except ImportError:
        lacking.append("opencv-python-headless")
    return lacking


def clips(folder: Path, quick: bool) -> dict[str, list[Path]]:
    """Clips of 10 s by group."""
    exe = binaries()["bundled"]
    groups: dict[str, list[Path]] = {}
    for name, size in list(extract_clips.SIZES.items())[: 1 if quick else None]:
        say(f"making clips: {name}")
        seeds = (1, 2) if name == "360p" and not quick else (1,)
        groups[name] = [extract_clips.make(exe, folder / f"{name}_{seed}.mp4", size, seed) for seed in seeds]
    plain = folder / "no_b_frames_1.mp4"
    groups["no_b_frames_360p"] = [extract_clips.make(exe, plain, extract_clips.SIZES["360p"], 1, b_frames=False)]
    if not quick and TALK.exists():
        groups["real_1080p"] = extract_clips.cut(exe, TALK, folder, [20])
        groups["real_720p"] = [
            extract_clips.smaller(exe, clip, folder / f"real_720p_{clip.name}", 720) for clip in groups["real_1080p"]
        ]
    elif not quick:
        say(f"no real clips: {TALK} is not there")
    return groups


def measure(groups: dict[str, list[Path]], folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds per clip by group and method, one value per round."""
    found = binaries()
    own = {"pyav": OneWorker(folder / "pyav", "pyav", "")}
    own |= {f"ffmpeg_{name}": OneWorker(folder / f"ffmpeg_{name}", "ffmpeg", path) for name, path in found.items()}
    scratch = folder / "widespread"
    scratch.mkdir()
    lacking = missing()
    if lacking:
        say(f"the widespread way is left out: {', '.join(lacking)} is not there")
    methods: dict[str, Callable[[Path], float]] = dict(own)
    for name, path in found.items():
        methods[f"floor_{name}"] = lambda clip, path=path: spent(lambda: floor(path, clip))
        if not lacking:
            methods[f"widespread_{name}"] = lambda clip, path=path: spent(lambda: widespread(path, clip, scratch))
    for method in methods.values():  # Starting a worker and importing OpenCV is not a clip's cost.
        method(next(iter(groups.values()))[0])
    seen: dict[str, dict[str, list[float]]] = {group: {name: [] for name in methods} for group in groups}
    for number in range(rounds):
        for group, members in groups.items():
            sums = dict.fromkeys(methods, 0.0)
            for clip in members:
                for name, method in methods.items():
                    sums[name] += method(clip)
            for name, value in sums.items():
                seen[group][name].append(value / len(members))
        say(f"round {number + 1} of {rounds}")
    for worker in own.values():
        worker.close()
    return seen


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """The system's ffmpeg has the plain names, where it is there; the bundled one's end in _bundled."""
    found: dict[str, float] = {}
    for name in binaries():
        suffix = "" if name == "system" else "_bundled"
        for group, values in medians.items():
            for ours, key in (("pyav", "pyav"), (f"ffmpeg_{name}", "ffmpeg")):
                found[f"{key}_cost_over_floor_{group}{suffix}"] = values[ours] / values[f"floor_{name}"]
                if f"widespread_{name}" in values:
                    found[f"{key}_speedup_over_widespread_{group}{suffix}"] = (
                        values[f"widespread_{name}"] / values[ours]
                    )
    return found


def two_workers(clip: Path, folder: Path, count: int) -> dict[str, float]:
    """Wall seconds for `count` clips with one worker and with two. Means something on an idle machine only."""
    seconds = {}
    for size in (1, 2):
        out = folder / f"workers_{size}"
        out.mkdir()
        with Pool(size, out, Settings(decoder="pyav"), Tools()) as pool:
            events = pool.run(Task(Item(str(clip), f"{number}.mp4")) for number in range(count + size))
            done, start = 0, 0.0
            for _, row in events:
                done += row is None
                start = start or (time.perf_counter() if done == size else 0.0)  # Workers have started.
        seconds[str(size)] = time.perf_counter() - start
    return seconds


def memory(clip: Path, out: Path, count: int) -> tuple[list[float], float]:
    """Resident MB of one worker at tenths of `count` clips, and its highest."""
    worker = OneWorker(out, "pyav", "")
    seen, marks = [], {max(1, count * part // 10) for part in range(1, 11)}
    for number in range(1, count + 1):
        worker(clip)
        if number in marks:
            seen.append(worker.memory_mb())
    peak = next(
        int(line.split()[1]) / 1024
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    worker.close()
    return seen, peak


def table(medians: dict[str, dict[str, float]], found: dict[str, float]) -> list[str]:
    """Markdown: CPU ms per clip, then the ratios beside their goals."""
    methods = list(next(iter(medians.values())))
    lines = ["CPU ms per 10 s clip, median of the rounds", "", f"| clips | {' | '.join(methods)} |"]
    lines.append("|---" * (len(methods) + 1) + "|")
    for group, values in medians.items():
        lines.append(f"| {group} | {' | '.join(f'{values[name] * 1000:.0f}' for name in methods)} |")
    lines += ["", "| ratio | value | goal | |", "|---|---|---|---|"]
    for name, value in found.items():
        key = next((key for key in GOALS if name.startswith(key)), "")
        goal = GOALS.get(key, {}).get(name.removeprefix(key + "_"))
        is_met = goal is not None and (value >= goal if "speedup" in name else value <= goal)
        sign = "at least" if "speedup" in name else "at most"
        told = "" if goal is None else f"{sign} {goal:g}"
        lines.append(f"| {name} | {value:.2f} | {told} | {'' if goal is None else 'holds' if is_met else 'MISSED'} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, metavar="CLIPS", help="clips of 160x90; 1080p: a fiftieth")
    parser.add_argument("--clips", type=Path, help="keep the made clips there, and use those that are there")
    parser.add_argument("--out", type=Path, help="also write the JSON there, and the tables beside it as .md")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = args.clips or folder / "clips"
        place.mkdir(parents=True, exist_ok=True)
        groups = clips(place, args.quick)
        seen = measure(groups, folder, args.rounds)
        results: list[Result] = [
            result(f"{method}_{group}", values, "CPU s/clip")
            for group, by_method in seen.items()
            for method, values in by_method.items()
        ]
        medians: dict[str, dict[str, float]] = {group: {} for group in seen}
        for item, (group, method) in zip(results, ((g, m) for g in seen for m in seen[g]), strict=True):
            medians[group][method] = item.value
        found = ratios(medians)
        lines = table(medians, found)
        load = os.getloadavg()[0]
        if not args.quick:
            wall = two_workers(groups["360p"][0], folder, 40)
            found["two_workers_speedup_over_one"] = wall["1"] / wall["2"]
            lines += ["", f"Two workers over one, wall: {found['two_workers_speedup_over_one']:.2f} (load {load:.1f})"]
        if args.memory:
            small = extract_clips.make(binaries()["bundled"], place / "160x90.mp4", (160, 90), 1)
            for label, clip, count in (
                ("160x90", small, args.memory),
                ("1080p", groups.get("1080p", [small])[0], max(10, args.memory // 50)),
            ):
                resident, peak = memory(clip, folder / f"memory_{label}", count)
                results.append(Result(f"memory_peak_{label}", peak, "MB", 0.0, count))
                found[f"memory_last_over_first_tenth_{label}"] = resident[-1] / resident[0]
                tenths = ", ".join(f"{value:.0f}" for value in resident)
                lines += ["", f"Worker memory, {count} clips of {label}: peak {peak:.0f} MB; after each tenth {tenths}"]
    print("\n".join(lines))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/extract.py {' '.join(arguments if arguments is not None else sys.argv[1:])}"
        text = [f"`{command}`", "", f"Load while it ran: {load:.1f}.", "", *lines]
        args.out.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    used = {key: binary.version(path) for key, path in binaries().items()}
    finish(report("extract", hardware(), PACKAGES, results, found, ffmpeg=used, missing=missing()), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
