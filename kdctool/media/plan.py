"""Which windows a video is cut into, and which frames of a window are wanted: by timestamp, in exact fractions."""

from dataclasses import dataclass
from fractions import Fraction

from kdctool.media.geometry import Geometry
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Item, Segment, Settings, Window
from kdctool.media.source import Source

SHORTEST = Fraction(25, 1000)
"""One analysis frame of the filter bank."""


@dataclass(frozen=True)
class Plan:
    """What a decoder is asked for: frames by their timestamps, and sound from the same start."""

    pts: tuple[int, ...]
    """Of the N frames, in the video's time base; a slow video repeats them. None where there is no picture."""
    begin: Fraction
    """The window's start on the file's own clock, seconds."""
    window: Window
    geometry: Geometry
    audio_pad: Fraction
    """Seconds without sound at the start of the window."""
    has_sound: bool = True

    @property
    def end(self) -> Fraction:
        return self.begin + self.window.length


def until(settings: Settings, segment: Segment | None) -> Fraction | None:
    """How far a file has to be read, in seconds after its first frame; None: to its end."""
    if segment is not None and segment.length_ms is not None:
        end = Fraction(segment.start_ms + segment.length_ms, 1000)
    elif settings.stride_s is not None:
        return None
    else:
        end = Fraction(segment.start_ms if segment else 0, 1000) + Fraction(settings.window_s)
    return end + 1  # Frames are stored out of order by less than this.


def shared_until(settings: Settings, item: Item) -> Fraction | None:
    """How far a file is read when it is read once for all its segments; never less than `until`."""
    own = until(settings, item.segment)
    if own is None or item.furthest_ms is None:
        return own
    return max(own, Fraction(item.furthest_ms, 1000) + Fraction(settings.window_s) + 1)


def windows(source: Source, settings: Settings, segment: Segment | None) -> list[Window]:
    """Cut a video, or a segment of it. Without a stride only the first window; a rest of half a window counts."""
    duration = source.end - source.start
    first = Fraction(segment.start_ms if segment else 0, 1000)
    if first >= duration:
        raise Rejected("outside", f"starts at {float(first):.3f} s of {float(duration):.3f} s")
    end = duration
    if segment is not None and segment.length_ms is not None:
        end = min(duration, first + Fraction(segment.length_ms, 1000))
    window = Fraction(settings.window_s)
    wanted = window if segment is None or segment.length_ms is None else min(window, Fraction(segment.length_ms, 1000))
    length = min(window, end - first)
    if length < SHORTEST:
        raise Rejected("too_short", f"{float(length):.3f} s of {'picture' if source.has_video else 'sound'}")
    if segment is not None and length < wanted / 2 and segment.length_ms is not None:
        raise Rejected("too_short", f"only {float(length):.3f} s of the segment lie inside the video")
    found = [Window(segment.start_ms if segment else 0, length, settings.sample_rate)]
    if settings.stride_s is not None:
        count = 1
        while (rest := end - (start := first + count * Fraction(settings.stride_s))) >= window / 2:
            found.append(Window(round(start * 1000), min(window, rest), settings.sample_rate))
            count += 1
    return found


def plan(source: Source, settings: Settings, window: Window, geometry: Geometry) -> Plan:
    """Frame i of N is the last one with pts <= start + i * window / N, or start + i / fps.

    Rejected where there is too little sound, unless clips may lack it.
    """
    begin = source.start + window.start
    wanted: list[int] = []
    if source.has_video:
        pts = source.shown_pts()
        wanted = [source.last_before(pts, begin + moment) for moment in settings.moments(window.length)]
    if not source.has_audio:
        return Plan(tuple(wanted), begin, window, geometry, Fraction(0), has_sound=False)
    sound_from, sound_to = max(source.audio.start, begin), min(source.audio.end, begin + window.length)
    sound = max(Fraction(0), sound_to - sound_from)
    if sound < window.length / 2:
        if wanted and settings.may_lack("audio"):
            return Plan(tuple(wanted), begin, window, geometry, Fraction(0), has_sound=False)
        raise Rejected("too_short", f"{float(sound):.3f} s of sound in a window of {float(window.length):.3f} s")
    pad = max(Fraction(0), source.audio.start - begin)
    pad = pad if pad * window.sample_rate >= 1 else Fraction(0)
    return Plan(tuple(wanted), begin, window, geometry, pad)
