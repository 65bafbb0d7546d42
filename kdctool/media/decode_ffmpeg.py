"""The isolated decoder: one ffmpeg process per clip gives frames and sound in a single pass. Never through a shell."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from kdctool.media import limits
from kdctool.media.audio_chain import PREROLL, SCALE_FLAGS, SEEK_FROM, Anchor, audio_chain
from kdctool.media.container import CONTAINERS, PROTOCOLS, READING_FLAGS
from kdctool.media.plan import Plan
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Tools
from kdctool.media.sound_pyav import anchor, end_of_sound
from kdctool.media.source import MAX_PIXELS, Source

_INPUT = "the input"
"""ffmpeg-python takes names that are UTF-8 only, so the true one is put into the finished list of arguments."""
_SPARE = Fraction(3, 10)
_SPARE_AFTER_SEEK = 10
"""Seconds: a container may seek to an earlier place than the key frame that was asked for."""
_DELAY = Fraction(3, 20)
"""Seconds: where a codec reorders frames, ffmpeg seeks to this much before the target (3/23 s)."""
_PTS = re.compile(rb"\bpts:(-?\d+)")


def decode(source: Source, plan: Plan, tools: Tools) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """The wanted frames, (H, W, 3) as delivered by the scaler, and the window's sound, (S,), at the plan's rate."""
    wanted = sorted(set(plan.pts))
    width, height = plan.geometry.scaled
    frame_bytes = width * height * 3
    sound_bytes = 4 * (plan.window.num_samples + plan.window.sample_rate)
    most = [frame_bytes * len(wanted), sound_bytes, 1 << 20]
    seeks = [_seek_to(source, plan, wanted), None] if plan.window.start > SEEK_FROM else [None]
    for seek in seeks:  # A seek that misses its key frame costs time, not the clip.

        def command(pipes: Sequence[int], seek: _Seek | None = seek) -> list[str]:
            arguments = _graph(source, plan, wanted, seek, pipes).compile(cmd=tools.ffmpeg)
            return [f"file:{source.path}" if argument == _INPUT else argument for argument in arguments]

        status, (pictures, sound, times), errors = limits.run(command, most, tools.clip_timeout_s, tools.memory_bytes)
        got = [int(pts) for pts in _PTS.findall(times)]
        if got == wanted:
            break
    if status < 0:
        name = signal.Signals(-status).name
        raise Rejected("timeout" if name == "SIGXCPU" else "decoder_crash", f"ffmpeg was ended by {name}")
    if status != 0 or got != wanted or len(pictures) != frame_bytes * len(wanted):
        reason = "too_large" if "Cannot allocate memory" in errors else "decode_error"
        # ffmpeg's own words and the number of frames differ from run to run, as its threads race to the end.
        raise Rejected(reason, "ffmpeg could not decode the whole window")
    frames = np.frombuffer(pictures, np.uint8).reshape(len(wanted), height, width, 3)
    by_pts = dict(zip(wanted, frames, strict=True))
    return [by_pts[pts] for pts in plan.pts], np.frombuffer(sound, np.float32)[: plan.window.num_samples]


@dataclass(frozen=True)
class _Seek:
    """Where reading begins, in seconds on the file's clock."""

    target: Fraction
    key: Fraction
    """The key frame that a seek to `target` finds, or an earlier one."""


def _seek_to(source: Source, plan: Plan, wanted: list[int]) -> _Seek:
    """From there frames and settled sound can be decoded."""
    target = plan.begin - PREROLL
    if not wanted:
        return _Seek(target, target)
    base = source.video.time_base
    target = min(target, wanted[0] * base)
    keys = (entry.pts * base for entry in source.video.entries if entry.key)
    return _Seek(target, max((key for key in keys if key <= target - _DELAY), default=source.video.start))


def _graph(source: Source, plan: Plan, wanted: list[int], seek: _Seek | None, pipes: Sequence[int]) -> Any:
    pictures, sound, times = pipes
    first_sound = anchor(source, plan) if plan.has_sound else None
    media = ffmpeg.input(_INPUT, **_input_options(source, plan, seek, first_sound))
    outputs = []
    if wanted:
        width, height = plan.geometry.scaled
        video = media[str(source.video.index)]
        if seek is not None:
            video = video.filter("trim", end_pts=wanted[-1] + 1)
        video = (
            video.filter("select", "+".join(f"eq(pts,{pts})" for pts in wanted))
            .filter("scale", width, height, flags=SCALE_FLAGS)
            .filter("format", "rgb24")
            .filter("metadata", mode="add", key="kdctool", value="1")  # Only a frame with metadata is printed.
            .filter("metadata", mode="print", file=f"pipe:{times}")
        )
        outputs.append(ffmpeg.output(video, f"pipe:{pictures}", f="rawvideo", fps_mode="passthrough", threads=1))
    if plan.has_sound:
        audio = media[str(source.audio.index)]
        chain = audio_chain(
            source.audio_stream.channels,
            source.audio_stream.codec_context.sample_rate,
            plan.begin,
            end_of_sound(source),
            plan.window.sample_rate,
            first_sound,
        )
        for name, options in chain:
            audio = audio.filter(name, **options)
        # One write for many frames of the codec: each wakes this process.
        audio = audio.filter("atrim", end_sample=plan.window.num_samples).filter("asetnsamples", n=16384, p=0)
        outputs.append(ffmpeg.output(audio, f"pipe:{sound}", f="f32le", acodec="pcm_f32le"))
    graph = ffmpeg.merge_outputs(*outputs)
    strict = ["-xerror"] if source.starts_with_key else []
    return graph.global_args("-nostdin", "-hide_banner", "-v", "error", "-filter_complex_threads", "1", *strict)


def _input_options(source: Source, plan: Plan, seek: _Seek | None, first_sound: Anchor | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": PROTOCOLS,
        "fflags": READING_FLAGS,
        "threads": 1,
        "max_pixels": MAX_PIXELS,
        "noautorotate": None,
        "copyts": None,
        "err_detect:v": "explode",
        "err_detect:a": "explode",
    }
    start = Fraction(source.container.start_time or 0, 1_000_000)
    if seek is not None:
        options |= {"noaccurate_seek": None, "ss": f"{float(max(seek.target - start, Fraction(0))):.6f}"}
    if first_sound is not None:
        options["flags2:a"] = "+skip_manual"  # What is priming and padding is known; 5.1 cuts the wrong frames of mkv.
    # Without a seek the input ends here, and what is decoded does not depend on which thread is first.
    length = plan.end - start + _SPARE if seek is None else plan.end - seek.key + _SPARE_AFTER_SEEK
    options["t"] = f"{float(length):.6f}"
    return options
