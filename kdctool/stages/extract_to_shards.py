"""Videos to shards in one command: clips go once their tar is recorded, so they never lie there beside all tars.

Which clips share a shard depends on all of them, so all are made before the first tar is written. SHARDS/extraction
is an extraction folder; at the end it keeps manifest.jsonl, quarantine.jsonl and what else tells of it, but no clips.
"""

from typing import Any

from kdctool.errors import UsageFault
from kdctool.media import inputs
from kdctool.media.home import open_home
from kdctool.media.ledger import Ledger
from kdctool.media.settings import Settings
from kdctool.places import Place, parse
from kdctool.shards import building, destination
from kdctool.stages import extract, shard
from kdctool.stages.extract_summary import Summary
from kdctool.stages.extract_work import size_of
from kdctool.stages.shard import ShardSummary

STAGING = "extraction"
"""Folder in SHARDS for the clips that are in no shard yet, and for the record of the extraction."""


def run(
    videos: str | Place,
    shards: str | Place,
    settings: Settings,
    *,
    packing: dict[str, Any],
    overwrite: bool = False,
    dry_run: bool = False,
    **making: Any,
) -> tuple[Summary, ShardSummary | None]:
    """The same tars and index as `extract.run` and then `shard.run`, which get `making` and `packing`.

    Stopped at any moment, it goes on. UsageFault when the videos are not those that shards were made of already. A
    dry run plans the extraction alone: which clips are usable is not known before.
    """
    videos, shards = parse(videos), parse(shards)
    staging = shards / STAGING
    with destination.opened(shards) as target:
        target.pull()
        state = building.look(target.folder)
        building.check(target.folder, state, state.made_from or {}, overwrite=overwrite)
    if overwrite:
        packed = frozenset[str]()
    else:
        packed = frozenset(key.decode() for entry in state.entries.values() for key in entry.keys.tolist())
        if state.made_from is not None:
            _check_same(videos, shards, settings.images, making.get("retry_quarantined", False))
    made = extract.run(videos, staging, settings, overwrite=overwrite, dry_run=dry_run, packed=packed, **making)
    if dry_run:
        return made, None
    written = shard.run(staging, shards, overwrite=overwrite, delete_clips=True, **packing)
    with open_home(staging) as home, home.held(None):
        home.clips.forget()
    return made, written


def _check_same(videos: Place, shards: Place, images: bool, retry: bool) -> None:
    """UsageFault unless the shards are of these very videos: clips in tars cannot be dealt out anew."""
    again = "choose another folder, or --overwrite, which makes all clips again"
    with open_home(shards / STAGING) as home:
        home.pull(None)
        ledger = Ledger(home.notes, clips=home.clips)
        ledger.load()
    if not ledger.finished:
        raise UsageFault(f"{shards} holds shards that were made without --to-shards", again)
    items = inputs.find(videos, images).items
    changed = [item for item in items if ledger.finished.get(item.key, (-2, []))[0] != size_of(item)]
    if changed:
        raise UsageFault(
            f"{len(changed)} videos are new or changed since shards were made in {shards},"
            f" the first is {changed[0].source!a}",
            again,
        )
    if retry and any(row["status"] == "quarantined" for row in ledger.rows.values()):
        raise UsageFault(f"--retry-quarantined: the shards in {shards} are made already", again)
