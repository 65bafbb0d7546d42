"""`kdctool shard`: from an extraction folder to WebDataset tars with an index. Stopped at any moment, it goes on.

Same manifest, labels and settings: same bytes.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdctool.errors import EnvironmentFault, UsageFault, quoted
from kdctool.files import existing_parent, size_text
from kdctool.places import Place, parse
from kdctool.progress import Bar, bar, say
from kdctool.shards import building, destination, origin
from kdctool.shards.destination import Destination
from kdctool.shards.entry import Entry
from kdctool.shards.extraction import clip_members
from kdctool.shards.index import Index
from kdctool.shards.labels import LabelOptions
from kdctool.shards.origin import Origin
from kdctool.shards.plan import Plan, PlannedShard, Settings, make_plan
from kdctool.shards.tar import BLOCK
from kdctool.shards.write import Clip, write_shard

_EXAMPLES = 5
_SAMPLED_CLIPS = 64


@dataclass(frozen=True)
class ShardSummary:
    """What a run of `kdctool shard` left behind, or would."""

    folder: str
    dry_run: bool
    splits: dict[str, dict[str, int]]
    """Split -> clips and shards."""
    num_bytes: int
    """Bytes of all tars; estimated from a sample of clips in a dry run."""
    written: int
    kept: int
    """Shards written now, and shards that were done before."""
    num_rows: int
    """Rows of the manifest; every one is a clip or counted in `left_out`."""
    num_clips: int
    left_out: dict[str, int]
    num_labels: int
    multi_label: bool
    unlabelled: int
    unmatched: int
    """Rows of the label file that name no usable clip."""
    unmatched_examples: list[str]
    without_split: int
    shared_sources: int
    digest: str

    def payload(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)


def run(
    out: str | Place,
    shards: str | Place,
    *,
    labels: str | Path | Sequence[str | Path] | None = None,
    labels_format: str = "",
    class_names: Path | None = None,
    label_list: Path | None = None,
    clips_per_shard: int = 1000,
    holdout: bool = True,
    split: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
    delete_clips: bool = False,
) -> ShardSummary:
    """Write the shards of an extraction folder, or what is missing of them.

    `labels` are label files as published, each `FILE` or `SPLIT=FILE`, or the word `folders`; `class_names` is a
    class_labels_indices.csv, `label_list` the names that may occur. Without given splits 10 % of the clips are held
    out as `test`, unless `holdout` is off; `split` puts all clips into one split. `delete_clips` deletes the clips of
    each shard that is safe from the extraction folder.
    """
    out, shards = parse(out), parse(shards)
    if str(shards) == str(out) or (isinstance(out, Path) and isinstance(shards, Path) and _is_same(out, shards)):
        raise UsageFault(
            f"the shards cannot go into the extraction folder {out} itself", f"kdctool shard {quoted(out)} shards/"
        )
    given = () if labels is None else (labels,) if isinstance(labels, str | Path) else labels
    options = LabelOptions(tuple(map(str, given)), labels_format, class_names, label_list)
    with origin.opened(out) as source, destination.opened(shards) as target:
        plan = make_plan(source.extraction, Settings(clips_per_shard, holdout, split), options)
        _warn(plan)
        with nullcontext() if dry_run else target.held():
            if dry_run:
                target.pull()
            return _run(source, target, shards, plan, overwrite, dry_run, delete_clips)


def _is_same(out: Path, shards: Path) -> bool:
    return shards.resolve() == out.resolve()


def _run(
    source: Origin,
    target: Destination,
    shards: Place,
    plan: Plan,
    overwrite: bool,
    dry_run: bool,
    delete_clips: bool,
) -> ShardSummary:
    planned = {shard.name for shard in plan.shards}
    state = building.look(target.folder)
    building.check(target.folder, state, plan.made_from, overwrite=overwrite)
    done = {} if overwrite else {name: entry for name, entry in state.entries.items() if name in planned}
    todo = [shard for shard in plan.shards if shard.name not in done]
    estimate = _estimated_bytes(source, todo)
    if dry_run:
        size = estimate + sum(entry.bytes for entry in done.values())
        return _summary(plan, shards, size, len(todo), "", dry_run=True)
    if delete_clips:
        for shard in plan.shards:
            if shard.name in done:
                source.forget(clip.uid for clip in shard.clips)
    is_finished = state.finished and not todo
    if not is_finished:
        share = max((len(shard.clips) for shard in todo), default=0) if delete_clips or target.one_by_one else 0
        needed = estimate * share // max(sum(len(shard.clips) for shard in todo), 1) if share else estimate
        _check_space(target, needed, state.ours - done.keys())
        building.begin(target.folder, state, plan.made_from, planned, done.values())
        target.begun()
        done |= _write(source, target, todo, delete_clips)
    made = Index(
        folder=target.folder,
        labels=plan.labels,
        multi_label=plan.multi_label,
        settings=source.extraction.settings,
        entries=tuple(done[shard.name] for shard in plan.shards),
        made_from=plan.made_from,
    )
    if is_finished:
        building.tidy(target.folder)
    else:
        building.finish(made)
        target.finished()
    return _summary(plan, shards, sum(entry.bytes for entry in made.entries), len(todo), made.digest, dry_run=False)


def _write(source: Origin, target: Destination, todo: list[PlannedShard], delete_clips: bool) -> dict[str, Entry]:
    done: dict[str, Entry] = {}
    with bar("writing shards", sum(len(shard.clips) for shard in todo)) as progress:
        for shard in todo:
            entry = write_shard(target.folder / shard.name, shard.split, _samples(source, shard, progress))
            target.written(shard.name)
            building.record(target.folder, entry)
            target.recorded(shard.name)
            done[shard.name] = entry
            if delete_clips:
                source.forget(clip.uid for clip in shard.clips)
    return done


def _samples(source: Origin, shard: PlannedShard, progress: Bar) -> Iterator[Clip]:
    for clip, row in source.clips(shard.clips):
        yield clip.uid, clip_members(source.extraction.folder, row, clip.labels, clip.boxes)
        progress.advance()


def _estimated_bytes(source: Origin, todo: list[PlannedShard]) -> int:
    """Bytes of the tars to write, from the files of the first clips (their order is random)."""
    count = sum(len(shard.clips) for shard in todo)
    sample = list(itertools.islice((clip for shard in todo for clip in shard.clips), _SAMPLED_CLIPS))
    size = 0
    for clip, sizes in zip(sample, source.sizes(sample), strict=True):
        size += sum(BLOCK + -(-length // BLOCK) * BLOCK for length in [*sizes, clip.length])
    return round(size / len(sample) * count) if sample else 0


def _check_space(target: Destination, needed: int, replaced: frozenset[str]) -> None:
    """EnvironmentFault before anything is written when the disk cannot hold the shards."""
    shards = target.folder
    # Of tars, not of the hollow files that stand for those of a store.
    sizes = [512 * path.stat().st_blocks for name in replaced if (path := shards / name).is_file()]
    free = shutil.disk_usage(existing_parent(shards)).free
    if needed > free + sum(sizes):
        raise EnvironmentFault(
            f"the shards need about {size_text(needed)}, {size_text(free)} are free at {shards}",
            "free some space, or choose a folder on another disk; nothing was written",
        )


def _warn(plan: Plan) -> None:
    if plan.shared_sources:
        say(f"{plan.shared_sources} source videos have clips in more than one split, as the given splits want it")
    if plan.without_split:
        say(f"{plan.without_split} clips have no split although others have one: they go to train")


def _summary(plan: Plan, shards: Place, size: int, written: int, digest: str, *, dry_run: bool) -> ShardSummary:
    splits: dict[str, dict[str, int]] = {}
    for shard in plan.shards:
        counts = splits.setdefault(shard.split, {"clips": 0, "shards": 0})
        counts["clips"] += len(shard.clips)
        counts["shards"] += 1
    return ShardSummary(
        folder=str(shards),
        dry_run=dry_run,
        splits=splits,
        num_bytes=size,
        written=written,
        kept=len(plan.shards) - written,
        num_rows=plan.num_rows,
        num_clips=sum(counts["clips"] for counts in splits.values()),
        left_out=plan.left_out,
        num_labels=len(plan.labels),
        multi_label=plan.multi_label,
        unlabelled=plan.unlabelled,
        unmatched=len(plan.unmatched),
        unmatched_examples=[f"{Path(row.where).name}: {row.clip!a}" for row in plan.unmatched[:_EXAMPLES]],
        without_split=plan.without_split,
        shared_sources=plan.shared_sources,
        digest=digest,
    )
