"""The two public sources, read from the files that their projects publish: spoken digits and handwritten digits."""

import gzip
import io
import re
import tarfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdctool.errors import DataFault, UsageFault

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
ARCHIVE = "fsdd-recordings.tar.gz"
RATE_HZ = 8_000
LONGEST_S = 1.0
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


@dataclass(frozen=True, eq=False)
class Recording:
    """One spoken digit, 8 kHz."""

    name: str
    """{digit}_{speaker}_{index}"""
    digit: int
    speaker: str
    index: int
    sound: NDArray[np.float64]
    """(S,) in -1 to 1."""


@dataclass(frozen=True, eq=False)
class Sources:
    """All that a clip can be made of. Recordings longer than 1 s are left out."""

    recordings: tuple[Recording, ...]
    """Sorted by name."""
    images: NDArray[np.uint8]
    """(N, 28, 28)"""
    labels: NDArray[np.uint8]
    """(N,)"""
    left_out: int
    """Recordings that were too long."""
    digests: dict[str, str]
    """What was read, sha256; part of the identity of a build."""

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(sorted({recording.speaker for recording in self.recordings}))

    @cached_property
    def named(self) -> dict[str, Recording]:
        return {recording.name: recording for recording in self.recordings}


def read(speech: Path, digits: Path) -> Sources:
    """Read the recordings (the archive, or a folder of wav files) and the test images of MNIST (a folder)."""
    found = sorted(_recordings(speech), key=lambda recording: recording.name)
    if not found:
        raise DataFault(f"{speech} holds no recordings called {{digit}}_{{speaker}}_{{index}}.wav")
    kept = tuple(r for r in found if len(r.sound) <= LONGEST_S * RATE_HZ)
    images, labels = _idx(digits / IMAGES, 3), _idx(digits / LABELS, 1)
    if len(images) != len(labels):
        raise DataFault(f"{digits} has {len(images)} images and {len(labels)} labels")
    sounds = sha256()
    for recording in found:
        sounds.update(recording.name.encode() + recording.sound.tobytes())
    about = {
        "recordings": sounds.hexdigest(),
        "images": sha256(images.tobytes()).hexdigest(),
        "labels": sha256(labels.tobytes()).hexdigest(),
    }
    return Sources(kept, images, labels, len(found) - len(kept), about)


def _recordings(place: Path) -> Iterator[Recording]:
    if place.is_dir():
        for path in sorted(place.rglob("*.wav")):
            yield from _one(path.name, path.read_bytes(), str(path))
        return
    if not place.is_file():
        raise UsageFault(f"{place} does not exist", f"give {ARCHIVE}, or the folder of its wav files")
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)) is not None:
                    yield from _one(Path(member.name).name, file.read(), f"{place}: {member.name}")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise DataFault(f"{place} cannot be read as a tar archive: {error}") from error


def _one(name: str, data: bytes, where: str) -> Iterator[Recording]:
    match = _NAME.fullmatch(name)
    if match is None:
        return
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataFault(f"{where} is no wav file: {error}") from error
    if form != (RATE_HZ, 1, 2):
        raise DataFault(f"{where} has (rate, channels, bytes) = {form}, not {(RATE_HZ, 1, 2)}")
    sound = np.frombuffer(samples, "<i2").astype(np.float64) / 32768
    yield Recording(name.removesuffix(".wav"), int(match[1]), match[2], int(match[3]), sound)


def _idx(path: Path, dimensions: int) -> NDArray[Any]:
    """An IDX file of unsigned bytes."""
    if not path.is_file():
        raise UsageFault(f"{path} does not exist", f"give the folder that holds {IMAGES} and {LABELS}")
    try:
        data = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataFault(f"{path} is no gzip file: {error}") from error
    if data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataFault(f"{path} is no IDX file of {dimensions} dimensions of unsigned bytes")
    shape = np.frombuffer(data, ">i4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
