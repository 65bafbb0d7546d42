"""Read a run with its curves and evaluations, and write one HTML file about it."""

import json
import shlex
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdctool import __version__
from kdctool.files import read_json, size_text, write_bytes
from kdctool.progress import say
from kdctool.report import page
from kdctool.report.clips import Clips
from kdctool.report.inputs import Arrays, Evaluation, Expected, Inputs, NotDone, RunFacts
from kdctool.report.wording import TASKS
from kdctool.stages import run_folder, runs
from kdctool.stages.evaluate import ASSETS, DETAILS, RESULTS
from kdctool.stages.load import EXPORT_FILE
from kdctool.stages.run_state import numbers, parse_row
from kdctool.tasks import tasks
from kdctool.train.log import METRICS

EVAL = "eval"
NAME = "report.html"
LARGEST_ASSETS = 2**30
"""Bytes of arrays that one evaluation may hold; a report is made from a few clips."""


@dataclass(frozen=True)
class Reported:
    """What was written, and what is in it."""

    path: Path
    size: int
    sections: tuple[str, ...]
    not_done: tuple[NotDone, ...]
    rows: int
    kept: dict[str, int]
    left_out: dict[str, int]
    is_small: bool
    unfinished: str = ""
    """`step 26 of 80`, where training ended before its end."""


def run(
    source: Path | None = None,
    *,
    out: Path | None = None,
    title: str = "",
    shards: Path | None = None,
    max_mb: float = 25.0,
) -> Reported:
    """Write RUN/report.html (or `out`) about a run or an export; default: the newest finished run.

    `shards` overrides where the evaluations say that their clips lie. Equal folders give equal bytes.
    """
    folder = _folder(source)
    facts = _facts(folder)
    rows = _rows(folder / METRICS)
    evaluations = list(_evaluations(folder / EVAL, shards))
    missing = _not_done(folder, facts.kind, {one.task for one in evaluations})
    say(f"{folder}: {len(rows)} rows of metrics, {len(evaluations)} evaluations")
    inputs = Inputs(title or facts.name, facts, rows, evaluations, missing, __version__)
    rendered = page.render(inputs, int(max_mb * page.MEGABYTE))
    path = out or folder / NAME
    write_bytes(path, rendered.html)
    settled = rendered.media
    if len(rendered.html) > max_mb * page.MEGABYTE:
        say(f"the numbers alone take {size_text(len(rendered.html))}, more than --max-mb {max_mb:g}")
    elif settled.is_small or settled.left_out:
        say(f"the page was made smaller to stay below {max_mb:g} MB; it says what is left out")
    return Reported(
        path,
        len(rendered.html),
        rendered.sections,
        tuple(missing),
        len(rows),
        settled.kept,
        settled.left_out,
        settled.is_small,
        facts.facts.get("unfinished", ""),
    )


def _folder(source: Path | None) -> Path:
    if source is None:
        return run_folder.newest()
    if (source / EXPORT_FILE).exists() or ((source / EVAL).is_dir() and not (source / run_folder.RUN_FILE).exists()):
        return source
    return runs.find(source)


def _facts(folder: Path) -> RunFacts:
    if (folder / EXPORT_FILE).exists():
        return _export_facts(folder)
    shown = runs.show(folder)
    state, about = shown.state, shown.state.about
    recipe = _text(folder / run_folder.RECIPE_FILE)
    unfinished = runs.unfinished(folder, state.step) if state.step is not None and not state.alive else ""
    facts = {
        "unfinished": unfinished.removeprefix("unfinished: "),
        "recipe digest": about.get("recipe_digest"),
        "data digest": about.get("data_digest"),
        "started from": about.get("source"),
        "kdctool": about.get("kdctool"),
        **(about["platform"] if isinstance(about.get("platform"), dict) else {}),
    }
    # Whether a run still lives depends on the minute; what its files say does not.
    said = str(state.status.get("state") or state.state) if state.alive else state.state
    return RunFacts(
        name=folder.resolve().name,
        path=str(folder),
        kind=state.kind,
        state=said,
        note="" if state.alive else state.note,
        step=state.step,
        next_step=state.next_step,
        recipe=recipe,
        changed={key: value for key, value in shown.changed.items() if not key.startswith("expected")},
        facts={name: str(value) for name, value in facts.items() if value},
        checkpoints=tuple((saved.name, saved.size, saved.complete) for saved in shown.saved),
        problems=shown.problems,
        expected=_expected(recipe),
    )


