"""Which digits a clip shows, which of them is heard, and where and when: the draws of protocol version 2.

Every draw is a function of (seed, split, number). The places of the two digits come from one range whatever their
sizes, so that neither the place nor the size of a digit tells which one sounds: exchange the two, and the clip is
as likely as before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from avdigits.sources import Recording, Sources
from kdctool.errors import DataFault
from kdctool.seeds import fold

VERSION = 2
SECONDS, FRAME_RATE, SIDE, SOUND_HZ = 2.0, 12.5, 112, 16_000
NUM_FRAMES = round(SECONDS * FRAME_RATE)
SIZES = (24, 30, 36)
GAINS_DB = (-12.0, -6.0, 0.0)
"""A soft recording has a small digit, a loud one a large digit."""
PULSE = 1 / 3
LARGEST = 48
"""Side of the largest digit at the height of its pulse, in pixels."""
HUE_JITTER_DEGREES = 10.0
ONSET_S = (0.1, 1.0)
SNR_DB = (0.0, 15.0)


@dataclass(frozen=True)
class Split:
    """What a split is drawn from: recording indices and images, first and past the last."""

    name: str
    recordings: tuple[int, int]
    images: tuple[int, int]
    drawn_as: str = ""
    """Name that enters the seed; test_hard has the draws of test."""

    @property
    def key(self) -> str:
        return self.drawn_as or self.name

    @property
    def is_hard(self) -> bool:
        """Both digits have the same hue and size."""
        return self.name == "test_hard"

    @property
    def enumerates(self) -> bool:
        """Every recording at every gain, instead of draws."""
        return self.key == "test"


SPLITS = {
    split.name: split
    for split in (
        Split("train", (10, 50), (0, 7000)),
        Split("val", (5, 10), (7000, 8000)),
        Split("test", (0, 5), (8000, 10000)),
        Split("test_hard", (0, 5), (8000, 10000), "test"),
    )
}


@dataclass(frozen=True)
class Digit:
    """One of the two digits, with the recording that it moves to."""

    recording: str
    digit: int
    speaker: str
    gain: int
    """Place in GAINS_DB and SIZES."""
    image: int
    """Place in the images."""
    onset_s: float
    size: int
    """Side in pixels without pulse."""
    hue: float
    """In turns, 0-1."""
    x: int
    y: int
    """Centre in pixels."""


@dataclass(frozen=True)
class Clip:
    """One clip to make."""

    file: str
    split: str
    sounding: Digit
    silent: Digit
    snr_db: float
    seed: int
    """Of the background and the noise."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def plan(sources: Sources, counts: dict[str, int | None], seed: int) -> list[Clip]:
    """The clips of all splits; a count of None takes every recording and gain of a split that enumerates them."""
    return [clip for name, count in counts.items() for clip in plan_split(sources, SPLITS[name], count, seed)]


def plan_split(sources: Sources, split: Split, count: int | None, seed: int) -> Iterator[Clip]:
    """The clips of one split, in the order of their names."""
    pool = [r for r in sources.recordings if split.recordings[0] <= r.index < split.recordings[1]]
    if len({r.digit for r in pool}) < 2 or len({r.speaker for r in pool}) < 2:
        raise DataFault(
            f"the recordings {split.recordings[0]}-{split.recordings[1] - 1} that {split.name} needs are not there"
        )
    for number, given in enumerate(_sounding(pool, split, count, seed)):
        yield _clip(sources, pool, split, number, given, seed)


def full_sides(digits: Sequence[Digit]) -> list[float]:
    """Side of each digit at the height of its pulse."""
    return [digit.size * (1 + PULSE) for digit in digits]


def overlap(a: Digit, b: Digit) -> bool:
    """Whether the boxes of two digits meet when both are at the height of their pulse."""
    reach = sum(full_sides((a, b))) / 2
    return abs(a.x - b.x) < reach and abs(a.y - b.y) < reach


def _sounding(
    pool: list[Recording], split: Split, count: int | None, seed: int
) -> Iterator[tuple[Recording, int] | None]:
    """Recording and gain of each clip's sounding digit; None where they are drawn with the rest."""
    if not split.enumerates:
        yield from [None] * (count or 0)
        return
    every = [(recording, gain) for recording in pool for gain in range(len(GAINS_DB))]
    if count is not None and count < len(every):
        # Whole recordings, at all their gains.
        order = np.random.default_rng(fold(seed, "avdigits", split.key, "some")).permutation(len(pool))
        taken = sorted(order[: -(-count // len(GAINS_DB))])
        every = [(pool[place], gain) for place in taken for gain in range(len(GAINS_DB))][:count]
    yield from every


def _clip(
    sources: Sources, pool: list[Recording], split: Split, number: int, given: tuple[Recording, int] | None, seed: int
) -> Clip:
    rng = np.random.default_rng(fold(seed, "avdigits", split.key, number))
    # The pair is drawn as a pair: drawing the second to fit the first would favour speakers with few recordings.
    heard, silent = _pair(pool, given[0] if given else None, rng)
    gains = [int(gain) for gain in rng.integers(len(GAINS_DB), size=2)]
    if given:
        gains[0] = given[1]
    a, b = (
        _digit(sources, recording, gain, split, rng) for recording, gain in zip((heard, silent), gains, strict=True)
    )
    if split.is_hard:
        b = replace(b, size=a.size, hue=a.hue)
    snr_db = float(rng.uniform(*SNR_DB))
    scene = int(rng.integers(2**62))
    while True:
        places = rng.integers(LARGEST // 2, SIDE - LARGEST // 2 + 1, size=(2, 2))
        (ax, ay), (bx, by) = ((int(x), int(y)) for x, y in places)
        a, b = replace(a, x=ax, y=ay), replace(b, x=bx, y=by)
        if not overlap(a, b):
            return Clip(f"{split.name}/{number:05d}.mp4", split.name, a, b, snr_db, scene)


def _pair(pool: list[Recording], first: Recording | None, rng: np.random.Generator) -> tuple[Recording, Recording]:
    """Two recordings of two classes by two speakers."""
    while True:
        a = first or pool[int(rng.integers(len(pool)))]
        b = pool[int(rng.integers(len(pool)))]
        if a.digit != b.digit and a.speaker != b.speaker:
            return a, b


def _digit(sources: Sources, recording: Recording, gain: int, split: Split, rng: np.random.Generator) -> Digit:
    speakers = sources.speakers
    jitter = rng.uniform(-HUE_JITTER_DEGREES, HUE_JITTER_DEGREES) / 360
    images = _images_of(sources, recording.digit, split.images)
    return Digit(
        recording=recording.name,
        digit=recording.digit,
        speaker=recording.speaker,
        gain=gain,
        image=int(images[int(rng.integers(len(images)))]),
        onset_s=float(rng.uniform(*ONSET_S)),
        size=SIZES[gain],
        hue=float((speakers.index(recording.speaker) / len(speakers) + jitter) % 1.0),
        x=0,
        y=0,
    )


@lru_cache(maxsize=64)
def _images_of(sources: Sources, digit: int, between: tuple[int, int]) -> tuple[int, ...]:
    found = np.flatnonzero(sources.labels[between[0] : between[1]] == digit) + between[0]
    if not len(found):
        raise DataFault(f"no image of a {digit} among {between[0]}-{between[1] - 1}")
    return tuple(int(place) for place in found)
