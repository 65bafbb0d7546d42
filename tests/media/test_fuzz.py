"""Small media files, mutated: whatever comes in, every file gets a row with a documented reason, and nothing hangs."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdctool.errors import DataFault, UsageFault
from kdctool.media import binary, inputs
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.quarantine import FLAGS, REASONS
from kdctool.media.settings import Item, Settings, Tools

Make = Callable[..., Path]
Mutation = Callable[[random.Random, bytearray, list[bytes]], None]

SEEDS: dict[str, tuple[str, ...]] = {
    "x264.mp4": ("-c:v", "libx264", "-g", "5", "-c:a", "aac", "-movflags", "+faststart"),
    "fragmented.mp4": ("-c:v", "libx264", "-g", "5", "-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"),
    "x264.mkv": ("-c:v", "libx264", "-g", "5", "-c:a", "libopus"),
    "vp8.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libvorbis"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-c:a", "mp3"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-c:a", "mp2"),
    "x264.mov": ("-c:v", "libx264", "-c:a", "pcm_s16le"),
    "flv1.flv": ("-c:v", "flv", "-c:a", "mp3", "-ar", "44100"),
    "program.mpg": ("-r", "25", "-c:v", "mpeg1video", "-c:a", "mp2"),
    "theora.ogg": ("-c:v", "libtheora", "-c:a", "libvorbis"),
}


def _place(rng: random.Random, data: bytearray) -> int:
    """Anywhere, but half of the time in the header."""
    return rng.randrange(min(len(data), 4096) if rng.random() < 0.5 else len(data))


def _flip_bits(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    for _i in range(rng.choice((1, 4, 50))):
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _noise(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    place, length = _place(rng, data), rng.choice((4, 64, 2000))
    data[place : place + length] = rng.randbytes(length)


def _extreme_number(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    place, width = _place(rng, data), rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1))
    data[place : place + width] = value.to_bytes(width, rng.choice(("big", "little")))


def _cut(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    place = _place(rng, data)
    del data[place : place + rng.choice((1, 7, 188, 3000))]


def _repeat(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    place = _place(rng, data)
    data[place:place] = data[place : place + rng.choice((8, 188, 3000))] * rng.choice((1, 20))


def _splice(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    other = rng.choice(corpus)
    data[_place(rng, data) :] = other[rng.randrange(len(other)) :]


def _zeros(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    place, length = _place(rng, data), rng.choice((16, 512, 8192))
    data[place : place + length] = bytes(len(data[place : place + length]))


MUTATIONS: tuple[Mutation, ...] = (_flip_bits, _noise, _extreme_number, _cut, _drop, _repeat, _splice, _zeros)


@pytest.fixture(scope="session")
def corpus(make: Make) -> dict[str, bytes]:
    sources = ("testsrc2=s=64x48:r=10:d=1", "sine=d=1")
    return {name: make(f"fuzz_{name}", *options, inputs=sources).read_bytes() for name, options in SEEDS.items()}


def mutated(corpus: dict[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(sorted(corpus))
    data = bytearray(corpus[name])
    for _ in range(rng.choice((1, 1, 2, 5))):
        rng.choice(MUTATIONS)(rng, data, list(corpus.values()))
        data = data or bytearray(b"\0")
    return name, bytes(data)


def fuzz(corpus: dict[str, bytes], folder: Path, cases: int, seed: int) -> Counter[str]:
    """Run the cases through worker processes, each within a time limit; return how often each outcome came."""
    rng = random.Random(seed)
    inputs_folder = folder / "inputs"
    inputs_folder.mkdir()

    def tasks() -> Iterator[Task]:
        for number in range(cases):
            name, data = mutated(corpus, rng)
            path = inputs_folder / f"{number:05d}_{name}"
            path.write_bytes(data)
            yield Task(Item(str(path), path.name))

    outcomes: Counter[str] = Counter()
    ended = set()
    tools = Tools(binary.find(), "test", clip_timeout_s=20.0)
    slowest, before = 0.0, time.monotonic()
    with Pool(2, folder / "out", Settings(frames=2, size=32), tools) as pool:
        for item, row in pool.run(tasks()):
            slowest, before = max(slowest, time.monotonic() - before), time.monotonic()
            if row is None:
                ended.add(item.source)
                Path(item.path).unlink()
                continue
            assert row["source"] == item.source
            outcome = row["reason"] or "ok"
            known = REASONS.keys() if row["status"] == "quarantined" else {*FLAGS, "ok"}
            assert set(outcome.split("+")) <= set(known), row
            assert outcome != "unexpected_error", (seed, row)
            outcomes[outcome] += 1
    assert len(ended) == cases
    assert slowest < tools.clip_timeout_s + 60
    return outcomes


def test_a_hundred_mutated_files_end_in_documented_reasons(corpus: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = fuzz(corpus, tmp_path, 100, seed=int(time.time()) // 86_400)  # Other ones every day.
    assert len(outcomes) >= 4  # The mutations reach further than the header.


@pytest.mark.nightly
def test_thousands_of_mutated_files_end_in_documented_reasons(corpus: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = fuzz(corpus, tmp_path, 2500, seed=20_000 + int(time.time()) // 86_400)
    print(f"{outcomes.total()} cases: {dict(outcomes.most_common())}")
    assert outcomes["ok"] > 100
    assert len(outcomes) >= 6


def test_lists_of_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    good = b'path,start,end,label,labels,split\nx.mp4,1.5,4,"violin, fiddle",,train\ny z.mp4,,,,dog;cat,test\n'
    rng = random.Random(int(time.time()) // 86_400)
    outcomes: Counter[str] = Counter()
    for suffix in (".csv", ".txt"):
        file = tmp_path / f"list{suffix}"
        for _ in range(300):
            data = bytearray(good)
            for _i in range(rng.choice((1, 2, 6))):
                rng.choice(MUTATIONS)(rng, data, [good])
                data = data or bytearray(b",")
            file.write_bytes(data)
            try:
                outcomes["items"] += bool(inputs.find(file).items)
            except (UsageFault, DataFault):  # Anything else would be a bug.
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 10
