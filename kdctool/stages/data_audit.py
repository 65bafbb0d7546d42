"""`kdctool data audit`: a label list beside the clips there are. Counts and names, downloads nothing."""

import csv
import io
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, UsageFault, quoted
from kdctool.files import write_bytes
from kdctool.shards.formats import LabelRow
from kdctool.shards.labels import FOLDERS, LabelOptions, detect, label_sources
from kdctool.shards.matching import Matcher, clip_of, video_of
from kdctool.shards.stock import StoredClip, stock

_EXAMPLES = 10


@dataclass(frozen=True)
class Coverage:
    """Clips of one split of the list, and how many of them there are."""

    listed: int
    present: int

    @property
    def share(self) -> str:
        return f"{100 * self.present / self.listed:.1f} %"


@dataclass(frozen=True)
class Overlap:
    """What two splits share."""

    first: str
    second: str
    clips: int
    clip_examples: list[str]
    videos: int
    video_examples: list[str]
    clips_of_first: int
    """Clips of the first split whose source video is in the second one too."""
    clips_of_second: int


@dataclass(frozen=True)
class Audit:
    """What the audit found. Examples are the first ten."""

    files: list[str]
    formats: list[str]
    clips: str
    """The folder of clips; empty when only the list was audited."""
    num_rows: int
    num_listed: int
    """Different clips of the list."""
    num_present: int
    splits: dict[str, Coverage]
    num_missing: int
    missing_ids: int
    missing_file: str
    quarantined: dict[str, int]
    """Reason -> clips of the list that were found but could not be used."""
    num_unlisted: int
    unlisted_examples: list[str]
    listed_twice: int
    """Rows that say again what a row before them says."""
    listed_twice_examples: list[str]
    stored_twice: int
    """Clips of the list that several files claim to be."""
    stored_twice_examples: list[str]
    same_content: int
    """Clips whose audio and frames equal those of a clip before them."""
    same_content_examples: list[str]
    compared: list[str]
    """Splits that were compared with each other: of the list, or of the clips where the list has none."""
    overlaps: list[Overlap]
    classes: dict[str, dict[str, int]]
    """Class -> clips listed and present."""
    empty_classes: list[str]
    """Classes of which no clip is there (no clip is listed, without --clips)."""

    @property
    def balance_text(self) -> str:
        """Smallest, median and largest class."""
        counts = [count["present" if self.clips else "listed"] for count in self.classes.values()]
        if not counts:
            return "none"
        middle = statistics.median(counts)
        return f"{len(counts)}, of {min(counts)} to {max(counts)} clips, median {middle:g}"

    def payload(self) -> dict[str, Any]:
        """The audit as plain values."""
        return asdict(self)

    def raise_if_nothing_matches(self) -> None:
        """DataFault when clips were given and none of them is in the list."""
        if self.clips and not self.num_present and not self.quarantined:
            shown = ", ".join(self.unlisted_examples[:2]) or "there are none"
            raise DataFault(
                f"no clip of {self.clips} is in {', '.join(self.files)} (clips: {shown})",
                "names like ID_000030.mp4, ID_30_40.mp4 and ID.mp4 are understood, and paths and uids of a plain CSV",
            )


@dataclass
class _Listed:
    """One clip of the list, whatever the number of its rows."""

    row: LabelRow
    splits: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    found: list[StoredClip] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    video: str = ""


def run(
    labels: Sequence[str | Path],
    clips: Path | None = None,
    *,
    labels_format: str = "",
    class_names: Path | None = None,
    missing: Path | None = None,
) -> Audit:
    """Compare label files, each `FILE` or `SPLIT=FILE`, with an extraction folder or shards."""
    if missing is not None and clips is None:
        raise UsageFault("--missing needs --clips", "say where the clips are")
    files = tuple(map(str, labels))
    if FOLDERS in files and clips is None:
        raise UsageFault("the labels of folders need --clips", "say where the clips are")
    if clips is not None and not Path(clips).is_dir():
        raise UsageFault(f"there is no folder {clips}", f"kdctool extract VIDEOS {quoted(clips)}")
    stored = stock(Path(clips)) if clips is not None else []
    given = LabelOptions(files, labels_format, class_names).read(clip.source for clip in stored)
    listed, again = _listed(given.rows)
    unlisted = _find(listed, given.rows, stored)
    coverage = _coverage(listed)
    compared = _place(listed)
    usable = [clip for clip in stored if not clip.reason]
    gone = [entry for entry in listed if not entry.found and not entry.reasons]
    if missing is not None:
        _write_missing(missing, gone)
    doubles = [entry for entry in listed if len({clip.source for clip in entry.found}) > 1]
    equal = _same_content(usable)
    classes = _classes(listed, given.known)
    present = "present" if clips is not None else "listed"
    return Audit(
        files=list(files),
        formats=_formats(files, labels_format),
        clips=str(clips) if clips is not None else "",
        num_rows=len(given.rows),
        num_listed=len(listed),
        num_present=sum(bool(entry.found) for entry in listed),
        splits=coverage,
        compared=compared,
        num_missing=len(gone) if clips is not None else 0,
        missing_ids=len({entry.row.clip for entry in gone}) if clips is not None else 0,
        missing_file=str(missing) if missing is not None else "",
        quarantined=dict(Counter(entry.reasons[0] for entry in listed if not entry.found and entry.reasons)),
        num_unlisted=len(unlisted),
        unlisted_examples=_shown(clip.source for clip in unlisted),
        listed_twice=len(again),
        listed_twice_examples=_shown(f"{row.clip} in line {row.line}" for row in again),
        stored_twice=len(doubles),
        stored_twice_examples=_shown(" = ".join(sorted({c.source for c in entry.found})) for entry in doubles),
        same_content=len(equal),
        same_content_examples=_shown(f"{a} = {b}" for a, b in equal),
        overlaps=_overlaps(listed, compared),
        classes=classes,
        empty_classes=[name for name, count in classes.items() if not count[present]],
    )


