"""One HTML file from everything a run left behind. It loads nothing, so it works from a disk and in ten years."""

import base64
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from kdctool.files import canonical_json, size_text
from kdctool.report import classification, diagnose, inpainting, localization, probe, retrieval
from kdctool.report.draft import Draft, Part
from kdctool.report.inputs import Evaluation, Inputs, RunFacts
from kdctool.report.media import Settled
from kdctool.report.names import shown
from kdctool.report.summary import cards, metric_rows, missing_text, training_card
from kdctool.report.tables import Cell, Table, said
from kdctool.report.training import payload as curves_payload
from kdctool.report.training import training
from kdctool.report.wording import TASKS, task_title

FORMAT = "kdctool-report-1"
MEGABYTE = 1_000_000
PARTS: dict[str, Callable[[Evaluation, Draft, str], Part | None]] = {
    "retrieval": retrieval.part,
    "localization": localization.part,
    "inpainting": inpainting.part,
    "classification": classification.part,
    "probe": probe.part,
    "diagnose": diagnose.part,
}
"""Task -> what it shows beside its metrics. Any other task shows its metrics and its details as JSON."""
SHOWN = {"confusion", "per_class", "labels", "towers", "uniform_ahd", "uniform", "units", "cka", "score"}
"""Keys of details that have a drawing or a table, or name what these show."""
DIGESTS = ("recipe_digest", "data_digest", "weights_sha256")


@dataclass(frozen=True)
class View:
    """An evaluation as the template takes it."""

    anchor: str
    title: str
    question: str
    evaluation: Evaluation
    counted: str
    """n of N and why the rest is missing."""
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    banners: tuple[str, ...]
    metrics: Table | None
    part: Part | None
    other: str
    """Details that have no drawing, as JSON text."""
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Rendered:
    """The file's bytes, and what had to be left out for its size."""

    html: bytes
    media: Settled
    sections: tuple[str, ...]


def render(inputs: Inputs, budget: int = 25 * MEGABYTE) -> Rendered:
    """The page of a run, at most `budget` bytes as long as its text allows. Equal inputs give equal bytes."""
    draft = Draft()
    views = _views(inputs, draft)
    learned = training(inputs.rows, draft) if inputs.rows else None
    context: dict[str, Any] = {
        "inputs": inputs,
        "run": inputs.run,
        "views": views,
        "training": learned,
        "cards": [card for view in views for card in cards(view.evaluation, view.anchor)],
        "training_card": training_card(inputs.rows),
        "run_facts": _run_facts(inputs.run),
        "settings": _settings(inputs.run, draft),
        "checkpoints": _checkpoints(inputs.run, draft),
        "recipe": "\n".join(shown(line) for line in inputs.run.recipe.splitlines()),
    }
    results = _results(inputs, views, draft)
    room = budget
    while True:
        # What is shown needs buttons and what is not needs words, so the page tells its size only when it is there.
        settled = draft.media.settle(max(0, room))
        html = _html(context, results, settled)
        if len(html) <= budget or not settled.uris:
            return Rendered(html, settled, tuple(view.title for view in views))
        room = min(room, sum(map(len, settled.uris.values()))) - (len(html) - budget)


def _views(inputs: Inputs, draft: Draft) -> list[View]:
    order = list(TASKS)

    def place(evaluation: Evaluation) -> tuple[int, str]:
        return (order.index(evaluation.task) if evaluation.task in order else len(order), evaluation.folder)

    found = sorted(inputs.evaluations, key=place)
    twice = {one.task for one in found if sum(other.task == one.task for other in found) > 1}
    return [_view(n, one, one.task in twice, inputs, draft) for n, one in enumerate(found)]