def _export_facts(folder: Path) -> RunFacts:
    about = read_json(folder / EXPORT_FILE)
    names = ("unfinished", "recipe_digest", "data_digest", "weights_sha256")
    return RunFacts(
        name=folder.resolve().name,
        path=str(folder),
        kind=f"export of a {about.get('kind')} run",
        state="done",
        step=about.get("step"),
        facts={
            name.replace("_", " "): str(about[name]).removeprefix("unfinished: ") for name in names if about.get(name)
        },
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""  # `runs.show` has named it among the problems.


def _expected(recipe: str) -> tuple[Expected, ...]:
    """Published numbers of a recipe, also of one that this version would not accept."""
    try:
        rows = tomllib.loads(recipe).get("expected", [])
        return tuple(
            Expected(str(r["task"]), str(r["metric"]), float(r["value"]), str(r.get("source", ""))) for r in rows
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl by step; a line that is none is skipped, as `kdctool runs` counts them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        row = parse_row(line)
        if row is not None:
            found.append({"step": row["step"], **numbers(row)})
    return found


def _evaluations(folder: Path, shards: Path | None) -> Iterator[Evaluation]:
    opened: dict[tuple[str, str, str], Clips] = {}
    for path in sorted(folder.rglob(RESULTS)):
        name = path.parent.relative_to(folder).as_posix()
        results, problem = _object(path)
        if not problem and not isinstance(results.get("metrics"), dict):
            problem = f"{RESULTS} holds no metrics"
        details, details_problem = _object(path.parent / DETAILS)
        assets, assets_problem = _assets(path.parent / ASSETS)
        yield Evaluation(
            name,
            results,
            details,
            assets,
            problem,
            assets_problem or details_problem,
            _clips(details, results, shards, opened) if assets else None,
        )


def _clips(
    details: dict[str, Any], results: dict[str, Any], shards: Path | None, opened: dict[tuple[str, str, str], Clips]
) -> Clips | None:
    data = details.get("data")
    if not isinstance(data, dict) or not data.get("split") or not (shards or data.get("shards")):
        return None
    key = (str(shards or data["shards"]), str(data["split"]), str(results.get("data_digest") or ""))
    if key not in opened:
        opened[key] = Clips(Path(key[0]), key[1], key[2])
    return opened[key]


def _object(path: Path) -> tuple[dict[str, Any], str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, f"no {path.name}"
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}"
    return (found, "") if isinstance(found, dict) else ({}, f"{path.name} holds no object")


def _assets(path: Path) -> tuple[Arrays, str]:
    """The arrays of an assets.npz; none where the task kept none."""
    if not path.exists():
        return {}, ""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST_ASSETS:
            return {}, f"{path.name} holds {size_text(size)}, more than {size_text(LARGEST_ASSETS)}"
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}, ""
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        return {}, f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}"


def _not_done(folder: Path, kind: str, done: set[str]) -> list[NotDone]:
    """The tasks that this model was not scored on, those that fit it first."""
    found = []
    place = shlex.quote(str(folder))
    for name in sorted(
        tasks.names(), key=lambda name: (list(TASKS).index(name) if name in TASKS else len(TASKS), name)
    ):
        if name in done:
            continue
        wants = tasks.get(name).cls.wants
        if wants == "classifier" and "finetune" not in kind:
            found.append(NotDone(name, f"kdctool finetune {place}", "needs a classifier:"))
        elif wants == "objective" and "pretrain" not in kind:
            found.append(NotDone(name, "", "needs the decoder of a pre-training, which this model does not have"))
        else:
            needs = "needs boxes around what sounds:" if name == "localization" else ""
            found.append(NotDone(name, f"kdctool eval {place} --task {name}", needs))
    return found
