"""The sound of both decoders passes the same filters, so that both deliver the same samples.

All channels count alike (their mean), the clock starts at the window, gaps become silence, 16 kHz.
"""

from fractions import Fraction

from kdctool.media.settings import SAMPLE_RATE


def audio_chain(num_channels: int, begin: Fraction) -> list[tuple[str, dict[str, str]]]:
    """Names and options of libavfilter's filters. Sound before `begin` (s) is dropped, a gap after it is filled."""
    chain = [("aformat", {"sample_fmts": "fltp"})]
    if num_channels > 1:
        terms = "+".join(f"{1 / num_channels:.9f}*c{channel}" for channel in range(num_channels))
        chain.append(("pan", {"args": f"mono|c0={terms}"}))
    chain.append(("asetpts", {"expr": f"PTS-({float(begin):.9f})/TB"}))
    # Cut before resampling: both decoders then begin with the same source sample, wherever they started to read.
    chain.append(("atrim", {"start_pts": "0"}))
    chain.append(("aresample", {"osr": str(SAMPLE_RATE), "async": "1", "first_pts": "0"}))
    return chain


SEEK_FROM = Fraction(30)
"""Seconds: sound of a window that starts later is not decoded from the file's start. In a container whose clock is
coarse (mkv: 1 ms) the two decoders may then disagree by that much."""
PREROLL = Fraction(1)
"""Seconds of sound that are decoded before such a window, so that the codec has settled."""

SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int"
"""Without the last two, libswscale darkens a picture by two levels while it converts to RGB."""