def _view(n: int, evaluation: Evaluation, name_folder: bool, inputs: Inputs, draft: Draft) -> View:
    anchor = f"eval-{n}"
    title = task_title(evaluation.task) + (f" ({shown(evaluation.folder)})" if name_folder else "")
    problems = [problem for problem in (evaluation.problem, evaluation.assets_problem) if problem]
    part = None
    try:
        maker = PARTS.get(evaluation.task)
        part = maker(evaluation, draft, anchor) if maker else None
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        problems.append(f"details and assets do not hold what this page draws: {type(error).__name__}: {error}")
    if evaluation.clips is not None and evaluation.clips.problem and evaluation.assets:
        problems.append(f"no pictures and no sound of clips: {evaluation.clips.problem}")
    metrics = None
    if evaluation.metrics:
        columns, rows = metric_rows(evaluation, inputs.run.expected)
        metrics = draft.table(f"{anchor}-metrics", f"Metrics of {title}", columns, rows)
    drawn = SHOWN if part is not None else set()
    other = {key: value for key, value in evaluation.found.items() if key not in drawn}
    notes = evaluation.details.get("notes")
    banners = retrieval.banners(evaluation) if evaluation.task == "retrieval" else []
    return View(
        anchor,
        title,
        TASKS[evaluation.task][1] if evaluation.task in TASKS else "",
        evaluation,
        missing_text(evaluation.results) if evaluation.results else "",
        _eval_facts(evaluation),
        tuple(shown(note) for note in notes) if isinstance(notes, list) else (),
        tuple(banners),
        metrics,
        part,
        json.dumps(_finite(other), indent=1, sort_keys=True)[:200_000] if other else "",
        tuple(shown(problem) for problem in problems),
    )


def _eval_facts(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    facts = [("protocol", evaluation.results.get("protocol"))]
    model, data = (evaluation.details.get(key) for key in ("model", "data"))
    if isinstance(data, dict):
        facts.append(("data", f"split {data.get('split')} of {data.get('shards')}"))
    if isinstance(model, dict):
        facts.append(("model", f"{model.get('kind')}, step {model.get('step')}"))
    if evaluation.details.get("options"):
        facts.append(("options", canonical_json(evaluation.details["options"])))
    facts.append(("device", evaluation.details.get("device")))
    facts += [(name, evaluation.results.get(name)) for name in DIGESTS]
    return tuple((name, shown(value)) for name, value in facts if value)


def _run_facts(run: RunFacts) -> list[tuple[str, str]]:
    return [(name, shown(value)) for name, value in run.facts.items() if value]


def _settings(run: RunFacts, draft: Draft) -> Table | None:
    if not run.changed:
        return None
    rows = [
        [said(key), said(value if isinstance(value, str) else json.dumps(value))] for key, value in run.changed.items()
    ]
    return draft.table("settings", "Settings that are not defaults", ("key", "value"), rows)


def _checkpoints(run: RunFacts, draft: Draft) -> Table | None:
    if not run.checkpoints:
        return None
    rows = [
        [said(name), Cell(size, size_text(size)), said("yes" if complete else "no")]
        for name, size, complete in run.checkpoints
    ]
    return draft.table("checkpoints", "Checkpoints", ("name", "size", "complete"), rows)


def _results(inputs: Inputs, views: list[View], draft: Draft) -> dict[str, Any]:
    """The embedded JSON: the numbers of every table, curve and evaluation."""
    run = inputs.run
    return {
        "format": FORMAT,
        "kdctool": inputs.version,
        "title": inputs.title,
        "run": {
            "name": run.name,
            "kind": run.kind,
            "state": run.state,
            "step": run.step,
            "facts": run.facts,
            "problems": list(run.problems),
        },
        "evaluations": [
            {
                "anchor": view.anchor,
                "folder": view.evaluation.folder,
                "results": view.evaluation.results,
                "notes": list(view.notes),
                "problems": list(view.problems),
                **(view.part.payload if view.part else {}),
            }
            for view in views
        ],
        "not_evaluated": [{"task": one.task, "command": one.command, "reason": one.reason} for one in inputs.not_done],
        "curves": curves_payload(inputs.rows),
        "tables": {id: table.payload() for id, table in draft.tables.items()},
    }


def _html(context: dict[str, Any], results: dict[str, Any], settled: Settled) -> bytes:
    css, js = _inline("report.css"), _inline("report.js")
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src '{_hash(css)}'; script-src '{_hash(js)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    left_out = {"kept": settled.kept, "left_out": settled.left_out, "half_size_pictures": settled.is_small}
    page = _templates().get_template("page.html")
    text = page.render(
        **context,
        css=Markup(css),
        js=Markup(js),
        policy=policy,
        uris=settled.uris,
        settled=settled,
        media_json=_script_json(settled.uris),
        results_json=_script_json(_finite({**results, "media": left_out})),
    )
    return text.encode("utf-8")


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("kdctool.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _inline(name: str) -> str:
    return files("kdctool.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy knows an inline script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_json(value: Any) -> Markup:
    """JSON that can stand in a script element whatever the names in it hold: no <, > or & is left."""
    text = canonical_json(value)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    """What JSON has no word for (NaN, infinities) is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
