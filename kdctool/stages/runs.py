"""The runs there are: which, how far, with what settings, and how they compare. Reads only; loads no torch."""

import os
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from kdctool import recipe as recipes
from kdctool.errors import KdctoolError, UsageFault, quoted
from kdctool.files import read_json
from kdctool.recipe.write import flat
from kdctool.shards import index as shard_index
from kdctool.stages.run_folder import RECIPE_FILE, RUNS
from kdctool.stages.run_state import CHECKPOINTS, STATES, RunState, Saved, is_run, numbers, parse_row, read, saved
from kdctool.train.log import METRICS

LARGE_INDEX = 64 * 2**20
"""Bytes of an index.json that a list of runs does not wait for."""
_UNSET = object()


@dataclass(frozen=True)
class Score:
    """A results.json below RUN/eval."""

    task: str
    metrics: dict[str, dict[str, Any]]
    """name -> value, low, high, chance; each may be None."""
    problem: str = ""


@dataclass(frozen=True)
class Shown:
    """Everything about one run."""

    state: RunState
    changed: dict[str, Any]
    """Dotted recipe keys that differ from what the preset and the defaults would give."""
    total: int | None
    saved: list[Saved]
    scores: list[Score]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """Rows by name, a value per run; None where a run has none."""

    states: list[RunState]
    recipe: dict[str, list[Any]]
    """Only the keys that differ."""
    metrics: dict[str, list[float | None]]
    scores: dict[str, list[float | None]]
    """`task/metric` -> value."""
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """Something `watch` saw."""

    kind: Literal["row", "cut", "note", "end"]
    text: str = ""
    step: int = 0
    values: dict[str, float] | None = None
    state: RunState | None = None


def list_runs(root: Path = RUNS) -> list[tuple[RunState, int | None]]:
    """Every run of a folder with its total of steps, the one that wrote last first."""
    if not root.is_dir():
        raise UsageFault(f"no folder {root}", "name it with --root, or make a run: kdctool pretrain recipes/small.toml")
    states = [read(path) for path in sorted(root.iterdir()) if path.is_dir() and is_run(path)]
    states.sort(key=lambda state: (state.silent_s is None, state.silent_s or 0.0, state.name))
    return [(state, total_steps(state)) for state in states]


def find(run: Path, root: Path = RUNS) -> Path:
    """The folder of a run given by path or by its name in `root`; UsageFault when there is none."""
    for path in (run, root / run):
        if path.is_dir() and (is_run(path) or (path / RECIPE_FILE).exists()):
            return path
    if run.is_dir():
        raise UsageFault(f"{run} holds no run", f"kdctool runs list --root {quoted(run)} looks for runs below it")
    near = sorted(path.name for path in root.iterdir() if path.is_dir() and is_run(path)) if root.is_dir() else []
    there = f"in {root}: {', '.join(near[:8])}{' ...' if len(near) > 8 else ''}" if near else f"{root} has none"
    raise UsageFault(f"no run {run}", f"{there}; a run elsewhere is named by its folder")


def show(run: Path) -> Shown:
    """One run in full."""
    state = read(run)
    problems = list(state.problems)
    tree = _recipe_tree(run, problems)
    return Shown(
        state, _not_default(tree, problems), total_steps(state), saved(run), list(_scores(run)), tuple(problems)
    )


def compare(runs: list[Path]) -> Compared:
    """Settings that differ, last metrics and scores of several runs, side by side; no statistics."""
    if len(runs) < 2:
        raise UsageFault("compare takes two runs or more", "kdctool runs list names them")
    states, problems, trees, scores = [read(run) for run in runs], [], [], []
    for run, state in zip(runs, states, strict=True):
        found = list(state.problems)
        tree = dict(flat(_recipe_tree(run, found)))
        extra = {"kind": state.kind, "shards": str(state.about.get("data_digest", ""))[:12]}
        keys = state.about.get("keys")
        if isinstance(keys, dict) and "weights" in keys:
            extra["weights"] = str(keys["weights"])[:12]
        trees.append({**tree, **extra})
        scores.append(
            {f"{score.task}/{name}": m.get("value") for score in _scores(run) for name, m in score.metrics.items()}
        )
        problems += [f"{state.name}: {problem}" for problem in found]
    keys_there = sorted(set().union(*trees))
    side = {key: [tree.get(key) for tree in trees] for key in keys_there}
    return Compared(
        states,
        {key: values for key, values in side.items() if any(value != values[0] for value in values)},
        {name: [state.last.get(name) for state in states] for name in _in_order(*(state.last for state in states))},
        {name: [score.get(name) for score in scores] for name in _in_order(*scores)},
        tuple(problems),
    )


