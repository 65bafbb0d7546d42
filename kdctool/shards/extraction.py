"""The output of `kdctool extract` as shards see it: rows of the manifest, and the files of a clip."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, UsageFault, quoted
from kdctool.files import canonical_json, read_json, sha256_file
from kdctool.shards.formats import Box

MANIFEST, DONE = "manifest.jsonl", "done.json"
USABLE = ("ok", "flagged")
_UID = re.compile(r"[A-Za-z0-9_-]{1,60}")
_AGAIN = "run the same kdctool extract command again"
_ABOUT = (
    *("uid", "source", "source_id", "start_s", "duration_s", "frame_times", "audio_pad_s"),
    *("width", "height", "rotation", "crop", "status", "modalities"),
)


@dataclass(frozen=True)
class Extraction:
    """A finished extraction folder."""

    folder: Path
    done: dict[str, Any]
    manifest_sha256: str

    @property
    def settings(self) -> dict[str, Any]:
        """frames or fps, size, fit, sample_rate, window_s and audio, as far as extraction states them.

        Of pictures, what is about pictures.
        """
        given = self.done.get("settings") or {}
        if given.get("images"):
            return {"images": True, "frames": 1, "size": given.get("size"), "fit": given.get("fit")}
        named = {
            "frames": given.get("frames"),
            "size": given.get("size"),
            "sample_rate": given.get("sample_rate"),
            "window_s": given.get("window_s", given.get("clip_seconds")),
            "audio": given.get("audio", "flac"),
            "fps": given.get("fps"),
            "fit": given.get("fit"),
        }
        return {key: value for key, value in named.items() if value is not None}

    def rows(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(place, length, row) of every line of the manifest, clips and failed inputs alike."""
        place = 0
        with open(self.folder / MANIFEST, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{self.folder / MANIFEST}:{number}"
                if not line.endswith(b"\n"):
                    raise DataFault(f"{where} is cut", _AGAIN)
                try:
                    row = json.loads(line)
                    uid, status = str(row["uid"]), str(row["status"])
                    row["source"], row["labels"] = str(row["source"]), list(row.get("labels") or [])
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataFault(f"{where} is damaged: {type(error).__name__} {error}", _AGAIN) from error
                if status in USABLE and not _UID.fullmatch(uid):
                    raise DataFault(f"{where}: {uid!a} is no uid", _AGAIN)
                yield place, len(line), row
                place += len(line)


def open_extraction(out: Path) -> Extraction:
    """Open an extraction folder; DataFault when extraction has not finished there."""
    if not out.is_dir():
        raise UsageFault(f"there is no folder {out}", f"kdctool extract VIDEOS {quoted(out)}")
    for name in (MANIFEST, DONE):
        if not (out / name).is_file():
            raise DataFault(
                f"{out} has no {name}: nothing was extracted, or not to the end",
                f"kdctool extract VIDEOS {quoted(out)}",
            )
    try:
        done = dict(read_json(out / DONE))
    except (OSError, ValueError, TypeError) as error:
        raise DataFault(f"{out / DONE} is damaged: {error}", _AGAIN) from error
    digest = sha256_file(out / MANIFEST)
    if stated_digests(done).get(MANIFEST, digest) != digest:
        raise DataFault(f"{out / MANIFEST} is not the one that {DONE} was written for: its sha256 differs", _AGAIN)
    return Extraction(out, done, digest)


def stated_digests(done: dict[str, Any]) -> dict[str, str]:
    """File name -> sha256, as far as done.json states them."""
    given = done.get("digests")
    return {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {}


def clip_folder(out: Path, uid: str) -> Path:
    """Where a clip's files lie: two hex digits keep folders small."""
    return out / "clips" / uid.rpartition("-")[2][:2] / uid


def clip_files(out: Path, row: dict[str, Any]) -> list[tuple[str, Path]]:
    """(member suffix, file) of a clip in the order of its shard: audio, then the frames in order of time."""
    folder = clip_folder(out, row["uid"])
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataFault(f"{folder} of the manifest cannot be read: {error.strerror}", _AGAIN) from error
    frames = [name for name in names if re.fullmatch(r"\d+\.jpg", name)]
    audio = [name for name in names if name.startswith("audio.")]
    stated = row.get("frames") or 0
    expected = len(stated) if isinstance(stated, list) else int(stated)
    if len(frames) != expected or len(audio) != bool(row.get("audio")):
        raise DataFault(
            f"{folder} holds {len(frames)} frames and {len(audio)} audio files; the manifest says {expected} and "
            f"{int(bool(row.get('audio')))}",
            _AGAIN,
        )
    files = [(name.partition(".")[2], folder / name) for name in audio]
    return files + [(f"{place}.jpg", folder / name) for place, name in enumerate(frames)]


def clip_members(
    out: Path, row: dict[str, Any], labels: tuple[str, ...], boxes: tuple[Box, ...] = ()
) -> list[tuple[str, bytes]]:
    """The members of a clip's sample: what is known of it as JSON first, then audio and frames.

    `boxes` are shares of the whole source picture; the JSON gets them as shares of the stored frame.
    """
    missing = [key for key in _ABOUT if key not in row]
    if missing:
        raise DataFault(f"{out / MANIFEST}: the row of {row['uid']} lacks {', '.join(missing)}", _AGAIN)
    about = {key: row[key] for key in _ABOUT} | {"labels": list(labels)}
    if boxes:
        about["boxes"] = boxes_in_frame(boxes, row)
    members = [("json", canonical_json(about).encode("ascii"))]
    for suffix, path in clip_files(out, row):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataFault(f"{path} cannot be read: {error.strerror}", _AGAIN) from error
        if not data:
            raise DataFault(f"{path} is empty", _AGAIN)
        members.append((suffix, data))
    if row.get("sha256") and content_digest(members[1:]) != row["sha256"]:
        raise DataFault(
            f"the files of {clip_folder(out, row['uid'])} are not those of the manifest: their hash differs", _AGAIN
        )
    return members


def boxes_in_frame(boxes: tuple[Box, ...], row: dict[str, Any]) -> list[list[float]]:
    """Boxes mapped through the clip's `crop` and clipped to it; those that lie outside are left out.

    A clip of sound alone has no frame and keeps no box.
    """
    if not row["crop"]:
        return []
    (x, y, w, h), width, height = row["crop"], row["width"], row["height"]
    found = []
    for x1, y1, x2, y2 in boxes:
        across = [min(max((share * width - x) / w, 0.0), 1.0) for share in (x1, x2)]
        down = [min(max((share * height - y) / h, 0.0), 1.0) for share in (y1, y2)]
        if across[0] < across[1] and down[0] < down[1]:
            found.append([round(value, 6) for value in (across[0], down[0], across[1], down[1])])
    return found


def content_digest(files: list[tuple[str, bytes]]) -> str:
    """The manifest's `sha256` of a clip: over the bytes of its frames in order, then of its audio."""
    whole = sha256()
    for _, data in sorted(files, key=lambda file: not file[0].endswith(".jpg")):
        whole.update(data)
    return whole.hexdigest()
