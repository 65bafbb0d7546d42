"""Make AV-Digits: videos from the two sources, then frames, sound and shards by kdctool's own commands.

    python benchmarks/avdigits/build.py --speech fsdd-recordings.tar.gz --digits FOLDER --out data/avdigits
    python benchmarks/avdigits/build.py ... --quick              1,000 training and 200 validation clips
    python benchmarks/avdigits/build.py ... --minutes 8          stop after 8 minutes (exit code 75); again goes on

The same seed gives the same bytes with the same libraries. Every step goes on where it was stopped.
"""

import argparse
import concurrent.futures
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import finish, hardware, report, result

from avdigits import drawing, protocol, sound, truth, video
from avdigits.sources import ARCHIVE, Sources, read
from kdctool.errors import KdctoolError, UsageFault
from kdctool.files import locked, read_json, write_json
from kdctool.media.settings import Settings
from kdctool.progress import bar, say
from kdctool.stages import extract, shard
from kdctool.stages.sweep import stopped

RECORD = "protocol.json"
QUICK = {"train": 1_000, "val": 200, "test": 60, "test_hard": 60}


@dataclass(frozen=True)
class Built:
    """Where the benchmark lies, and how many seconds each step took in this call."""

    shards: Path
    truth: Path
    clips: dict[str, int]
    seconds: dict[str, float]


def build(sources: Sources, out: Path, counts: dict[str, int | None], seed: int, workers: int) -> Built:
    """Make what is missing of the benchmark in `out`; UsageFault when other clips lie there."""
    seconds: dict[str, float] = {}
    clips = protocol.plan(sources, counts, seed)
    videos = out / "videos"
    with locked(out):
        with _timed("videos", seconds):
            begin(videos, sources, clips, seed)
            make_videos(videos, sources, clips, workers)
        with _timed("extract", seconds):
            asked = Settings(size=protocol.SIDE, window_s=protocol.SECONDS)
            extract.run(videos, out / "extracted", asked, workers=workers, max_bad=0.0)
        with _timed("shard", seconds):
            shard.run(out / "extracted", out / "shards", labels=videos / truth.LABELS)
    names = [clip.split for clip in clips]
    return Built(out / "shards", videos / truth.TRUTH, {name: names.count(name) for name in counts}, seconds)


def begin(videos: Path, sources: Sources, clips: list[protocol.Clip], seed: int) -> None:
    """Note what is made here, and write truth and labels; they follow from the draws, not from the videos."""
    names = [clip.split for clip in clips]
    about = {
        "protocol": protocol.VERSION,
        "seed": seed,
        "clips": {name: names.count(name) for name in dict.fromkeys(names)},
        "sources": sources.digests,
    }
    record = videos / RECORD
    if record.exists():
        before = read_json(record)
        if before != about:
            differing = ", ".join(sorted(key for key in about if before.get(key) != about[key]))
            raise UsageFault(f"{videos} holds other clips (they differ in: {differing})", "choose another --out")
        return
    for name in dict.fromkeys(names):
        (videos / name).mkdir(parents=True, exist_ok=True)
    truth.write(videos, clips, sources)
    write_json(record, about)


def make_videos(videos: Path, sources: Sources, clips: list[protocol.Clip], workers: int) -> None:
    """Write the mp4 files that are not there yet."""
    todo = [clip for clip in clips if not (videos / clip.file).exists()]
    with bar("making clips", len(todo)) as progress:
        if workers <= 1:
            for clip in todo:
                make(videos, clip, sources)
                progress.advance()
            return
        # Workers get the sources once; then only the draws travel.
        with concurrent.futures.ProcessPoolExecutor(workers, initializer=_begin, initargs=(videos, sources)) as pool:
            try:
                for _ in pool.map(_make, todo, chunksize=8):
                    progress.advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def make(videos: Path, clip: protocol.Clip, sources: Sources) -> None:
    """One mp4."""
    frames = drawing.draw(clip, sources.images, sound.envelopes(clip, sources))
    video.write(videos / clip.file, frames, sound.sound(clip, sources))


_here: tuple[Path, Sources] | None = None


def _begin(videos: Path, sources: Sources) -> None:
    global _here
    for number in (signal.SIGTERM, signal.SIGUSR1):  # The parent decides when to stop.
        signal.signal(number, signal.SIG_IGN)
    _here = (videos, sources)


def _make(clip: protocol.Clip) -> None:
    assert _here is not None
    make(_here[0], clip, _here[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every script here that builds the benchmark asks for."""
    parser.add_argument("--speech", type=Path, required=True, help=f"{ARCHIVE}, or the folder of its wav files")
    parser.add_argument("--digits", type=Path, required=True, help="folder of MNIST's t10k files")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command goes on")
    parser.add_argument("--quick", action="store_true", help="1,000 training and 200 validation clips")


def counts_of(args: argparse.Namespace) -> dict[str, int | None]:
    """Clips of each split."""
    given: dict[str, int | None] = dict(QUICK) if args.quick else {**dict.fromkeys(protocol.SPLITS), **FULL}
    for name in given:
        if getattr(args, name, None) is not None:
            given[name] = getattr(args, name)
    return {name: count for name, count in given.items() if count is None or count > 0}


FULL = {"train": 8_000, "val": 400}
"""The test splits take every recording at every gain."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    for name in protocol.SPLITS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"clips of {name}; 0 = none")
    args = parser.parse_args(arguments)
    try:
        with stopped(args.minutes):
            built = build(read(args.speech, args.digits), args.out, counts_of(args), args.seed, args.workers)
            from avdigits.loudness import measure

            mean, std = measure(built.shards)
    except KdctoolError as error:
        say(f"error: {error.cause}\nnext:  {error.next_step}")
        return error.exit_code
    say(f"filter bank of train: mean {mean:.4f}, std {std:.4f} (data.fbank_mean, data.fbank_std)")
    rows = [result(f"{name}_seconds", [value], "s") for name, value in built.seconds.items()]
    more = {"clips": built.clips, "shards": str(built.shards), "truth": str(built.truth), "fbank": [mean, std]}
    finish(report("avdigits_build", hardware(), ("av", "numpy", "pillow"), rows, {}, **more))
    return 0


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    say(f"--- {name}")
    yield
    seconds[name] = round(time.monotonic() - start, 2)


if __name__ == "__main__":
    sys.exit(main())