def total_steps(state: RunState) -> int | None:
    """Steps the run will have; None where that is not known: no checkpoint, and its recipe's shards are not its own."""
    if state.state == "done":
        return state.step
    for one in reversed(saved(state.path)):
        total = _total_of(state.path / CHECKPOINTS / one.name / "state.json") if one.complete else None
        if total is not None:
            return total
    tree = _recipe_tree(state.path, [])
    try:
        training = tree["finetune"]["training"] if state.kind == "finetune" else tree["training"]
        folder = Path(tree["data"]["shards"])
        if (folder / shard_index.INDEX).stat().st_size > LARGE_INDEX:
            return None
        index = shard_index.read(folder)
        if index.digest != state.about.get("data_digest"):
            return None
        clips = index.splits[tree["data"]["train_split"]]
        return int(clips // training["global_batch"] * training["epochs"])
    except (KdctoolError, OSError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def unfinished(run: Path, step: int) -> str:
    """`unfinished: step 26 of 80` of a run whose weights of `step` are not its last; empty where they are."""
    state = read(run)
    total = total_steps(state)
    if total is not None:
        return f"unfinished: step {step} of {total}" if step < total else ""
    return f"unfinished: step {step}" if state.state in STATES or state.alive else ""


def _total_of(path: Path) -> int | None:
    """What a checkpoint's state.json says; None where it is older than that key, or damaged."""
    try:
        return int(read_json(path)["total_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def follow(
    run: Path, *, once: bool = False, every_s: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Event]:
    """Rows of metrics.jsonl as they come, until status.json says that the run has ended; `once`: what is there.

    A resumed run cuts its later rows off and writes them again; that is an event, too.
    """
    reader, noted = _Rows(run / METRICS), ""
    while True:
        state = read(run)  # Before the rows: a run that ended in between has no row that is missed.
        yield from reader.new()
        if once or state.state in ("done", "failed", "interrupted"):
            yield Event("end", state=state)
            return
        note = state.state if state.state == "running?" else "; ".join(state.problems)
        if note != noted:
            if note:
                yield Event("note", state.note if state.state == "running?" else note, state=state)
            noted = note
        sleep(every_s)


class _Rows:
    """Whole lines of a file that grows, and that a resume replaces by its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._offset = 0

    def new(self) -> Iterator[Event]:
        """Rows that were not told before; first whether earlier ones were taken back."""
        try:
            if self._file is None or not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
                yield from self._reopen()
            if self._file is None:
                return
            self._file.seek(self._offset)
            text = self._file.read()
        except OSError:
            return  # Not there yet, or just being replaced.
        end = text.rfind(b"\n") + 1
        self._offset += end
        for line in text[:end].decode("utf-8", "replace").splitlines():
            row = parse_row(line)
            if row is not None:
                yield Event("row", step=int(row["step"]), values=numbers(row))

    def _reopen(self) -> Iterator[Event]:
        """Open the file that bears the name now, and go on behind what it shares with the one before."""
        file = open(self.path, "rb")  # noqa: SIM115
        before, self._file = self._file, file
        if before is None:
            return
        with before:
            before.seek(0)
            told, now = before.read(self._offset), file.read()
        same = 0
        for a, b in zip(told.splitlines(keepends=True), now.splitlines(keepends=True), strict=False):
            if a != b:
                break
            same += len(a)
        if same < self._offset:
            first = parse_row(told[same:].split(b"\n", 1)[0].decode("utf-8", "replace"))
            yield Event("cut", step=int(first["step"]) if first else 0)
        self._offset = same


def _recipe_tree(run: Path, problems: list[str]) -> dict[str, Any]:
    """recipe.toml as it stands, also one that this version of kdctool would not accept."""
    try:
        return tomllib.loads((run / RECIPE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # `read` has named it.
    except (OSError, ValueError) as error:
        problems.append(f"{RECIPE_FILE} cannot be read: {' '.join(str(error).split())[:120]}")
        return {}


def _not_default(tree: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Keys of `tree` whose value is not that of an empty recipe with the same preset."""
    if not tree:
        return {}
    objective = tree.get("objective")
    preset = objective.get("name") if isinstance(objective, dict) else None
    bare: dict[str, Any] = {"name": tree.get("name", "")} | ({"objective": {"name": preset}} if preset else {})
    try:
        default = dict(flat(recipes.validate(bare).model_dump(mode="json")))
    except KdctoolError as error:
        problems.append(f"{RECIPE_FILE}: {error.cause.splitlines()[0]}")
        default = {}
    default |= {key: _UNSET for key in ("name", "objective.name")}
    return {key: value for key, value in flat(tree) if default.get(key, _UNSET) != value}


def _scores(run: Path) -> Iterator[Score]:
    for path in sorted((run / "eval").rglob("results.json")):
        task = path.parent.relative_to(run / "eval").as_posix()
        try:
            metrics = read_json(path)["metrics"]
            yield Score(task, {str(name): dict(metric) for name, metric in metrics.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield Score(task, {}, f"results.json cannot be read: {' '.join(str(error).split())[:120]}")


def _in_order(*rows: dict[str, Any]) -> list[str]:
    """The keys of several rows, each once, in the order they come."""
    return list(dict.fromkeys(key for row in rows for key in row))
