"""Bytes of a shard to arrays. Headers are read before anything is allocated: a 15 KB file can claim 12 GB."""

import io
import json
import struct
from typing import Any

import numpy as np
import soundfile
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from kdctool.errors import DataFault

MAX_PIXELS = 16_777_216
"""Largest JPEG that is decoded, 4096 x 4096."""
MAX_SAMPLES = 16_000 * 3600
"""Longest audio that is decoded, an hour at 16 kHz."""
AUDIO = ("flac", "wav", "opus")
"""Member suffixes that hold a clip's sound."""
_FRAME_HEADERS = {0xC0, 0xC1, 0xC2}


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the frame header of a JPEG; ValueError when there is none."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    place = 2
    while place + 9 <= len(data):
        if data[place] != 0xFF:
            raise ValueError("damaged JPEG header")
        marker = data[place + 1]
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return height, width
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    raise ValueError("JPEG without a frame header")


def frame(data: bytes, where: str) -> torch.Tensor:
    """Decode a JPEG to uint8 (3, H, W). DataFault names `where` when it is damaged or absurdly large."""
    try:
        height, width = jpeg_size(data)
        if height * width > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS} are not decoded")
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (ValueError, RuntimeError) as error:
        raise _damaged(where, error) from error


def audio(data: bytes, sample_rate: int, where: str, out: np.ndarray | None = None) -> np.ndarray:
    """Decode FLAC, WAV or Opus to int16 (S,). DataFault names `where` when it is damaged, too long or at another rate.

    With `out`, int16 (at least S,), the samples are written there and its first S entries are returned; a longer
    clip gets an array of its own.
    """
    try:
        plain = _plain_wav(data, sample_rate)
        if plain is not None:
            if out is None or len(plain) > len(out):
                return plain
            out[: len(plain)] = plain
            return out[: len(plain)]
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if not 0 < file.frames <= MAX_SAMPLES:
                raise ValueError(f"its header claims {file.frames} samples")
            if file.samplerate != sample_rate or file.channels != 1:
                raise ValueError(f"{file.samplerate} Hz, {file.channels} channels instead of {sample_rate} Hz mono")
            if out is not None and file.frames <= len(out):
                samples = file.read(out=out[: file.frames])
            else:
                samples = file.read(dtype="int16")
            if len(samples) != file.frames:
                raise ValueError(f"{len(samples)} of {file.frames} samples decoded")
            return samples
    except (ValueError, RuntimeError) as error:
        raise _damaged(where, error) from error


def _plain_wav(data: bytes, sample_rate: int) -> np.ndarray | None:
    """The samples of a 16-bit mono WAV, else None. ValueError when its sound ends early.

    soundfile reads every other WAV and says what is wrong with it; but it takes a WAV that was cut for a shorter one.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    place, form = 12, b""
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8
        if name == b"fmt ":
            form = data[place : place + 16]
        elif name == b"data":
            if size > len(data) - place:
                raise ValueError(f"{len(data) - place} of {size} bytes of sound are there")
            is_plain = form == struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
            usable = is_plain and size % 2 == 0 and 0 < size <= 2 * MAX_SAMPLES
            return np.frombuffer(data, dtype="<i2", count=size // 2, offset=place) if usable else None
        place += size + size % 2
    return None


def description(data: bytes, where: str) -> dict[str, Any]:
    """Parse the JSON member of a clip."""
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> DataFault:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataFault(f"{where} cannot be decoded: {cause}", "kdctool verify SHARDS finds every damaged shard")
