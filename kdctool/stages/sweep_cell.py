"""One cell of a study: pre-train, finetune where a task needs a classifier, measure. Stopped, it goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kdctool.errors import Interrupted, KdctoolError, UsageFault
from kdctool.files import InUse, digest, locked, read_json, write_json
from kdctool.progress import say
from kdctool.recipe.study_parts import Evaluation
from kdctool.stages import evaluate, finetune, pretrain, run_folder, untrained
from kdctool.stages.fitting import How, choose_device
from kdctool.stages.sweep_plan import Cell, Plan, finetuning
from kdctool.tasks import tasks
from kdctool.train.log import STATUS

CELL, LOCK = "cell.json", ".cell-lock"
UNTRAINED = "untrained"
"""The run that a reference begins with; the encoder of an arm that is not trained is measured there."""


@dataclass
class Record:
    """What is known of a cell."""

    arm: str
    seed: int
    state: str = "missing"
    """missing, running, done, failed or interrupted."""
    cause: str = ""
    exit_code: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each part, over all starts that ended; a killed process takes its last minutes along."""
    values: dict[str, float | None] = field(default_factory=dict)
    """EVALUATION/METRIC -> value."""
    measured: dict[str, str] = field(default_factory=dict)
    """Evaluation -> digest of what was asked."""
    device: str = ""


def look(plan: Plan, cell: Cell) -> Record:
    """The record of a cell as it lies there. One that says `running` while nobody holds it was killed."""
    path = plan.folder(cell) / CELL
    if not path.exists():
        return Record(cell.arm.name, cell.seed)
    record = Record(**read_json(path))
    if record.state == "running" and not _is_held(path.parent):
        record.state, record.cause = "interrupted", "its process was killed"
    if record.state == "done" and any(record.measured.get(key) != asked for key, asked in questions(plan).items()):
        record.state, record.cause = "interrupted", "evaluations were added or changed"
    return record


def run(plan: Plan, cell: Cell, *, device_name: str, workers: int | None) -> Record:
    """Do what is not done of a cell. A failure is noted and raised."""
    folder = plan.folder(cell)
    with locked(folder, LOCK):
        record = look(plan, cell)
        if record.state == "done":
            return record
        record.state, record.cause, record.exit_code = "running", "", None
        _write(folder, record)
        say(f"--- cell {cell.name}: {cell.arm.steps} steps")
        try:
            how = How(device_name=device_name, workers=workers)
            _train(plan, cell, record, how)
            for item in plan.study.evaluations:
                _measure(plan, cell, item, record, how)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            record.state = "interrupted" if stopped else "failed"
            record.exit_code = getattr(error, "exit_code", 130 if stopped else 1)
            record.cause = (getattr(error, "cause", "") or f"{type(error).__name__}: {error}").splitlines()[0]
            _write(folder, record)
            raise
        record.state = "done"
        _write(folder, record)
    return record


def source(plan: Plan, cell: Cell) -> Path:
    """The run whose encoder is measured."""
    return plan.folder(cell) / {"none": UNTRAINED}.get(cell.arm.training, cell.arm.training)


def _train(plan: Plan, cell: Cell, record: Record, how: How) -> None:
    run, untrained_run = source(plan, cell), plan.folder(cell) / UNTRAINED
    if cell.arm.is_reference:
        untrained.run(cell.recipe, shards=plan.shards, out=untrained_run)
    elif (run / run_folder.RUN_FILE).exists():
        run_folder.prepare(run, cell.recipe, "pretrain", plan.data_digest, pretrain.guard(cell.recipe))
        if _is_done(run):
            return
    record.device = str(choose_device(how["device_name"]))
    if cell.supervision is not None:
        with _timed(record, "supervised"):
            finetune.run(untrained_run, recipe=cell.supervision, shards=plan.shards, out=run, **how)
    elif not cell.arm.is_reference:
        with _timed(record, "pretrain"):
            pretrain.run(cell.recipe, shards=plan.shards, out=run, **how)


def _measure(plan: Plan, cell: Cell, item: Evaluation, record: Record, how: How) -> None:
    asked = questions(plan)[item.key]
    if record.measured.get(item.key) == asked:
        return
    folder, model = plan.folder(cell), source(plan, cell)
    if why := cell.arm.lacks(item.task):
        record.measured[item.key] = asked
        say(f"{item.key}: {why}; the table shows a dash")
        _write(folder, record)
        return
    if tasks.get(item.task).cls.wants == "classifier":
        run = folder / f"finetune-{item.key}"
        # Typed again, a finished run ends at once; and one with other settings is refused.
        with _timed(record, "finetune"):
            finetune.run(model, recipe=finetuning(cell.recipe, item), shards=plan.shards, out=run, **how)
        model = run
    with _timed(record, "evaluate"):
        done = evaluate.run(
            model,
            task=item.task,
            shards=plan.shards,
            split=item.split,
            batch_size=item.batch_size,
            out=folder / "eval" / item.key,
            options=item.options_on(plan.shards),
            device_name=how["device_name"],
            workers=how["workers"],
        )
    metrics = done.payload["metrics"]
    for endpoint in plan.study.read:
        metric = endpoint.partition("/")[2]
        if item in plan.study.measured_by(endpoint) and metric not in metrics:
            raise UsageFault(f"endpoint {endpoint}: {item.task} gives no {metric}", f"it gives: {', '.join(metrics)}")
    record.values.update({f"{item.key}/{name}": metric["value"] for name, metric in metrics.items()})
    record.measured[item.key] = asked
    _write(folder, record)


def questions(plan: Plan) -> dict[str, str]:
    """Evaluation -> digest of all that decides its numbers."""
    return {
        item.key: digest(item.model_dump(mode="json", exclude={"name", "batch_size"}))
        for item in plan.study.evaluations
    }


def _is_done(run: Path) -> bool:
    status = run / STATUS
    return status.exists() and read_json(status)["state"] == "done"


def _is_held(folder: Path) -> bool:
    try:
        with locked(folder, LOCK):
            return False
    except InUse:
        return True


def _write(folder: Path, record: Record) -> None:
    write_json(folder / CELL, asdict(record))


@contextmanager
def _timed(record: Record, name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        record.seconds[name] = round(record.seconds.get(name, 0.0) + time.monotonic() - start, 3)


def hits_every_cell(error: KdctoolError) -> bool:
    """Whether other cells would end the same way: bad usage, bad data, a full disk."""
    return isinstance(error, Interrupted | UsageFault) or error.exit_code in (2, 3, 4)
