"""kdctool runs: list, show, watch and compare runs. None of it loads torch or writes anything."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdctool.cli.show import Format, console, table
from kdctool.errors import quoted

if TYPE_CHECKING:
    from kdctool.stages.run_state import RunState
    from kdctool.stages.runs import Compared, Event, Shown

runs_app = typer.Typer(no_args_is_help=True, help="List, show, watch and compare the runs there are.")

Root = Annotated[Path, typer.Option(help="Folder of runs.")]
RUNS = Path("runs")
SHOWN_ROWS = 12  # of metrics, on a terminal.


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(runs_app, name="runs")


@runs_app.command("list")
def list_(root: Root = RUNS, format: Format = "human") -> None:
    """Every run: kind, state, step, loss, how long ago it wrote, and what to type next.

    `running?` says that a run calls itself running, but its process is gone or has been silent for long.
    """
    from kdctool.stages import runs as stage
    from kdctool.stages.run_state import age_text

    found = stage.list_runs(root)
    if format == "json":
        _json({"runs": [_payload(state, total) for state, total in found]})
        return
    if not found:
        print(f"no runs in {root}\nnext: kdctool pretrain recipes/small.toml")
        return
    rows = [
        [s.name, s.kind, s.state, _steps(s, total), _text(s.last.get("loss")), age_text(s.silent_s), s.next_step]
        for s, total in found
    ]
    _wide(["run", "kind", "state", "step", "loss", "wrote (file time)", "next"], rows)
    for state, _ in found:
        _tell(state)


@runs_app.command()
def show(
    run: Annotated[Path, typer.Argument(help="Run folder, or its name in --root.")],
    root: Root = RUNS,
    format: Format = "human",
) -> None:
    """One run: state, settings that are not defaults, last metrics, checkpoints, evaluation results."""
    from kdctool.stages import runs as stage

    shown = stage.show(stage.find(run, root))
    if format == "json":
        _json(_shown_payload(shown))
    else:
        _print_shown(shown)


@runs_app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, or its name in --root.")],
    root: Root = RUNS,
    once: Annotated[bool, typer.Option("--once", help="Print what there is and stop.")] = False,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between looks.")] = 1.0,
) -> None:
    """Follow the metrics of a run until it ends, and end with its exit code (0 with --once).

    On a terminal a table that is drawn again; elsewhere a plain line per row.
    """
    from kdctool.stages import runs as stage

    folder = stage.find(run, root)
    events = stage.follow(folder, once=once, every_s=every)
    last = _watch_live(folder, events) if sys.stdout.isatty() and not once else _watch_plain(events)
    if last is not None and last.next_step:
        print(f"next: {last.next_step}")
    code = last.status.get("exit_code") if last is not None and not once else 0
    raise typer.Exit(code if isinstance(code, int) else 0)


@runs_app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Two runs or more: folders, or names in --root.")],
    root: Root = RUNS,
    format: Format = "human",
) -> None:
    """Runs side by side: the settings that differ, the last metrics, the evaluation results. No statistics."""
    from kdctool.stages import runs as stage

    compared = stage.compare([stage.find(run, root) for run in runs])
    if format == "json":
        _json(_compared_payload(compared))
        return
    names = [state.name for state in compared.states]
    head = [["state", *(s.state for s in compared.states)], ["step", *(_steps(s, None) for s in compared.states)]]
    _wide(["run", *names], head)
    for title, values in (
        ("settings that differ", compared.recipe),
        ("last metrics", compared.metrics),
        ("evaluation", compared.scores),
    ):
        if values:
            _wide([title, *names], [[key, *map(_text, row)] for key, row in values.items()])
        else:
            print(f"{title}: none\n")
    for problem in compared.problems:
        print(f"broken: {problem}")
    if not compared.scores:
        print(f"next: kdctool eval {quoted(compared.states[0].path)}")


def _print_shown(shown: "Shown") -> None:
    from kdctool.files import size_text
    from kdctool.stages.run_state import age_text

    state = shown.state
    rows = [["state", state.state + (f": {state.note}" if state.note else "")], ["kind", state.kind]]
    rows += [["step", _steps(state, shown.total)], ["wrote", f"{age_text(state.silent_s)} ago, by file time"]]
    rows += [["broken", problem] for problem in shown.problems]
    table(str(state.path), [], rows)
    for title, pairs in (
        ("settings that are not defaults", {key: _text(value) for key, value in shown.changed.items()}),
        ("last metrics", {name: _text(value) for name, value in state.last.items()}),
        (
            "checkpoints (hashes not computed: kdctool verify does)",
            {s.name: size_text(s.size) + ("" if s.complete else ", incomplete") for s in shown.saved},
        ),
    ):
        if pairs:
            table(title, [], [[key, value] for key, value in pairs.items()])
        else:
            print(f"{title}: none\n")
    for score in shown.scores:
        if score.problem:
            print(f"broken: eval/{score.task}: {score.problem}")
            continue
        cells = [
            [name, *(_text(m.get(k)) for k in ("value", "low", "high", "chance"))] for name, m in score.metrics.items()
        ]
        table(f"eval/{score.task}", ["metric", "value", "low", "high", "chance"], cells)
    if state.next_step:
        print(f"next: {state.next_step}")


def _watch_plain(events: Any) -> "RunState | None":
    last = None
    for event in events:
        if event.kind == "end":
            last = event.state
            print(_end(event), flush=True)
        else:
            print(_line(event), flush=True)
    return last


def _watch_live(run: Path, events: Any) -> "RunState | None":
    from rich.console import Console
    from rich.live import Live

    kept: list[Event] = []
    last = None
    with Live(console=Console(), refresh_per_second=4) as live:
        for event in events:
            if event.kind == "end":
                last = event.state
                break
            if event.kind == "row":
                kept = [*kept, event][-SHOWN_ROWS:]
                live.update(_live_table(run, kept))
            else:
                live.console.print(_line(event), markup=False, highlight=False)
    if last is not None:
        print(_end(event))
    return last


def _live_table(run: Path, rows: "list[Event]") -> Any:
    from rich import box
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row.values or {}))
    drawn = Table(title=str(run).replace("[", "\\["), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", *names):
        drawn.add_column(name.replace("[", "\\["), justify="right", overflow="fold")
    for row in rows:
        drawn.add_row(str(row.step), *(_text((row.values or {}).get(name)) for name in names))
    return drawn


def _line(event: "Event") -> str:
    if event.kind == "row":
        return "  ".join([f"step {event.step}", *(f"{name} {_text(v)}" for name, v in (event.values or {}).items())])
    if event.kind == "cut":
        return f"the run resumed: rows from step {event.step} on were taken back"
    running = event.state is not None and event.state.state == "running?"
    return f"running?: {event.text}; still looking, Ctrl-C ends this" if running else f"broken: {event.text}"


def _end(event: "Event") -> str:
    state = event.state
    note = f": {state.note}" if state and state.note else ""
    return f"{state.state}{note} (step {_steps(state, None)})" if state else ""


def _tell(state: "RunState") -> None:
    for problem in state.problems:
        print(f"broken: {state.name}: {problem}")
    if state.note and state.state in ("running?", "failed"):
        print(f"{state.state}: {state.name}: {state.note}")


def _steps(state: "RunState", total: int | None) -> str:
    done = "?" if state.step is None else f"{state.step:,}"
    return done if total is None else f"{done} / {total:,}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _wide(columns: list[str], rows: list[list[str]]) -> None:
    """A table whose lines stay whole where the output is no terminal; the first and last column are left."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        left = place == 0 or column in ("kind", "state", "next")
        drawn.add_column(column.replace("[", "\\["), justify="left" if left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    console().print(drawn)


def _payload(state: "RunState", total: int | None) -> dict[str, Any]:
    return {
        "name": state.name,
        "path": str(state.path),
        "kind": state.kind,
        "state": state.state,
        "step": state.step,
        "total_steps": total,
        "last": state.last,
        "wrote_s_ago": state.silent_s,
        "note": state.note,
        "problems": list(state.problems),
        "next": state.next_step,
    }


def _shown_payload(shown: "Shown") -> dict[str, Any]:
    return {
        **_payload(shown.state, shown.total),
        "problems": list(shown.problems),
        "status": shown.state.status,
        "not_default": shown.changed,
        "checkpoints": [{"name": s.name, "bytes": s.size, "complete": s.complete} for s in shown.saved],
        "eval": {score.task: score.metrics for score in shown.scores},
    }


def _compared_payload(compared: "Compared") -> dict[str, Any]:
    return {
        "runs": [_payload(state, None) for state in compared.states],
        "recipe": compared.recipe,
        "metrics": compared.metrics,
        "eval": compared.scores,
        "problems": list(compared.problems),
    }


def _json(payload: dict[str, Any]) -> None:
    """One JSON object; what JSON has no word for (NaN, infinities) is null."""
    print(json.dumps(_finite(payload), sort_keys=True, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
