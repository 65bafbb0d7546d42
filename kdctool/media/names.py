"""Where a clip lies and what it is called: safe for any file name, the same on every machine."""

import os
import re
from hashlib import sha256

_UNSAFE = re.compile(r"[^a-z0-9_-]+")


def slug(source: str) -> str:
    """The readable part of a uid: at most 40 of [a-z0-9_-], never a dot."""
    stem = os.path.splitext(os.path.basename(source))[0]
    return _UNSAFE.sub("-", stem.lower()).strip("-")[:40] or "clip"


def uid(source: str, start_ms: int) -> str:
    """The key of a clip: equal stems in different folders and equal starts never meet."""
    digest = sha256(os.fsencode(source) + b"\0" + str(start_ms).encode()).hexdigest()
    return f"{slug(source)}-{digest[:10]}"


def source_id(source: str) -> str:
    """The key of a source: the same for all clips that were cut from it."""
    return f"{slug(source)}-{sha256(os.fsencode(source)).hexdigest()[:10]}"


def clip_folder(uid: str) -> str:
    """Folder of a clip inside the output folder; 256 folders share the clips."""
    return f"clips/{uid[-10:-8]}/{uid}"


def frame_name(index: int, total: int) -> str:
    """Names that sort in the order of time, two digits or as many as `total` frames need."""
    return f"{index:0{max(2, len(str(total - 1)))}d}.jpg"
