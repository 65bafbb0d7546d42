"""Copies are found, to the byte and to the eye; what only resembles is not called a copy."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdctool.media.clip import extract
from kdctool.media.duplicates import CLOSEST, report
from kdctool.media.likeness import frame_hash
from kdctool.media.messages import Task
from kdctool.media.rows import Row
from kdctool.media.settings import Item, Settings, Tools

MOVING = ("mandelbrot=s=320x180:r=10:start_scale=2", "life=s=320x180:r=10:seed=3:ratio=0.4")


def row(number: int, frame_hash: str, sha256: str = "", status: str = "ok") -> Row:
    name = f"{number:03d}"
    return {
        "uid": f"u{name}",
        "source": f"{name}.mp4",
        "status": status,
        "source_sha256": sha256 or name,
        "frame_hash": frame_hash,
    }


def flipped(frame_hash: str, count: int, seed: int) -> str:
    value = int(frame_hash, 16)
    for bit in random.Random(seed).sample(range(192), count):
        value ^= 1 << bit
    return f"{value:048x}"


def test_copies_that_were_compressed_anew_are_found(make: Callable[..., Path], tmp_path: Path) -> None:
    first = [
        make(f"scene{i}.mp4", "-t", "2", "-c:v", "libx264", "-c:a", "aac", inputs=(s, "sine"))
        for i, s in enumerate(MOVING)
    ]
    small = make(
        "scene0_small.avi", "-vf", "scale=200:112", "-c:v", "mpeg4", "-q:v", "6", "-c:a", "mp3", inputs=(first[0],)
    )
    (tmp_path / "same.mp4").write_bytes(first[1].read_bytes())
    rows = []
    for path in (*first, small, tmp_path / "same.mp4"):
        rows += extract(Task(Item(str(path), path.name)), tmp_path / "out", Settings(decoder="pyav"), Tools())
    told = report(rows)
    assert [group["sources"] for group in told["same_bytes"]] == [["same.mp4", "scene1.mp4"]]
    assert [group["sources"] for group in told["look_alike"]] == [["scene0.mp4", "scene0_small.avi"]]


@pytest.mark.parametrize("apart", [0, 1, 5, 11])
def test_close_hashes_are_always_found(apart: int) -> None:
    rng = random.Random(apart)
    rows, expected = [], []
    for number in range(0, 200, 2):
        one = f"{rng.getrandbits(192):048x}"
        rows += [row(number, one), row(number + 1, flipped(one, apart, number))]
        expected.append([f"u{number:03d}", f"u{number + 1:03d}"])
    assert [group["clips"] for group in report(rows)["look_alike"]] == expected


def test_what_is_further_apart_is_not_called_alike() -> None:
    one = f"{random.Random(1).getrandbits(192):048x}"
    assert report([row(0, one), row(1, flipped(one, CLOSEST + 1, 7))])["look_alike"] == []
    sparse = f"{0b111:048x}"  # Two dark pictures with hardly an edge.
    assert report([row(0, sparse), row(1, f"{0b111 << 90:048x}")])["look_alike"] == []
    assert report([row(0, one, "x"), row(1, one, "x")])["look_alike"] == []  # Equal bytes: said already.
    assert report([row(0, one), row(1, one, status="quarantined")])["look_alike"] == []
    assert report([row(0, ""), row(1, "")])["look_alike"] == []


def test_the_report_does_not_depend_on_the_order_of_rows() -> None:
    rng = random.Random(0)
    base = [f"{rng.getrandbits(192):048x}" for _ in range(20)]
    rows = [row(number, flipped(base[number % 20], number % 7, number)) for number in range(100)]
    told = report(rows)
    assert len(told["look_alike"]) == 20
    rng.shuffle(rows)
    assert report(rows) == told


def test_a_crowd_of_equal_bands_is_compared_in_bounded_time() -> None:
    rng = random.Random(0)
    half = rng.getrandbits(96)
    rows = [row(number, f"{(half << 96) | rng.getrandbits(96):048x}") for number in range(3000)]
    assert len(report(rows)["look_alike"]) < 3000


def test_flat_pictures_say_nothing() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    noisy = black + np.random.default_rng(0).integers(0, 4, black.shape, dtype=np.uint8)
    assert frame_hash([black, noisy, black]) == ""
    assert frame_hash([]) == ""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 64, 3))
    assert frame_hash([np.ascontiguousarray(ramp)]) == "f" * 48
