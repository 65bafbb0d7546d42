"""The fast decoder: reads only the groups of pictures that hold a wanted frame, and skips what no wanted frame needs.

A non-reference frame influences no other frame, so leaving it out changes nothing: the frames are those of a
full decoding, bit for bit, where the codec says truly which frames are references (`EXACT`).
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from kdctool.media.audio_chain import SCALE_FLAGS
from kdctool.media.container import decoder
from kdctool.media.plan import Plan
from kdctool.media.quarantine import Rejected
from kdctool.media.sound_pyav import sound
from kdctool.media.source import Source

EXACT = frozenset({"h264", "hevc", "mpeg4"})
"""Codecs whose non-reference frames may be skipped, proven at one thread."""
FULL = frozenset({"av1", "mpeg1video", "mpeg2video", "vp8", "vp9"})
"""Codecs that `auto` gives to this decoder too, without skipping."""
_HEAD = 65
"""Packets after which a first frame must have come out."""
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}


def first_frame(source: Source, goes_on: bool = True) -> Any:
    """Decode until a first frame comes out; its side data holds the rotation.

    Where this decoder `goes_on` with the clip, it does so from there. Where not, the first packet is enough as a rule.
    """
    if not goes_on:
        frame = _first_alone(source)
        if frame is not None:
            return frame
    entries = source.video.entries[:_HEAD]
    context = _rewound(source)
    # Without the mark of an edit list, which would hide the frame.
    is_bare = not all(entry.shown for entry in entries)
    try:
        for number, packet in enumerate(source.packets(source.video, 0, len(entries) - 1), 1):
            frames = context.decode(_bare(packet) if is_bare else packet)
            if frames:
                source.head = None if is_bare else (number, frames)
                return frames[0]
        for frame in context.decode(None):
            return frame
    except av.error.FFmpegError as error:
        raise Rejected("decode_error", f"the first frame: {error.strerror}") from error
    raise Rejected("decode_error", "no frame could be decoded")


def _first_alone(source: Source) -> Any:
    """The frame of the first packet; None where it gives none without others."""
    context = _rewound(source)
    try:
        for packet in source.packets(source.video, 0, 0):
            return next(iter([*context.decode(_bare(packet)), *context.decode(None)]), None)
    except av.error.FFmpegError:
        return None  # All of them are tried next.
    finally:
        _rewound(source)
    return None


def _rewound(source: Source) -> Any:
    """The video's decoder as if it were new."""
    context, source.head = decoder(source.video_stream), None
    if context.is_open:
        context.flush_buffers()
    context.skip_frame = "DEFAULT"
    return context


def _bare(packet: Any) -> Any:
    bare = av.Packet(bytes(packet))
    bare.pts, bare.dts, bare.time_base = packet.pts, packet.dts, packet.time_base
    return bare


def decode(source: Source, plan: Plan) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """The wanted frames, (H, W, 3) as delivered by the scaler, and the window's sound, (S,), at the plan's rate."""
    frames = _frames(source, plan) if plan.pts else []
    return frames, sound(source, plan) if plan.has_sound else np.zeros(0, np.float32)


def _frames(source: Source, plan: Plan) -> list[NDArray[np.uint8]]:
    wanted = set(plan.pts)
    scaler = _Scaler(plan.geometry.scaled, source.video.time_base)
    found: dict[int, NDArray[np.uint8]] = {}
    problem = ""
    thrifty = source.video.codec in EXACT
    for ranges in ([_needed(source, wanted, skip_groups=thrifty)] if thrifty else []) + [
        _needed(source, wanted, skip_groups=False)
    ]:
        try:
            for frame in _decode_ranges(source, ranges, wanted, thrifty):
                if frame.pts in wanted and frame.pts not in found:
                    found[frame.pts] = scaler(frame)
        except av.error.FFmpegError as error:
            problem = error.strerror or str(error)
        if len(found) == len(wanted):
            return [found[pts] for pts in plan.pts]
        thrifty = False  # Once more, now every frame from the start of the group: a wrong flag costs time, not a clip.
    raise Rejected("decode_error", problem or f"{len(found)} of {len(wanted)} frames could be decoded")


def _needed(source: Source, wanted: set[int], skip_groups: bool) -> list[tuple[int, int]]:
    """Ranges of packets, first and last, that have to be fed to get the wanted frames.

    A frame shown before the key frame of its group leans on the group before.
    """
    entries = source.video.entries
    keys = [place for place, entry in enumerate(entries) if entry.key]
    ranges: list[list[int]] = []
    group = -1
    for place, entry in enumerate(entries):
        if group + 1 < len(keys) and place == keys[group + 1]:
            group += 1
        if entry.pts not in wanted or not entry.shown:
            continue
        first = keys[max(0, group - 1)] if entry.pts < entries[keys[group]].pts else keys[group]
        if ranges and (first <= ranges[-1][1] or not skip_groups):
            ranges[-1][1] = place
        else:
            ranges.append([first, place])
    return [(first, last) for first, last in ranges]


def _decode_ranges(source: Source, ranges: list[tuple[int, int]], wanted: set[int], thrifty: bool) -> Iterator[Any]:
    for first, last in ranges:
        head = source.head
        context = decoder(source.video_stream) if head else _rewound(source)
        if head and first == 0 and last >= head[0]:  # The decoder stands behind the first frame.
            first, source.head = head[0], None
            yield from head[1]
        elif head:
            context = _rewound(source)
        entries = source.video.entries[first : last + 1]
        for entry, packet in zip(entries, source.packets(source.video, first, last), strict=True):
            context.skip_frame = "NONREF" if thrifty and entry.pts not in wanted else "DEFAULT"
            yield from context.decode(packet)
        context.skip_frame = "DEFAULT"
        yield from context.decode(None)


class _Scaler:
    """libavfilter's scale to RGB, the same filter that ffmpeg runs; a new graph when the picture's format changes."""

    def __init__(self, size: tuple[int, int], time_base: Fraction) -> None:
        self.size, self.time_base = size, time_base
        self._key: tuple[Any, ...] = ()
        self._graph: Any = None

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if key != self._key:
            self._key, self._graph = key, self._build(frame)
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()

    def _build(self, frame: Any) -> Any:
        graph = Graph()
        graph.threads = 1
        options = {"w": str(self.size[0]), "h": str(self.size[1]), "flags": SCALE_FLAGS}
        if frame.colorspace in _MATRICES:
            options["in_color_matrix"] = _MATRICES[frame.colorspace]
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=self.time_base),
            graph.add("scale", **options),
            graph.add("format", pix_fmts="rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes)
        graph.configure()
        return graph
