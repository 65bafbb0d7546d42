"""The record of shards that are being written, so that a run that was killed at any moment can go on.

SHARDS/.building/plan.json says what the shards are made from; NAME.tar.json appears beside it when NAME.tar is
complete. Tars are touched only while the record exists and index.json does not; index.json comes last, then the
record goes. So tars without index.json and without a record are not ours, and are never deleted.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, UsageFault
from kdctool.files import PARTIAL, disk_faults, fsync_folder, read_json, write_json
from kdctool.shards import foreign, index
from kdctool.shards.entry import Entry, from_json, to_json

PLAN = "plan.json"


@dataclass(frozen=True)
class State:
    """What lies in a folder of shards before a run of `kdctool shard`."""

    made_from: dict[str, Any] | None = None
    ours: frozenset[str] = frozenset()
    """Names of tars that kdctool shard made or may have made there."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """Complete shards: recorded, and there with the recorded size."""
    finished: bool = False


def look(folder: Path) -> State:
    """Read the state of a folder; changes nothing."""
    plan = folder / index.BUILDING / PLAN
    if plan.is_file():
        try:
            value = read_json(plan)
            records = [from_json(read_json(path), str(path)) for path in sorted(plan.parent.glob("*.tar.json"))]
            return State(dict(value["made_from"]), frozenset(value["shards"]), _there(folder, records))
        except (ValueError, KeyError, TypeError) as error:
            raise DataFault(f"{plan.parent} is damaged: {error}", "delete it and the tars beside it") from error
    if (folder / index.INDEX).is_file():
        made = index.read(folder)
        if made.made_from is not None:
            names = frozenset(entry.name for entry in made.entries)
            entries = _there(folder, made.entries)
            return State(made.made_from, names, entries, finished=len(entries) == len(names))
    return State()


def check(folder: Path, state: State, made_from: dict[str, Any], *, overwrite: bool) -> None:
    """UsageFault when the shards there are of other settings (it names them), or when tars there are not ours."""
    if state.made_from not in (None, made_from) and not overwrite:
        assert state.made_from is not None
        keys = sorted(
            k for k in state.made_from.keys() | made_from.keys() if state.made_from.get(k) != made_from.get(k)
        )
        differing = ", ".join(
            f"{key} (was {_short(state.made_from.get(key))}, is {_short(made_from.get(key))})" for key in keys
        )
        raise UsageFault(
            f"{folder} was made from something else; what differs: {differing}",
            "choose another folder, or add --overwrite to replace these shards",
        )
    odd = [path.name for path in foreign.tars(folder) if path.name not in state.ours]
    if odd:
        raise UsageFault(
            f"{folder} holds {odd[0]}, which kdctool shard did not make ({len(odd)} such tars)",
            "choose an empty folder: tars of others are never deleted",
        )


def begin(folder: Path, state: State, made_from: dict[str, Any], planned: set[str], keep: Iterable[Entry]) -> None:
    """Make the record of this plan, then remove what it does not need: index.json, old tars, partial files."""
    building = folder / index.BUILDING
    value = {"made_from": made_from, "shards": sorted(planned | state.ours)}
    kept = {f"{entry.name}.json": to_json(entry) for entry in keep}
    with disk_faults(folder):
        if (building / PLAN).is_file():
            for path in building.glob("*.tar.json"):
                if path.name not in kept:
                    path.unlink()
            write_json(building / PLAN, value)
        else:
            fresh = folder / (index.BUILDING + PARTIAL)
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            for name, entry in kept.items():
                write_json(fresh / name, entry)
            write_json(fresh / PLAN, value)
            os.replace(fresh, building)
            fsync_folder(folder)
        (folder / index.INDEX).unlink(missing_ok=True)
        for name in state.ours - planned:
            (folder / name).unlink(missing_ok=True)
        for path in building.glob(f"*{PARTIAL}"):
            path.unlink()
        tidy(folder)
        fsync_folder(folder)


def record(folder: Path, entry: Entry) -> None:
    """Note that a tar is complete."""
    write_json(folder / index.BUILDING / f"{entry.name}.json", to_json(entry))


def finish(made: index.Index) -> None:
    """Write index.json, then drop the record; by a rename, so that half a record is never taken for one."""
    index.write(made)
    os.replace(made.folder / index.BUILDING, made.folder / (index.BUILDING + PARTIAL))
    tidy(made.folder)


def tidy(folder: Path) -> None:
    """Remove what an interrupted run left beside finished shards."""
    shutil.rmtree(folder / (index.BUILDING + PARTIAL), ignore_errors=True)
    for path in folder.glob(f"*{PARTIAL}"):
        path.unlink()


def _there(folder: Path, entries: Iterable[Entry]) -> dict[str, Entry]:
    sizes = {path.name: path.stat().st_size for path in foreign.tars(folder)}
    return {entry.name: entry for entry in entries if sizes.get(entry.name) == entry.bytes}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "none" if text in ("", "null") else text[:12]
