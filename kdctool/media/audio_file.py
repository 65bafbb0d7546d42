"""A clip's sound as a file: flac and wav keep every sample, opus keeps what is heard."""

import io

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from kdctool.media.settings import AudioFormat

OPUS_BITS_PER_S = 64_000


def encode(samples: NDArray[np.int16], sample_rate: int, kind: AudioFormat) -> bytes:
    """(S,) mono to the bytes of a file; equal samples give equal bytes."""
    if kind == "opus":
        return _opus(samples, sample_rate)
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=kind.upper(), subtype="PCM_16")
    return file.getvalue()


def _opus(samples: NDArray[np.int16], sample_rate: int) -> bytes:
    """By libavformat, not by libsndfile: that one numbers its streams at random, so no two files would be equal."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("libopus", rate=sample_rate, layout="mono")
        stream.bit_rate = OPUS_BITS_PER_S
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = sample_rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
