"""A row of the manifest: every key always there, failures too."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kdctool.media.names import clip_folder, source_id, uid
from kdctool.media.quarantine import FLAGS, Rejected
from kdctool.media.settings import Item

Row = dict[str, Any]
"""uid, source, source_id, start_s, duration_s, status, reason, detail, modalities, frames, frame_times, audio,
audio_pad_s, width, height, rotation, crop, labels, split, decoder, tool_versions, sha256, source_sha256 (of the input's
bytes), frame_hash (see `likeness`)."""


def blank(item: Item, start_ms: int) -> Row:
    """A row with everything that is known before the file is opened."""
    return {
        "uid": uid(item.source, start_ms),
        "source": item.source,
        "source_id": source_id(item.source),
        "start_s": start_ms / 1000,
        "duration_s": 0.0,
        "status": "quarantined",
        "reason": "",
        "detail": "",
        "modalities": [],
        "frames": [],
        "frame_times": [],
        "audio": "",
        "audio_pad_s": 0.0,
        "width": 0,
        "height": 0,
        "rotation": 0,
        "crop": [],
        "labels": list(item.labels),
        "split": item.split,
        "decoder": "",
        "tool_versions": {},
        "sha256": "",
        "source_sha256": "",
        "frame_hash": "",
    }


def failed(item: Item, start_ms: int, fault: Rejected) -> Row:
    """The row of an input, or of a window, that is not data."""
    return blank(item, start_ms) | {"reason": fault.reason, "detail": fault.detail}


def flagged(flags: Sequence[str]) -> Row:
    """Status and reason of a clip that is kept."""
    ordered = [flag for flag in FLAGS if flag in flags]
    return {"status": "flagged" if ordered else "ok", "reason": "+".join(ordered)}


def members(row: Row) -> list[str]:
    """Paths of a clip's files inside the output folder: the frames in order, then the sound."""
    return [*row["frames"], *([row["audio"]] if row["audio"] else [])]


def content_digest(contents: Sequence[bytes]) -> str:
    """sha256 over the bytes of the clip's files, in the order of `members`."""
    whole = sha256()
    for content in contents:
        whole.update(content)
    return whole.hexdigest()


def is_intact(out: Path, row: Row) -> bool:
    """Whether the clip's files hold what the row says; reads them."""
    try:
        return content_digest([(out / name).read_bytes() for name in members(row)]) == row["sha256"]
    except OSError:
        return False


def is_there(out: Path, row: Row) -> bool:
    """Whether the clip's folder is there; looks only."""
    return row["status"] == "quarantined" or (out / clip_folder(row["uid"])).is_dir()
