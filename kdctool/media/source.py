"""Opens a media file under the allow-lists and reads its packets: which frames it has, and when.

Nothing is decoded but the first frame, whose side data says how the picture is turned. The file's own frame
count is never believed: an edit list hides packets from it.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
from av.stream import Disposition

from kdctool.media.container import check_file, disk_fails, open_container, words
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Settings

MAX_PIXELS = 33_177_600
"""7680 x 4320."""
MAX_STREAMS = 64
MAX_PACKETS = 4_000_000
KEPT_BYTES = 64 << 20
"""Packets are kept in memory up to this many bytes; a longer file is read again for decoding."""
_PLAIN = Settings()
_LESSER = Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.comment | Disposition.descriptions


@dataclass(slots=True)
class Entry:
    """A packet without its bytes; times in units of its stream's time base."""

    pts: int
    end: int
    key: bool
    shown: bool
    packet: Any = None


@dataclass
class Track:
    """A stream that was chosen, and the packets of it that were read."""

    index: int
    codec: str
    time_base: Fraction
    entries: list[Entry] = field(default_factory=list)

    @property
    def start(self) -> Fraction:
        return min(entry.pts for entry in self.entries if entry.shown) * self.time_base

    @property
    def end(self) -> Fraction:
        return max(entry.end for entry in self.entries if entry.shown) * self.time_base


