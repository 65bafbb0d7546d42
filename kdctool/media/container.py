"""Whether a file may be opened at all, and opening it under the allow-lists; every refusal has its reason."""

import errno
import os
import stat
from typing import Any

import av

from kdctool.media.quarantine import Rejected

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,wav,flac,mp3,aac,asf"
"""Formats that never open another file. Playlists and scripts (hls, dash, concat, sdp) are not among them."""
PROTOCOLS = "file"
READING_FLAGS = "+genpts+discardcorrupt"
"""Times that a container leaves out (avi) are worked out; packets that are marked as damaged are not used."""
_MOST_STREAMS = 64
_PLAYLIST_HEADS = (
    b"#EXTM3U",
    b"ffconcat",
    b"<?xml",
    b"<MPD",
    b"v=0",
    b"[playlist]",
    b"[Reference]",
    b"http:",
    b"rtsp:",
    b"file:",
)


def check_file(path: str) -> os.stat_result:
    """The status of a regular file with content; Rejected for everything else. Opens nothing."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise Rejected(_stat_reason(path, error), error.strerror or "") from error
    if stat.S_ISDIR(status.st_mode):
        _check_listed(path)
        raise Rejected("is_folder")
    if stat.S_ISFIFO(status.st_mode):
        raise Rejected("is_fifo")
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("is_special")
    if status.st_size == 0:
        raise Rejected("empty")
    return status


def _check_listed(folder: str) -> None:
    """Rejected where a folder may not be listed: the search for inputs could not look into it."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise Rejected(_stat_reason(folder, error), "a folder: what lies in it is not known") from error


def _stat_reason(path: str, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "symlink_loop"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "dangling_link" if os.path.islink(path) else "missing"
    return "no_permission" if error.errno in (errno.EACCES, errno.EPERM) else "io_error"


def open_container(path: str) -> Any:
    """A PyAV container; only allowed formats, only this file."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": PROTOCOLS, "fflags": READING_FLAGS}
    # PyAV annotates it as a list of texts; it takes dictionaries.
    per_stream: Any = [{"skip_frame": "all"}] * _MOST_STREAMS if _describes_itself(path) else None
    try:
        return av.open(f"file:{path}", options=options, stream_options=per_stream, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Rejected(_open_reason(path, error), words(error)) from error


def _describes_itself(path: str) -> bool:
    """Whether it is an mp4 or mov: their header says everything, so no frame has to be decoded to open one."""
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False  # Opening it will say why.


def decoder(stream: Any) -> Any:
    """The decoder of a stream: one thread, and damage is an error instead of an invented picture."""
    context = stream.codec_context
    if not context.is_open:
        context.thread_count = 1
        context.thread_type = "NONE"
        context.options = {"err_detect": "explode"}
    return context


def _open_reason(path: str, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return "no_permission"
    if disk_fails(path, error):
        return "io_error"
    try:
        with open(path, "rb") as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
            if number == errno.EINVAL or head.startswith(_PLAYLIST_HEADS):
                return "container_not_allowed"
            return "truncated" if _lost_its_end(file) else "unreadable"
    except OSError:
        return "io_error"


def disk_fails(path: str, error: Exception) -> bool:
    """Whether reading itself failed. libav says EIO for a damaged container too, so the file is read once more."""
    if getattr(error, "errno", None) != errno.EIO:
        return False
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return True
    return False


def _lost_its_end(file: Any) -> bool:
    """Whether an mp4 ends inside a box, or has none that describes its content (`moov`)."""
    size = os.fstat(file.fileno()).st_size
    place = 0
    names: list[bytes] = []
    while place + 8 <= size and len(names) < 1000:
        file.seek(place)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if not names and name != b"ftyp":
            return False
        names.append(name)
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            length = size - place
        if length < 8:
            return False
        place += length
    return bool(names) and (place > size or b"moov" not in names)


def words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
