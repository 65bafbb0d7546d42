"""What is known of every clip, as files: a row of truth per clip, and the labels that `kdctool shard` reads."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avdigits.drawing import boxes
from avdigits.protocol import FRAME_RATE, GAINS_DB, SIDE, SPLITS, Clip, Digit
from avdigits.sound import Floats, envelopes
from avdigits.sources import Sources
from kdctool.files import write_bytes
from kdctool.media.names import uid

TRUTH, LABELS, GALLERIES = "truth.jsonl", "labels.csv", "galleries"


def row(clip: Clip, sources: Sources) -> dict[str, Any]:
    """One line of truth.jsonl. Boxes are [x0, y0, x1, y1] in pixels of the video, one per frame of it."""
    heard, silent = envelopes(clip, sources)
    return {
        "file": clip.file,
        "split": clip.split,
        "label": str(clip.sounding.digit),
        "speaker": clip.sounding.speaker,
        "gain": clip.sounding.gain,
        "gain_db": GAINS_DB[clip.sounding.gain],
        "recording": clip.sounding.recording,
        "onset_s": round(clip.sounding.onset_s, 6),
        "duration_s": round(len(sources.named[clip.sounding.recording].sound) / 8000, 6),
        "snr_db": round(clip.snr_db, 4),
        "sounding": _seen(clip.sounding, heard),
        "silent": _seen(clip.silent, silent),
        "width": SIDE,
        "height": SIDE,
        "fps": FRAME_RATE,
    }


def write(folder: Path, clips: Sequence[Clip], sources: Sources) -> None:
    """truth.jsonl and labels.csv in the order of the clips, and the galleries of retrieval as lists of uids."""
    table, lines = io.StringIO(), []
    labels = csv.writer(table, lineterminator="\n")
    labels.writerow(("path", "label", "split"))
    for clip in clips:
        labels.writerow((clip.file, clip.sounding.digit, clip.split))
        lines.append(json.dumps(row(clip, sources), separators=(",", ":")) + "\n")
    write_bytes(folder / TRUTH, "".join(lines).encode())
    write_bytes(folder / LABELS, table.getvalue().encode())
    for name, uids in _galleries(clips).items():
        write_bytes(folder / GALLERIES / f"{name}.txt", "".join(f"{uid}\n" for uid in uids).encode())


def _galleries(clips: Sequence[Clip]) -> dict[str, list[str]]:
    """For each index of recordings, the clips of a test split: one per digit, speaker and gain."""
    found: dict[str, list[str]] = {}
    for clip in clips:
        if SPLITS[clip.split].enumerates:
            index = clip.sounding.recording.rpartition("_")[2]
            found.setdefault(f"{clip.split}-{index}", []).append(uid(clip.file, 0))
    return found


def _seen(digit: Digit, pulse: Floats) -> dict[str, Any]:
    return {"class": digit.digit, "speaker": digit.speaker, "recording": digit.recording, "boxes": boxes(digit, pulse)}
