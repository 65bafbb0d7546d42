"""The sound of both decoders passes the same filters, so that both deliver the same samples.

All channels count alike (their mean), the clock starts at the window, gaps become silence, one rate for all.
"""

from dataclasses import dataclass
from fractions import Fraction

_DROPPED = 10**9
"""Samples before the window: what is put there is cut off."""
_GAP = 2.5
"""A frame that is due this many reaches away from its own time is not due: there is a gap."""


@dataclass(frozen=True)
class Anchor:
    """Where the first sound that is heard lies, where a container's clock is coarser than a sample (mkv: 1 ms).

    Decoders of different versions place it differently inside a tick, and some let a codec's priming be heard
    before it. Both are led to this place.
    """

    at: Fraction
    """Seconds on the file's own clock."""
    num_samples: int
    """Of this first sound, at the track's rate: what is left of the codec's frame without its priming."""
    reach: Fraction
    """Seconds: a frame that ends this close to where the first one ends is the first."""


def audio_chain(
    num_channels: int, source_rate: int, begin: Fraction, end: Fraction | None, sample_rate: int, anchor: Anchor | None
) -> list[tuple[str, dict[str, str]]]:
    """Names and options of libavfilter's filters, for sound whose clock counts samples of `source_rate`.

    Sound before `begin` (seconds on the file's clock) is dropped, a gap after it is filled. At `end` the track
    ends; some versions let the rest of a codec's last frame be heard.
    """
    chain = [("aformat", {"sample_fmts": "fltp"})]
    if num_channels > 1:
        terms = "+".join(f"{1 / num_channels:.9f}*c{channel}" for channel in range(num_channels))
        chain.append(("pan", {"args": f"mono|c0={terms}"}))
    chain.append(("asetpts", {"expr": _clock(source_rate, begin, anchor)}))
    # Cut before resampling: both decoders then begin and end with the same source sample, wherever they read from.
    heard_from = 0 if anchor is None else max(0, round((anchor.at - begin) * source_rate))
    cut = {} if end is None else {"end_pts": str(max(heard_from + 1, round((end - begin) * source_rate)))}
    chain.append(("atrim", {"start_pts": str(heard_from)} | cut))
    chain.append(("aresample", {"osr": str(sample_rate), "async": "1", "first_pts": "0"}))
    return chain


def _clock(rate: int, begin: Fraction, anchor: Anchor | None) -> str:
    """The expression that gives a frame its place, in samples after the window's start.

    With an anchor: frames before it are dropped, from there on samples are counted, and the container's clock is
    asked only whether there is a gap. Variable 0: whether the anchor was met; 2: where the next frame is due.
    """
    begin_at = f"({float(begin):.9f})/TB"
    if anchor is None:
        return f"PTS-{begin_at}"
    end, reach = round(anchor.at * rate) + anchor.num_samples, float(anchor.reach * rate)
    is_first = f"lt(abs(PTS+NB_SAMPLES-{end}),{reach:.3f})"
    is_before = f"not(ld(0))*not({is_first})*lt(PTS,{end - reach:.3f})"
    due = f"if({is_first},{end}-NB_SAMPLES,if(lt(PTS,{end + reach:.3f}),{end},PTS))"
    meet = f"if(not(ld(0)),0*st(0,1)+0*st(2,{due}))"
    place = f"0*st(1,if(isnan(PTS)+lt(abs(PTS-ld(2)),{_GAP * reach:.3f}),ld(2),PTS))"
    return f"if({is_before},-{_DROPPED},{meet}+{place}+0*st(2,ld(1)+NB_SAMPLES)+ld(1)-{begin_at})"


SEEK_FROM = Fraction(30)
"""Seconds: sound of a window that starts later is not decoded from the file's start."""
PREROLL = Fraction(1)
"""Seconds of sound that are decoded before such a window, so that the codec has settled."""

SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int"
"""Without the last two, libswscale darkens a picture by two levels while it converts to RGB."""
