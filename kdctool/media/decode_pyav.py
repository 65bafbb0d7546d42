"""The fast decoder: reads only the groups of pictures that hold a wanted frame, and skips what no wanted frame needs.

A non-reference frame influences no other frame, so leaving it out changes nothing: the frames are those of a
full decoding, bit for bit, where the codec says truly which frames are references (`EXACT`).
"""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil, floor
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from kdctool.media.audio_chain import PREROLL, SCALE_FLAGS, SEEK_FROM, audio_chain
from kdctool.media.plan import Plan
from kdctool.media.quarantine import Rejected
from kdctool.media.source import Source

EXACT = frozenset({"h264", "hevc", "mpeg4"})
"""Codecs whose non-reference frames may be skipped, proven at one thread."""
FULL = frozenset({"av1", "mpeg1video", "mpeg2video", "vp8", "vp9"})
"""Codecs that `auto` gives to this decoder too, without skipping."""
_TAIL = Fraction(1, 5)
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}


def first_frame(source: Source) -> Any:
    """Decode until a first frame comes out; its side data holds the rotation."""
    context = _context(source.video_stream)
    try:
        for packet in source.packets(source.video, 0, min(64, len(source.video.entries) - 1)):
            bare = av.Packet(bytes(packet))  # Without the mark of an edit list, which would hide the frame.
            bare.pts, bare.dts, bare.time_base = packet.pts, packet.dts, packet.time_base
            for frame in context.decode(bare):
                return frame
        for frame in context.decode(None):
            return frame
    except av.error.FFmpegError as error:
        raise Rejected("decode_error", f"the first frame: {error.strerror}") from error
    finally:
        if context.is_open:
            context.flush_buffers()
    raise Rejected("decode_error", "no frame could be decoded")


def decode(source: Source, plan: Plan) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """The wanted frames, (H, W, 3) as delivered by the scaler, and the window's sound, (S,), 16 kHz."""
    return _frames(source, plan), _sound(source, plan)


def _context(stream: Any) -> Any:
    context = stream.codec_context
    if not context.is_open:
        context.thread_count = 1
        context.thread_type = "NONE"
        context.options = {"err_detect": "explode"}  # Concealed damage would be an invented picture.
    return context


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
    context = _context(source.video_stream)
    for first, last in ranges:
        if context.is_open:
            context.flush_buffers()
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


def _sound(source: Source, plan: Plan) -> NDArray[np.float32]:
    base, entries = source.audio.time_base, source.audio.entries
    heard_from = plan.begin - PREROLL if plan.window.start > SEEK_FROM else entries[0].pts * base
    first = next((i for i, e in enumerate(entries) if e.end * base > heard_from), 0)
    last = max((i for i, e in enumerate(entries) if e.pts * base < plan.end + _TAIL), default=-1)
    context = _context(source.audio_stream)
    if context.is_open:
        context.flush_buffers()
    graph, clock = None, _Clock()
    pieces: list[NDArray[np.float32]] = []
    try:
        for entry, packet in zip(entries[first : last + 1], source.packets(source.audio, first, last), strict=True):
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError:
                if entry.end * base <= plan.begin:
                    continue  # Before the window: a codec may need some packets to settle.
                raise
            for frame in frames:
                graph = graph or _audio_graph(frame, plan.begin)
                graph.push(clock(frame))
                _pull(graph, pieces)
        for frame in context.decode(None):
            graph = graph or _audio_graph(frame, plan.begin)
            graph.push(clock(frame))
            _pull(graph, pieces)
        if graph is not None:
            graph.push(None)
            _pull(graph, pieces)
    except av.error.FFmpegError as error:
        raise Rejected("decode_error", f"sound: {error.strerror}") from error
    return np.concatenate(pieces)[: plan.window.num_samples] if pieces else np.zeros(0, np.float32)


def _audio_graph(frame: Any, begin: Fraction) -> Any:
    graph = Graph()
    graph.threads = 1
    rate = frame.sample_rate
    nodes = [graph.add_abuffer(sample_rate=rate, format=frame.format, layout=frame.layout, time_base=Fraction(1, rate))]
    for name, options in audio_chain(frame.layout.nb_channels, begin):
        nodes.append(graph.add(name, options["args"]) if "args" in options else graph.add(name, **options))
    graph.link_nodes(*nodes, graph.add("abuffersink"))
    graph.configure()
    return graph


class _Clock:
    """Counts sound in samples, as ffmpeg does: a container's coarse clock (mkv: 1 ms) is a hint.

    A frame follows the one before without a gap unless its own time is further off than its clock is coarse.
    """

    def __init__(self) -> None:
        self._next: int | None = None

    def __call__(self, frame: Any) -> Any:
        if frame.pts is None:
            return frame
        step = frame.time_base * frame.sample_rate
        at = round(frame.pts * step)
        if self._next is not None and step > 1:
            low, high = floor((frame.pts - Fraction(1, 2)) * step), ceil((frame.pts + Fraction(1, 2)) * step)
            if 2 * low - high <= self._next <= 2 * high - low:
                at = min(max(self._next, low), high)
        self._next = at + frame.samples
        frame.pts, frame.time_base = at, Fraction(1, frame.sample_rate)
        return frame


def _pull(graph: Any, pieces: list[NDArray[np.float32]]) -> None:
    while True:
        try:
            pieces.append(graph.pull().to_ndarray()[0])
        except (av.error.BlockingIOError, av.error.EOFError):
            return
