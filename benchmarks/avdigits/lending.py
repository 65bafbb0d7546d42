"""What one study has trained, another takes over: the same arm and seed, with the same keys on the same data."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from kdctool.files import PARTIAL, read_json, write_json
from kdctool.progress import say
from kdctool.recipe import changed_keys, result_keys
from kdctool.recipe.study import Study
from kdctool.stages import pretrain, sweep_cell, sweep_plan
from kdctool.stages.run_folder import RUN_FILE, SECTIONS
from kdctool.stages.sweep_plan import Cell, Plan
from kdctool.train.log import STATUS

RUN = "pretrain"


def lend(study: Study, shards: Path, out: Path, overrides: list[str]) -> list[str]:
    """Give cells of a study in `out` that were not begun the finished pre-training of a cell of a study beside it.

    Files are linked, not copied: they take no room. Returns the names of these cells.
    """
    others = [folder for folder in sorted(out.parent.glob("*/cells")) if folder.parent != out]
    named = {f"{arm.name}-s{seed}" for arm in study.arms if not arm.is_reference for seed in study.seeds}
    if not any((folder / name / RUN / STATUS).exists() for folder in others for name in named):
        return []
    plan = sweep_plan.make_plan(study, shards=shards, out=out, overrides=overrides, arms=[], seeds=None)
    lent = []
    for cell in plan.cells:
        if cell.name not in named or (plan.folder(cell) / sweep_cell.CELL).exists():
            continue
        for folder in others:
            if _is_same(plan, cell, folder / cell.name / RUN):
                _link(plan, cell, folder / cell.name)
                lent.append(cell.name)
                break
    if lent:
        say(f"{len(lent)} cells of {study.name} take over what another study trained: {', '.join(lent)}")
    return lent


def _is_same(plan: Plan, cell: Cell, run: Path) -> bool:
    """Whether a finished run is what the cell would train."""
    if not (run / STATUS).exists() or read_json(run / STATUS)["state"] != "done":
        return False
    theirs = read_json(run / RUN_FILE)
    ours = {**result_keys(cell.recipe, SECTIONS["pretrain"]), **pretrain.guard(cell.recipe)}
    is_kind = theirs["kind"] == "pretrain" and theirs["data_digest"] == plan.data_digest
    return is_kind and not changed_keys(theirs["keys"], ours)


def _link(plan: Plan, cell: Cell, theirs: Path) -> None:
    folder = plan.folder(cell)
    partial = folder / (RUN + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder / RUN, ignore_errors=True)  # Of a call that was killed before it noted the cell.
    # A lock belongs to one folder: a linked one would be held by both.
    shutil.copytree(theirs / RUN, partial, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
    partial.rename(folder / RUN)
    before = sweep_cell.Record(**read_json(theirs / sweep_cell.CELL))
    record = sweep_cell.Record(cell.arm.name, cell.seed, "interrupted", f"trained in {theirs.parent.parent.name}")
    record.seconds = {key: value for key, value in before.seconds.items() if key == RUN}
    record.device = before.device
    write_json(folder / sweep_cell.CELL, asdict(record))
