"""Which clip goes into which shard: a pure function of the manifest, the labels and the settings.

Within a split, clips are sorted by a hash of their uid, so every shard is a random sample of the split. The held-out
split is made of whole source videos, chosen by a hash of `source_id`; copies of a file go the same way.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from kdctool.errors import DataFault, UsageFault
from kdctool.files import digest
from kdctool.shards.extraction import USABLE, Extraction
from kdctool.shards.formats import SPLIT_NAME, Box, LabelRow, check_split
from kdctool.shards.labels import LabelOptions, check_known
from kdctool.shards.matching import match_labels, video_in_name

HOLDOUT_SHARE, HOLDOUT_LEAST, HOLDOUT_MOST = 0.1, 20, 1000


@dataclass(frozen=True)
class Settings:
    """What a person can say about shards; together with manifest and labels it determines every byte."""

    clips_per_shard: int = 1000
    holdout: bool = True
    split: str = ""
    """Puts every clip into this split, whatever manifest and labels say."""


@dataclass(slots=True)
class PlannedClip:
    """A usable row of the manifest: where it stands, and what was decided about it."""

    uid: str
    source: str
    source_id: str
    """The source video: two clips of one are never held out apart."""
    start_s: float
    end_s: float
    place: int
    length: int
    labels: tuple[str, ...]
    split: str
    source_sha256: str = ""
    """Of the source video's bytes: copies of a file under two names are not held out apart either."""
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class PlannedShard:
    name: str
    split: str
    clips: list[PlannedClip]


@dataclass(frozen=True)
class Plan:
    """Everything that will be written, before anything is."""

    extraction: Extraction
    shards: list[PlannedShard]
    labels: tuple[str, ...]
    multi_label: bool
    made_from: dict[str, str | int | bool]
    num_rows: int
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> rows of the manifest that are no usable clip."""
    unlabelled: int = 0
    unmatched: list[LabelRow] = field(default_factory=list)
    """Rows of the label file that name no usable clip."""
    without_split: int = 0
    """Clips that went to train because only others were given a split."""
    shared_sources: int = 0
    """Source videos with clips in more than one split, as the given splits will have it."""


def make_plan(extraction: Extraction, settings: Settings, labels: LabelOptions) -> Plan:
    """Read manifest and labels, and lay out the shards. Writes nothing."""
    if settings.clips_per_shard < 1:
        raise UsageFault(f"--clips-per-shard {settings.clips_per_shard}: a shard holds at least one clip")
    if settings.split and not SPLIT_NAME.fullmatch(settings.split):
        raise UsageFault(f"--split {settings.split!a}: use letters, digits, '_' and '-', at most 40")
    clips, left_out = _usable(extraction)
    if not clips:
        reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        raise DataFault(
            f"{extraction.folder} has no usable clip" + (f": {reasons}" if reasons else ""),
            f"see {extraction.folder / 'quarantine.jsonl'} for the reason of each file",
        )
    given = labels.read(clip.source for clip in clips)
    unmatched = match_labels(clips, given.rows)
    if given.known:
        check_known(((label, f"clip {c.uid}") for c in clips for label in c.labels), given.known, given.list_name)
    without_split = assign_splits(clips, settings)
    groups: dict[str, list[PlannedClip]] = defaultdict(list)
    homes: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        groups[clip.split].append(clip)
        homes[clip.source_id].add(clip.split)
    names = {label for clip in clips for label in clip.labels}
    return Plan(
        extraction=extraction,
        shards=list(_cut(groups, settings.clips_per_shard)),
        labels=given.known or tuple(sorted(names)),
        multi_label=any(len(clip.labels) > 1 for clip in clips),
        made_from={
            "manifest": extraction.manifest_sha256,
            "extraction": digest(extraction.settings),
            **labels.digests,
            "clips_per_shard": settings.clips_per_shard,
            "holdout": settings.holdout,
            "split": settings.split,
        },
        num_rows=len(clips) + sum(left_out.values()),
        left_out=left_out,
        unlabelled=sum(not clip.labels for clip in clips),
        unmatched=unmatched,
        without_split=without_split,
        shared_sources=sum(len(splits) > 1 for splits in homes.values()),
    )


def held_out(clips_per_source: dict[str, int]) -> set[str]:
    """The source videos of the held-out split: 10 % of the clips, at least 20, at most 1,000, never more than half."""
    total = sum(clips_per_source.values())
    most = min(HOLDOUT_MOST, total // 2)
    wanted = min(max(round(total * HOLDOUT_SHARE), HOLDOUT_LEAST), most)
    chosen: set[str] = set()
    count = 0
    for source in sorted(clips_per_source, key=lambda source: _hash("holdout", source)):
        if count < wanted and count + clips_per_source[source] <= most:
            chosen.add(source)
            count += clips_per_source[source]
    return chosen


def _usable(extraction: Extraction) -> tuple[list[PlannedClip], dict[str, int]]:
    clips: list[PlannedClip] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for place, length, row in extraction.rows():
        if row["status"] not in USABLE:
            left_out[str(row.get("reason") or row["status"])] += 1
            continue
        if row["uid"] in seen:
            raise DataFault(
                f"the manifest of {extraction.folder} has the clip {row['uid']} twice", "extract to a new folder"
            )
        seen.add(row["uid"])
        split = str(row.get("split") or "")
        if split:
            check_split(split, f"clip {row['uid']} of the manifest")
        labels = tuple(dict.fromkeys(str(label) for label in row["labels"]))
        source_id = video_in_name(row["source"]) or str(row.get("source_id") or row["source"])
        start, length_s = float(row.get("start_s") or 0), float(row.get("duration_s") or 0)
        end, content = start + length_s, str(row.get("source_sha256") or "")
        clips.append(
            PlannedClip(row["uid"], row["source"], source_id, start, end, place, length, labels, split, content)
        )
    return clips, dict(left_out.most_common())


def assign_splits(clips: list[PlannedClip], settings: Settings) -> int:
    """Fill in `split` of every clip; returns how many had none although others had one."""
    if settings.split:
        for clip in clips:
            clip.split = settings.split
        return 0
    open_clips = [clip for clip in clips if not clip.split]
    given = len(open_clips) < len(clips)
    homes = _homes(clips) if settings.holdout and not given else {}
    test = held_out(dict(Counter(homes[clip.source_id] for clip in clips))) if homes else set()
    for clip in open_clips:
        clip.split = "test" if homes.get(clip.source_id) in test else "train"
    return len(open_clips) if given else 0


def _homes(clips: list[PlannedClip]) -> dict[str, str]:
    """Source video -> the first name of all source videos that copies of one file join with it."""
    homes = {clip.source_id: clip.source_id for clip in clips}
    by_content: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.source_sha256:
            by_content[clip.source_sha256].add(clip.source_id)
    for sources in by_content.values():
        roots = {_root(homes, source) for source in sources}
        for root in roots:
            homes[root] = min(roots)
    return {source: _root(homes, source) for source in homes}


def _root(homes: dict[str, str], source: str) -> str:
    while homes[source] != source:
        source = homes[source]
    return source


def _cut(groups: dict[str, list[PlannedClip]], size: int) -> Iterator[PlannedShard]:
    for split in sorted(groups, key=lambda name: (name != "train", name)):
        clips = sorted(groups[split], key=lambda clip: _hash("shard", clip.uid))
        for number, first in enumerate(range(0, len(clips), size)):
            yield PlannedShard(f"{split}-{number:06d}.tar", split, clips[first : first + size])


def _hash(purpose: str, name: str) -> bytes:
    return sha256(f"{purpose}\0{name}".encode("utf-8", "surrogatepass")).digest()