class Source:
    """A media file that is open: its chosen streams and their packets.

    The track of a modality that it lacks, and may lack by the settings, is there without entries.
    """

    def __init__(self, path: str, settings: Settings = _PLAIN) -> None:
        self.path, self.settings = path, settings
        self.read_until: Fraction | None = Fraction(0)
        self.starts_with_key = True
        self.head: tuple[int, list[Any]] | None = None
        """Of the video's decoder while nothing else was decoded: how many packets it took, and the frames it gave."""
        self.status = check_file(path)
        self.container = open_container(path)
        try:
            self._choose()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.container.close()

    def _choose(self) -> None:
        streams = self.container.streams
        if len(streams) > MAX_STREAMS:
            raise Rejected("too_large", f"{len(streams)} streams")
        videos = [
            s for s in streams.video if not s.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
        ]
        self.has_video, self.has_audio = bool(videos), bool(streams.audio)
        if not self.has_video and not (self.has_audio and self.settings.may_lack("video")):
            raise Rejected("no_video", "only a cover picture" if streams.video else "")
        if not self.has_audio and not self.settings.may_lack("audio"):
            raise Rejected("no_audio")
        decodable = [s for s in _named(videos, self.settings.video_stream) if s.codec_context is not None]
        heard = [
            s
            for s in _named(list(streams.audio), self.settings.audio_stream)
            if s.codec_context is not None and s.codec_context.sample_rate
        ]
        if (self.has_video and not decodable) or (self.has_audio and not heard):
            raise Rejected("no_decoder")
        decodable.sort(key=lambda s: (_preferred(s), s.width * s.height, s.bit_rate or 0, -s.index))
        heard.sort(key=lambda s: (_preferred(s), s.codec_context.sample_rate, s.channels, s.bit_rate or 0, -s.index))
        self.video_stream: Any = decodable[-1] if decodable else None
        self.audio_stream: Any = heard[-1] if heard else None
        width, height = (decodable[-1].width, decodable[-1].height) if decodable else (0, 0)
        if width * height > MAX_PIXELS:
            raise Rejected("too_large", f"{width}x{height} pixels")
        self.video, self.audio = _track(self.video_stream), _track(self.audio_stream)

    @property
    def start(self) -> Fraction:
        """Time zero of all clips on the file's clock: the first frame, or the first sound where there is no picture."""
        return (self.video if self.has_video else self.audio).start

    @property
    def end(self) -> Fraction:
        return (self.video if self.has_video else self.audio).end

    def read_packets(self, until: Fraction | None) -> None:
        """Read packets up to `until` seconds after the first frame (None: all), then look at the file's end.

        Rejected as truncated where the packets end clearly before the duration in the header.
        """
        self.read_until = until
        ends: dict[int, int] = {}  # Of every stream, in its own unit: fractions for each packet would take longer.
        kept_bytes, num_packets, complete, damage = 0, 0, True, ""
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, OSError) as error:
                if disk_fails(self.path, error):
                    raise Rejected("io_error", words(error)) from error
                damage = words(error)
                break
            num_packets += 1
            if num_packets > MAX_PACKETS:
                raise Rejected("too_large", f"more than {MAX_PACKETS} packets")
            if not packet.size:
                continue
            entry, track = _entry(packet), self._track_of(packet.stream_index)
            if entry is None:  # Cover pictures, for one.
                if track is not None:
                    raise Rejected("decode_error", "a packet has no time")
                continue
            ends[packet.stream_index] = max(ends.get(packet.stream_index, entry.end), entry.end)
            if track is None:
                continue
            kept_bytes += packet.size
            if kept_bytes <= KEPT_BYTES:
                entry.packet = packet
            track.entries.append(entry)
            if until is not None and num_packets % 64 == 0 and self._reached(ends, until):
                complete = False
                break
        self.is_kept = kept_bytes <= KEPT_BYTES
        self._finish_tracks()
        bases = {stream.index: stream.time_base for stream in self.container.streams}
        self._check_end(max(end * bases[index] for index, end in ends.items()), complete, damage)

    def _track_of(self, index: int) -> Track | None:
        return self.video if index == self.video.index else self.audio if index == self.audio.index else None

    def _reached(self, ends: dict[int, int], until: Fraction) -> bool:
        tracks = ([self.video] if self.has_video else []) + ([self.audio] if self.has_audio else [])
        first = next((entry for entry in tracks[0].entries if entry.shown), None)
        if first is None or not all(track.entries for track in tracks):
            return False
        limit = first.pts * tracks[0].time_base + until
        return all(ends[track.index] * track.time_base > limit for track in tracks)

    def _finish_tracks(self) -> None:
        if self.has_video:
            self._finish_video()
        if self.has_audio and not any(entry.shown for entry in self.audio.entries):
            if not (self.has_video and self.settings.may_lack("audio")):
                raise Rejected("too_short", "the audio stream holds no sound")
            self.has_audio, self.audio = False, _track(None)

    def _finish_video(self) -> None:
        """Hide what cannot be decoded: frames before the first key frame, and those that lean on such frames."""
        entries = self.video.entries
        first = next((place for place, entry in enumerate(entries) if entry.key), None)
        if first is None:
            raise Rejected("decode_error" if entries else "truncated", "no key frame")
        self.starts_with_key = first == 0
        del entries[:first]
        for entry in entries[1:]:
            if entry.key:
                break
            entry.shown = entry.shown and entry.pts > entries[0].pts
        if not any(entry.shown for entry in entries):
            raise Rejected("decode_error", "no frame is shown")
        usual = self._usual_step(sorted(entry.pts for entry in entries if entry.shown))
        for entry in entries:
            if entry.end <= entry.pts:
                entry.end = entry.pts + usual

    def _usual_step(self, pts: list[int]) -> int:
        steps = sorted(b - a for a, b in pairwise(pts) if b > a)
        if steps:
            return steps[len(steps) // 2]
        rate = self.video_stream.average_rate or self.video_stream.guessed_rate or 25
        return max(1, round(1 / (rate * self.video.time_base)))

    def _check_end(self, end: Fraction, complete: bool, damage: str) -> None:
        claimed = self.container.duration
        if claimed is None:
            if damage:
                raise Rejected("truncated", damage)
            return
        length = Fraction(claimed, av.time_base)
        wanted = length + Fraction(self.container.start_time or 0, av.time_base)
        allowed = Fraction(3, 10) + length / 100
        if end < wanted - allowed and not complete:
            end = max(end, self._last_time(wanted))
        if end < wanted - allowed:
            raise Rejected(
                "truncated", f"ends {float(wanted - end):.2f} s before the {float(length):.2f} s of its header"
            )

    def _last_time(self, wanted: Fraction) -> Fraction:
        """Where the packets end, found by seeking close to the end; for long files of which little is needed."""
        end = Fraction(0)
        try:
            self.container.seek(max(0, int((wanted - 2) * av.time_base)))
            for packet in self.container.demux():
                if packet.size and packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        except (av.error.FFmpegError, OSError):
            return end
        return end

    def shown_pts(self) -> list[int]:
        """Presentation times of the frames that a player shows, sorted, in the video's time base."""
        return sorted({entry.pts for entry in self.video.entries if entry.shown})

    def last_before(self, pts: list[int], moment: Fraction) -> int:
        """The last of the sorted `pts` that is not after `moment`; the first where all are."""
        return pts[max(0, bisect_right(pts, int(moment // self.video.time_base)) - 1)]

    def packets(self, track: Track, first: int, last: int) -> Iterator[Any]:
        """The packets `first` to `last` of a track, from memory or read again from the file."""
        if self.is_kept:
            for entry in track.entries[first : last + 1]:
                yield entry.packet
            return
        stream = self.container.streams[track.index]
        self.container.seek(track.entries[first].pts, stream=stream)
        wanted = track.entries[first]
        place = None
        for packet in self.container.demux(stream):
            if not packet.size:
                continue
            if place is None and _pts(packet) == wanted.pts:
                place = first
            if place is None:
                continue
            yield packet
            place += 1
            if place > last:
                return
        raise Rejected("decode_error", "packets were not found again")


def _preferred(stream: Any) -> tuple[bool, bool]:
    return bool(stream.disposition & Disposition.default), not stream.disposition & _LESSER


def _named(streams: list[Any], wanted: int | None) -> list[Any]:
    if wanted is None or not streams:
        return streams
    if wanted >= len(streams):
        raise Rejected("no_such_stream", f"{len(streams)} streams of this kind, number {wanted} was asked for")
    return [streams[wanted]]


def _track(stream: Any) -> Track:
    if stream is None:
        return Track(-1, "", Fraction(1))
    return Track(stream.index, stream.codec_context.codec.canonical_name, stream.time_base)


def _pts(packet: Any) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _entry(packet: Any) -> Entry | None:
    pts = _pts(packet)
    if pts is None:
        return None
    return Entry(pts, pts + (packet.duration or 0), packet.is_keyframe, not packet.is_discard)
