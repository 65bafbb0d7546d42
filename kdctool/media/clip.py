"""One input to clips: probe, plan, decode, write. A clip appears with a rename, whole, or not at all."""

import errno
import io
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from kdctool import __version__
from kdctool.files import PARTIAL
from kdctool.media import audio_file, decode_ffmpeg, decode_pyav, still
from kdctool.media.geometry import NO_PICTURE, Geometry, geometry
from kdctool.media.likeness import frame_hash
from kdctool.media.messages import Task
from kdctool.media.names import clip_folder, frame_name
from kdctool.media.opener import Opener, unchanged
from kdctool.media.plan import Plan, plan, windows
from kdctool.media.quarantine import Rejected
from kdctool.media.rows import Row, blank, content_digest, failed, flagged
from kdctool.media.settings import Item, Settings, Tools, Window
from kdctool.media.source import Source
from kdctool.places import Place, Remote

SILENT_BELOW = 33
"""-60 dB of 16-bit full scale."""
STATIC_LEVELS, STATIC_SHARE = 16, 0.001
"""Frames are the same when fewer than this share of pixels differ by more than this many levels from the first."""
PILLOW = version("pillow")
_RENAMES = 10
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def extract(
    task: Task,
    out: Place,
    settings: Settings,
    tools: Tools,
    begin: Callable[[int], object] = lambda start_ms: None,
    opener: Opener | None = None,
) -> Iterator[Row]:
    """The rows of an input's clips, each after its files are in place; those that are done are left out.

    `begin` is told each start (ms) before work on it. `opener` keeps a file open between its segments. Rejected
    inputs become rows; a full disk is an OSError.
    """
    item = task.item
    with ExitStack() as stack:
        files = opener or stack.enter_context(Opener(settings))
        try:
            if settings.images:
                if item.start_ms not in task.done:
                    begin(item.start_ms)
                    yield _still(files, item, out, settings)
                files.release(item)
                return
            source = files.open(item)
            shape, todo = _outline(source, item, settings)
            sha256 = files.sha256()
            for window in todo:
                if window.start_ms not in task.done:
                    begin(window.start_ms)
                    row = _clip(source, task, window, shape, out, settings, tools)
                    yield row | {"source_sha256": sha256}
        except Rejected as fault:
            yield failed(item, item.start_ms, fault)
        files.release(item)


def _outline(source: Source, item: Item, settings: Settings) -> tuple[Geometry, list[Window]]:
    todo = windows(source, settings, item.segment)
    if not source.has_video:
        return NO_PICTURE, todo
    frame = decode_pyav.first_frame(source, goes_on=choose(settings.decoder, source.video.codec) == "pyav")
    assert settings.fit != "keep"  # Settings.check leaves that to pictures.
    return geometry(frame, source.video_stream.sample_aspect_ratio, settings.size, settings.fit), todo


def _clip(
    source: Source, task: Task, window: Window, shape: Geometry, out: Place, settings: Settings, tools: Tools
) -> Row:
    item, crashed = task.item, window.start_ms in task.with_ffmpeg
    try:
        wanted = plan(source, settings, window, shape)
        decoder = "ffmpeg" if crashed else choose(settings.decoder, source.video.codec)
        if decoder == "ffmpeg":
            pictures, heard = decode_ffmpeg.decode(source, wanted, tools)
        else:
            pictures, heard = decode_pyav.decode(source, wanted)
        unchanged(source)
        samples, num_missing = _whole_window(heard, wanted)
    except Rejected as fault:
        return failed(item, window.start_ms, fault)
    except MemoryError:
        return failed(item, window.start_ms, Rejected("too_large", "more memory than the limit"))
    frames = [shape.finish(picture) for picture in pictures]
    contents = [_jpeg(frame, settings.jpeg_quality) for frame in frames]
    row = blank(item, window.start_ms)
    folder = clip_folder(row["uid"])
    names = [frame_name(index, len(frames)) for index in range(len(frames))]
    row |= flagged(_flags(frames, samples, num_missing))
    if wanted.has_sound:
        names.append(f"audio.{settings.audio}")
        contents.append(audio_file.encode(samples, settings.sample_rate, settings.audio))
        row["audio"] = f"{folder}/{names[-1]}"
    row |= {
        "duration_s": round(float(window.length), 6),
        "modalities": ["audio"] * wanted.has_sound + ["video"] * bool(frames),
        "frames": [f"{folder}/{name}" for name in names[: len(frames)]],
        "frame_times": _times(source, wanted),
        "audio_pad_s": round(float(min(wanted.audio_pad, window.length)), 6),
        "width": shape.width,
        "height": shape.height,
        "rotation": shape.turn.degrees,
        "crop": shape.crop if frames else [],
        "frame_hash": frame_hash(frames),
        "decoder": "ffmpeg, after pyav died" if crashed else decoder,
        "tool_versions": _versions(decoder, tools),
        "sha256": content_digest(contents),
    }
    _publish(out / folder, dict(zip(names, contents, strict=True)))
    return row