def _listed(rows: list[LabelRow]) -> tuple[list[_Listed], list[LabelRow]]:
    """The different clips of the list, and the rows that only repeat one."""
    entries: dict[str, _Listed] = {}
    again: list[LabelRow] = []
    for row in rows:
        entry = entries.get(key := clip_of(row))
        if entry is None:
            entry = entries[key] = _Listed(row)
        elif row.split in entry.splits and entry.labels.issuperset(row.labels):
            again.append(row)
        entry.splits.add(row.split)
        entry.labels.update(row.labels)
    return list(entries.values()), again


def _find(listed: list[_Listed], rows: list[LabelRow], stored: list[StoredClip]) -> list[StoredClip]:
    """Fill in what was found of each clip of the list; returns the usable clips that no row names."""
    matcher = Matcher(stored, rows)
    named: set[str] = set()
    for entry in listed:
        for clip in matcher.find(entry.row):
            named.add(clip.uid)
            if clip.reason:
                entry.reasons.append(clip.reason)
            else:
                entry.found.append(clip)
    return [clip for clip in stored if not clip.reason and clip.uid not in named]


def _place(listed: list[_Listed]) -> list[str]:
    """Fill in the source video of each clip, and its splits where the list has none at all; returns all splits."""
    without = not any(split for entry in listed for split in entry.splits)
    for entry in listed:
        entry.video = video_of(entry.row) or (entry.found[0].source_id if entry.found else entry.row.clip)
        if without and entry.found:
            entry.splits = {clip.split for clip in entry.found}
    return sorted({split for entry in listed for split in entry.splits if split}, key=_train_first)


def _coverage(listed: list[_Listed]) -> dict[str, Coverage]:
    counts, present = Counter[str](), Counter[str]()
    for entry in listed:
        counts.update(entry.splits)
        present.update(entry.splits if entry.found else ())
    return {split: Coverage(counts[split], present[split]) for split in sorted(counts, key=_train_first)}


def _overlaps(listed: list[_Listed], splits: list[str]) -> list[Overlap]:
    """Every pair of splits that share a clip or a source video."""
    by_video: dict[str, dict[str, int]] = defaultdict(Counter)
    for entry in listed:
        for split in entry.splits:
            by_video[entry.video][split] += 1
    found = []
    for first, second in itertools.combinations(splits, 2):
        both = [entry for entry in listed if {first, second} <= entry.splits]
        videos = {video: counts for video, counts in by_video.items() if counts.keys() >= {first, second}}
        if videos:
            found.append(
                Overlap(
                    first,
                    second,
                    len(both),
                    _shown(clip_of(entry.row) for entry in both),
                    len(videos),
                    _shown(videos),
                    sum(counts[first] for counts in videos.values()),
                    sum(counts[second] for counts in videos.values()),
                )
            )
    return found


def _classes(listed: list[_Listed], known: tuple[str, ...]) -> dict[str, dict[str, int]]:
    names = known or sorted({label for entry in listed for label in entry.labels})
    classes = {name: {"listed": 0, "present": 0} for name in names}
    for entry in listed:
        for label in entry.labels:
            classes[label]["listed"] += 1
            classes[label]["present"] += bool(entry.found)
    return classes


def _same_content(clips: list[StoredClip]) -> list[tuple[str, str]]:
    """(first clip, clip with the same bytes), by uid."""
    first: dict[str, str] = {}
    pairs = ((first.setdefault(clip.content, clip.uid), clip.uid) for clip in clips if clip.content)
    return [(before, uid) for before, uid in pairs if before != uid]


def _write_missing(path: Path, gone: list[_Listed]) -> None:
    """The ids, each once; a .csv has one line per clip."""
    if path.suffix.lower() == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "start_s", "end_s", "labels", "split"])
        for entry in gone:
            row = entry.row
            labels, splits = ";".join(sorted(entry.labels)), "|".join(sorted(entry.splits))
            writer.writerow([row.clip, _cell(row.start_s), _cell(row.end_s), labels, splits])
        lines = text.getvalue()
    else:
        lines = "".join(f"{clip}\n" for clip in dict.fromkeys(entry.row.clip for entry in gone))
    write_bytes(path, lines.encode("utf-8", "surrogateescape"))


def _cell(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g}"


def _formats(files: tuple[str, ...], named: str) -> list[str]:
    if FOLDERS in files:
        return [FOLDERS]
    return [named or detect(source.path) for source in label_sources(files)]


def _shown(names: Iterable[str]) -> list[str]:
    return list(itertools.islice(names, _EXAMPLES))


def _train_first(split: str) -> tuple[bool, str]:
    return split != "train", split
