"""Shards that others made: their members are found, checked and hashed once, so that they can be read like ours."""

import io
import re
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault
from kdctool.progress import bar
from kdctool.shards import about
from kdctool.shards.entry import Entry, scanned

_MAX_JSON = 1 << 24
_NUMBERED = re.compile(r"^(.*?)[-_.]?\d+$")
_AUDIO = ("flac", "wav", "opus")
_PICTURES = ("png", "webp")
"""Of which frames are not read."""


def tars(folder: Path) -> list[Path]:
    """Every *.tar of a folder, sorted by name."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file()) if folder.is_dir() else []


def split_of(name: str) -> str:
    """`val-000123.tar` -> val; a name that is only a number is train."""
    stem = name.removesuffix(".tar")
    match = _NUMBERED.match(stem)
    return (match[1] if match else stem) or "train"


def index(paths: list[Path]) -> dict[str, Any]:
    """Fields of an `Index` for these tars. Labels are what `about.about` finds in their members."""
    entries: list[Entry] = []
    names: set[str] = set()
    several = False
    with bar("indexing shards", len(paths), "tars") as progress:
        for path in paths:
            entry = scanned(path, split_of(path.name))
            if not len(entry):
                raise DataFault(f"{path} holds no clip: no member is called KEY.SUFFIX", "move it out of the folder")
            _check_frames(path, entry)
            for labels in _labels(path, entry):
                names.update(labels)
                several = several or len(labels) > 1
            entries.append(entry)
            progress.advance()
    return {
        "labels": about.ordered(names),
        "multi_label": several,
        "settings": _settings(paths[0], entries[0]),
        "entries": tuple(sorted(entries, key=lambda entry: (entry.split != "train", entry.split, entry.name))),
    }


def _check_frames(path: Path, entry: Entry) -> None:
    """DataFault for clips whose only picture is of a kind that is not read."""
    for names in entry.layouts:
        others = [name for name in names if name.split(".")[-1] in _PICTURES]
        if others and not any(name.endswith(".jpg") or name in _AUDIO for name in names):
            raise DataFault(
                f"{path.name} holds .{others[0]} pictures; frames in shards are JPEG",
                "unpack the tars, then kdctool extract FOLDER SHARDS --images --to-shards",
            )


def _labels(path: Path, entry: Entry) -> list[list[str]]:
    found, place = [], 0
    with open(path, "rb") as file:
        for kind, key in zip(entry.layout.tolist(), entry.keys.tolist(), strict=True):
            members = {}
            for suffix in entry.layouts[kind]:
                length = int(entry.lengths[place])
                if suffix in about.MEMBERS and length <= _MAX_JSON:
                    file.seek(int(entry.offsets[place]))
                    members[suffix] = file.read(length)
                place += 1
            if members:
                labels = about.about(members, f"{path.name}: {key.decode('utf-8', 'replace')}").get("labels")
                found.append([str(label) for label in labels] if isinstance(labels, list) else [])
    return found


def _settings(path: Path, entry: Entry) -> dict[str, Any]:
    """What the first clip shows: number and size of its frames, sample rate and length of its audio."""
    suffixes = entry.layouts[int(entry.layout[0])]
    places = dict(zip(suffixes, zip(entry.offsets.tolist(), entry.lengths.tolist(), strict=False), strict=False))
    frames = [suffix for suffix in suffixes if suffix.endswith(".jpg")]
    audio = next((suffix for suffix in suffixes if suffix in _AUDIO), "")
    settings: dict[str, Any] = {"frames": len(frames), "audio": audio}

    def payload(suffix: str) -> io.BytesIO:
        with open(path, "rb") as file:
            file.seek(places[suffix][0])
            return io.BytesIO(file.read(places[suffix][1]))

    from PIL import Image

    try:
        if frames:
            with Image.open(payload(frames[0]), formats=["JPEG"]) as image:  # reads the header only
                settings["size"] = min(image.size)
        if audio:
            import soundfile

            about = soundfile.info(payload(audio))
            settings |= {"sample_rate": about.samplerate, "window_s": round(about.frames / about.samplerate, 3)}
    except (OSError, RuntimeError, ValueError, ZeroDivisionError, Image.DecompressionBombError) as error:
        cause = str(error).splitlines()[0]
        raise DataFault(f"{path.name}: a media member of its first clip cannot be opened: {cause}") from error
    return settings
