"""A real mp4 of frames and sound: H.264 and AAC, the same bytes for the same input and libraries."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from avdigits.protocol import SOUND_HZ
from kdctool.files import PARTIAL

_AAC_FRAME = 1024
# Without cpu-independent, x264's lookahead ends in other bytes now and then, for the same frames on the same machine.
_H264 = {"preset": "veryfast", "crf": "18", "x264-params": "cpu-independent=1"}


def write(path: Path, frames: NDArray[np.uint8], sound: NDArray[np.int16]) -> None:
    """Encode frames (N, H, W, 3) at 12.5 frames/s and sound (S,) at 16 kHz; the file appears when it is whole."""
    partial = path.with_name(path.name + PARTIAL)
    with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        picture = container.add_stream("libx264", rate=Fraction(25, 2), options=dict(_H264))
        picture.height, picture.width = frames.shape[1:3]
        picture.pix_fmt = "yuv420p"
        picture.thread_count = 1  # More threads cut the picture differently.
        voice = container.add_stream("aac", rate=SOUND_HZ, layout="mono", bit_rate=64_000)
        for stream in (picture, voice):
            stream.codec_context.flags |= Flags.bitexact
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode(None))
        for first in range(0, len(sound), _AAC_FRAME):
            part = sound[None, first : first + _AAC_FRAME].astype(np.float32) / 32768
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = SOUND_HZ, first, Fraction(1, SOUND_HZ)
            container.mux(voice.encode(block))
        container.mux(voice.encode(None))
    os.replace(partial, path)