def _still(files: Opener, item: Item, out: Place, settings: Settings) -> Row:
    """The row of a picture, its file in place."""
    picture = still.read(files.fetcher.local(item), item, settings)
    row = blank(item, item.start_ms)
    row |= flagged([]) | picture.row(row["uid"]) | {"frame_hash": frame_hash([picture.pixels])}
    row |= {"tool_versions": {"kdctool": __version__, "pillow": PILLOW}, "sha256": content_digest([picture.content])}
    _publish(out / clip_folder(row["uid"]), {frame_name(0, 1): picture.content})
    return row


def choose(asked: str, codec: str) -> str:
    """Which decoder reads a video codec ("" for sound alone). `auto` depends on the codec alone."""
    if asked != "auto":
        return asked
    return "pyav" if not codec or codec in decode_pyav.EXACT | decode_pyav.FULL else "ffmpeg"


def _whole_window(heard: NDArray[np.float32], wanted: Plan) -> tuple[NDArray[np.int16], int]:
    """Exactly the window's samples, 16 bit, and how many at its end had to be filled with zeros; none without sound."""
    if not wanted.has_sound:
        return np.zeros(0, np.int16), 0
    total, rate = wanted.window.num_samples, wanted.window.sample_rate
    length = len(heard) - round(wanted.audio_pad * rate)
    if length < total / 2:
        raise Rejected("too_short", f"{max(0, length) / rate:.3f} s of sound could be decoded")
    samples = np.zeros(total, np.int16)
    samples[: len(heard)] = np.rint(np.clip(np.nan_to_num(heard), -1.0, 1.0) * 32767).astype(np.int16)
    return samples, total - len(heard)


def _flags(frames: list[NDArray[np.uint8]], samples: NDArray[np.int16], num_missing: int) -> list[str]:
    flags = []
    if len(samples) and np.abs(samples.astype(np.int32)).max() < SILENT_BELOW:
        flags.append("silent")
    if len(frames) > 1 and all(_same(frames[0], frame) for frame in frames[1:]):
        flags.append("static")
    if num_missing > len(samples) / 10:
        flags.append("short_audio")
    return flags


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    apart = np.abs(one.astype(np.int16) - other).max(axis=2)  # (H, W)
    return bool((apart > STATIC_LEVELS).mean() < STATIC_SHARE)


def _times(source: Source, wanted: Plan) -> list[float]:
    """Seconds of the frames after the video's first frame, the clock of start_s."""
    base, start = source.video.time_base, source.start
    return [round(float(pts * base - start), 6) for pts in wanted.pts]


def _jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    """Full-range BT.601 as every JPEG reader assumes; Pillow converts from RGB."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _versions(decoder: str, tools: Tools) -> dict[str, str]:
    versions = {
        "kdctool": __version__,
        "pillow": PILLOW,
        "pyav": av.__version__,
        "soundfile": soundfile.__version__,
    }
    return versions | ({"ffmpeg": tools.ffmpeg_version} if decoder == "ffmpeg" else {})


def _publish(folder: Place, files: dict[str, bytes]) -> None:
    if isinstance(folder, Remote):  # Nobody looks for a clip that is not noted, and it is noted when all is there.
        folder.write_all(files)
        return
    # A name of its own: a worker that was given up for lost, with its node, may still be at the same clip.
    partial = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        _replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(partial: Path, folder: Path) -> None:
    """Rename, over what a run left there that was killed between its rename and its note."""
    for attempt in range(_RENAMES):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=attempt + 1 < _RENAMES)
        try:
            os.rename(partial, folder)
            return
        except OSError as error:  # Somebody else put the same clip there just now.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt + 1 == _RENAMES:
                raise


def is_disk_fault(error: BaseException) -> bool:
    """Whether the output, not the input, is what failed."""
    return isinstance(error, OSError) and (error.errno in _DISK_FULL or error.errno == errno.EFBIG)
