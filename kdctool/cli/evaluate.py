"""kdctool eval."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer

from kdctool.cli.show import Device, Format, summary, table
from kdctool.errors import quoted
from kdctool.registry import options_table

if TYPE_CHECKING:
    from kdctool.stages.evaluate import Evaluated


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run or export folder; default: the newest finished run.")] = None,
    task: Annotated[
        str,
        typer.Option(
            help="retrieval, probe, localization, diagnose (any model), inpainting (a run), classification (a "
            "finetuned model), or a plugin's."
        ),
    ] = "retrieval",
    shards: Annotated[Path | None, typer.Option(help="Folder of shards; overrides the recipe's data.shards.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to score; default: the recipe's data.eval_split.")] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per forward pass.")] = 32,
    workers: Annotated[int | None, typer.Option(min=0, help="Reading processes; overrides data.workers.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json; default RUN/eval/TASK.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the task; may be repeated. --option help lists them."),
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Score clips that occur in training too, and say how many.")
    ] = False,
    format: Format = "human",
) -> None:
    """Score a model on held-out clips: every number beside chance, with its 95 % interval.

    Writes RUN/eval/TASK/results.json. Training clips are scored only when --split names them.
    """
    if option == ["help"]:
        _options(task, format)
        return
    from kdctool.stages import evaluate as stage

    done = stage.run(
        run,
        task=task,
        shards=shards,
        split=split,
        device_name=device,
        batch_size=batch_size,
        workers=workers,
        out=out,
        options=options_table(option),
        allow_overlap=allow_overlap,
    )
    result = done.result
    if format == "human":
        _metrics(done)
    rows = [
        ("model", done.model),
        ("clips", done.clips),
        ("scored", f"{result.n_scored} of {result.n_total}{_reasons(result.missing)}"),
        *(("note", note) for note in result.notes),
        ("results", str(done.folder / "results.json")),
    ]
    summary(f"eval {task}", rows, _further(done), done.payload, format)


def _options(task: str, format: str) -> None:
    """The options of a task, as its section declares them."""
    from kdctool.tasks import tasks

    fields = tasks.get(task).options.model_fields
    told = {name: (field.get_default(call_default_factory=True), field.description) for name, field in fields.items()}
    others = ", ".join(name for name in tasks.names() if name != task)
    payload = {name: {"default": default, "meaning": text} for name, (default, text) in told.items()}
    if format == "json":
        print(json.dumps(payload, sort_keys=True))
        return
    rows = [
        [name, json.dumps(default), " ".join(f"{text or ''} {_choices(fields[name].annotation)}".split())]
        for name, (default, text) in told.items()
    ]
    table(f"eval --task {task} --option NAME=VALUE: name, default, meaning", [], rows or [["it has none", "", ""]])
    print(f"next: --task names another task: {others}")


def _choices(kind: object) -> str:
    """The values that an option can have, where they are listed."""
    values = get_args(kind) if get_origin(kind) is Literal else ()
    return f"One of {', '.join(map(str, values))}." if values else ""


def _further(done: "Evaluated") -> str:
    if done.kind == "pretrain" and done.result.task == "retrieval":
        return f"kdctool finetune {quoted(done.path)}"
    if done.result.task not in ("retrieval", "classification"):
        return f"kdctool report {quoted(done.path)}"
    return f"cat {quoted(done.folder / 'results.json')}" if done.is_export else f"kdctool export {quoted(done.path)}"


def _metrics(done: "Evaluated") -> None:
    published = {row.metric: row for row in done.expected}
    columns = ["metric", "value", "95 % interval", "chance", *(["published", "source"] if published else [])]
    rows = []
    for name, metric in done.result.metrics.items():
        row = [name, _text(name, metric.value), f"{_text(name, metric.low)} - {_text(name, metric.high)}"]
        row.append(_text(name, metric.chance))
        if published:
            found = published.get(name)
            row += [_text(name, found.value), found.source] if found else ["", ""]
        rows.append(row)
    table(f"{done.result.task} ({done.result.protocol})", columns, rows)


def _text(name: str, value: float) -> str:
    if value != value:
        return "unknown"
    return f"{value:.1f}" if name.endswith("_rank") else f"{value:.3f}"


def _reasons(missing: dict[str, int]) -> str:
    if not missing:
        return ""
    return f", missing {sum(missing.values())} ({', '.join(f'{n} {reason}' for reason, n in sorted(missing.items()))})"
