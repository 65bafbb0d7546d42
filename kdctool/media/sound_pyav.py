"""Sound through PyAV: the packets of a window, decoded, on a clock that counts samples, through the shared filters."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil, floor
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from kdctool.media.audio_chain import PREROLL, SEEK_FROM, Anchor, audio_chain
from kdctool.media.container import decoder
from kdctool.media.plan import Plan
from kdctool.media.quarantine import Rejected
from kdctool.media.source import Source

_TAIL = Fraction(1, 5)
_PRIMING = 16
"""Packets at the start of a track from which no sound may come."""
_SETTLING = 8
_PULL_EVERY = 256
"""Frames that wait in the graph; asking it more often takes longer than the filters themselves."""


def sound(source: Source, plan: Plan) -> NDArray[np.float32]:
    """The window's sound, (S,), mono, at the plan's rate; shorter where the track ends in the window."""
    graph: Any = None
    pieces: list[NDArray[np.float32]] = []
    num_pushed = 0
    first, last = _range(source, plan)
    try:
        for frame in _decoded(source, plan, first, last):
            if graph is None:
                graph = _graph(source, plan, frame)
            graph.push(_in_samples(frame))
            num_pushed += 1
            if num_pushed % _PULL_EVERY == 0:
                _pull(graph, pieces)
        if graph is not None:
            graph.push(None)
            _pull(graph, pieces)
    except av.error.FFmpegError as error:
        raise Rejected("decode_error", f"sound: {error.strerror}") from error
    return np.concatenate(pieces)[: plan.window.num_samples] if pieces else np.zeros(0, np.float32)


def anchor(source: Source, plan: Plan) -> Anchor | None:
    """Where this decoder hears the window's first sound; None where the clock is fine, or nothing is heard."""
    if not _is_coarse(source):
        return None
    first, last = _range(source, plan)
    try:
        for frame in _decoded(source, plan, first, min(last, first + _PRIMING)):
            return _anchor(source, frame)
    except av.error.FFmpegError:
        return None  # The clip's own decoding says what is wrong.
    return None


def end_of_sound(source: Source) -> Fraction | None:
    """Seconds on the file's clock; None where the last packet does not say how long it is."""
    last = max(source.audio.entries, key=lambda entry: entry.pts)
    return None if last.end <= last.pts else last.end * source.audio.time_base


def _is_coarse(source: Source) -> bool:
    return source.audio.time_base * source.audio_stream.codec_context.sample_rate > 1


def _anchor(source: Source, frame: Any) -> Anchor | None:
    if frame.pts is None:
        return None
    usual = source.audio_stream.codec_context.frame_size or frame.samples
    reach = min(frame.time_base, Fraction(2 * usual, 5 * frame.sample_rate))
    return Anchor(frame.pts * frame.time_base, frame.samples, reach)


def _range(source: Source, plan: Plan) -> tuple[int, int]:
    """The first and the last packet that the window needs."""
    base, entries = source.audio.time_base, source.audio.entries
    heard_from = plan.begin - PREROLL if plan.window.start > SEEK_FROM else entries[0].pts * base
    # In whole units: a day has millions of packets.
    after, before = floor(heard_from / base), ceil((plan.end + _TAIL) / base)
    first = next((i for i, e in enumerate(entries) if e.end > after), 0)
    return first, max((i for i, e in enumerate(entries) if e.pts < before), default=-1)


def _decoded(source: Source, plan: Plan, first: int, last: int) -> Iterator[Any]:
    """The frames of the packets `first` to `last`.

    A decoder that begins inside a track skips priming there if it is new, and does not if it was used before, so
    it begins some packets earlier, and what it gives for those is not used.
    """
    base, context = source.audio.time_base, decoder(source.audio_stream)
    if context.is_open:
        context.flush_buffers()
    settle = max(0, first - _SETTLING)
    heard_from = source.audio.entries[first].pts if settle < first else None
    entries = source.audio.entries[settle : last + 1]
    for entry, packet in zip(entries, source.packets(source.audio, settle, last), strict=True):
        try:
            frames = context.decode(packet)
        except av.error.FFmpegError:
            if entry.end * base <= plan.begin:
                continue  # Before the window: a codec may need some packets to settle.
            raise
        for frame in frames:
            if heard_from is None or frame.pts is None or frame.pts >= heard_from:
                yield frame
    yield from context.decode(None)


def _graph(source: Source, plan: Plan, frame: Any) -> Any:
    graph = Graph()
    graph.threads = 1
    rate = frame.sample_rate
    nodes = [graph.add_abuffer(sample_rate=rate, format=frame.format, layout=frame.layout, time_base=Fraction(1, rate))]
    chain = audio_chain(
        frame.layout.nb_channels,
        rate,
        plan.begin,
        end_of_sound(source),
        plan.window.sample_rate,
        _anchor(source, frame) if _is_coarse(source) else None,
    )
    for name, options in chain:
        nodes.append(graph.add(name, options["args"]) if "args" in options else graph.add(name, **options))
    # Few large pieces instead of one per frame of the codec.
    graph.link_nodes(*nodes, graph.add("asetnsamples", n="16384", p="0"), graph.add("abuffersink"))
    graph.configure()
    return graph


def _in_samples(frame: Any) -> Any:
    """The frame with a clock that counts samples."""
    if frame.pts is not None:
        base, rate = frame.time_base, frame.sample_rate
        frame.pts = (2 * frame.pts * base.numerator * rate + base.denominator) // (2 * base.denominator)
        frame.time_base = Fraction(1, rate)
    return frame


def _pull(graph: Any, pieces: list[NDArray[np.float32]]) -> None:
    while True:
        try:
            pieces.append(graph.pull().to_ndarray()[0])
        except (av.error.BlockingIOError, av.error.EOFError):
            return
